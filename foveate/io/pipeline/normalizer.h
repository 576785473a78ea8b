// The first stage of a tokenizer: text to the text that is cut up.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "foveate/io/pipeline/charsmap.h"
#include "foveate/io/pipeline/json_place.h"
#include "foveate/io/pipeline/unicode_text.h"
#include "foveate/io/regex.h"

namespace foveate::io {

// A stretch of text on its way through the stages.
struct Piece {
  std::string text;
  // Its first character is, or comes from, the first one of the input.  (A first character of which a normalizer drops
  // a part counts as dropped, which the package sees more finely.)
  bool begins = false;
};

// What is looked for: a text as it is, or a pattern.
using Wanted = std::variant<std::string, std::shared_ptr<const Regex>>;

struct Lowercase {};
struct StripAccents {};
struct Nmt {};
struct ByteSpelling {};  // every byte by its printable character
struct BertNormalizer {
  bool clean_text = true, handle_chinese_chars = true, strip_accents = true, lowercase = true;
};
struct Prepend {
  std::string text;
};
struct Replace {
  Wanted wanted;
  std::string content;
};
struct Strip {
  bool left = true, right = true;
};

using Normalizer = std::variant<NormalForm, Lowercase, StripAccents, Nmt, ByteSpelling, BertNormalizer, Prepend,
                                Replace, Strip, Charsmap>;

// The normalizer at `place`, a Sequence as its parts in order.  Throws Error: a type or option that is not known.
std::vector<Normalizer> read_normalizers(const JsonPlace& place);

void normalise(const std::vector<Normalizer>& normalizers, Piece& piece);

// {"String": ..} or {"Regex": ..}.
Wanted read_wanted(const JsonPlace& place);

// The parts of a text in order: what is wanted, and what lies between, never empty but for empty matches.
struct Part {
  size_t begin, end;
  bool is_match;
};
std::vector<Part> find_parts(std::string_view text, const Wanted& wanted);

// With `content` in place of every match.
std::string replaced(std::string_view text, const Wanted& wanted, std::string_view content);

}  // namespace foveate::io
