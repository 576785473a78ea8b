// The way back: the texts of tokens to one text.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "foveate/io/pipeline/json_place.h"
#include "foveate/io/pipeline/normalizer.h"
#include "foveate/io/pipeline/pre_tokenizer.h"

namespace foveate::io {

struct ByteLevelDecoder {};
struct ByteFallback {};
struct Fuse {};
struct SpaceJoin {};  // a space between tokens
struct WordPieceDecoder {
  std::string prefix = "##";
  bool cleanup = true;  // no space before marks and in contractions
};
struct StripDecoder {
  std::string content = " ";
  int64_t start = 0, stop = 0;
};
struct SuffixDecoder {
  std::string suffix = "</w>";
};

using Decoder = std::variant<ByteLevelDecoder, ByteFallback, Fuse, SpaceJoin, WordPieceDecoder, Metaspace, Replace,
                             StripDecoder, SuffixDecoder>;

// The decoder at `place`, a Sequence as its parts in order; null joins with spaces.  Throws Error: a type or option
// that is not known.
std::vector<Decoder> read_decoders(const JsonPlace& place);

// The texts one behind the other.  Unlike the package's, bytes that are no UTF-8 stay as they are.
std::string decode(const std::vector<Decoder>& decoders, std::vector<std::string> texts);

}  // namespace foveate::io
