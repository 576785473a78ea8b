// The second stage of a tokenizer: normalised text is cut into the pieces that the model sees.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "foveate/io/pipeline/json_place.h"
#include "foveate/io/pipeline/normalizer.h"

namespace foveate::io {

// What becomes of the parts that are found.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct SplitText {
  Wanted wanted;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // what is not found counts as found
};
struct ByteLevelSplit {
  bool add_prefix_space = false;
  std::shared_ptr<const Regex> words = {};  // GPT-2's pattern, or none
};
struct Digits {
  bool individual = false;
};
struct Words {};  // runs of word characters and of other ones; white space is dropped
struct WhiteSpaceSplit {};
struct Punctuation {
  SplitBehavior behavior = SplitBehavior::isolated;
};
struct BertSplit {};
struct Metaspace {
  enum class Prepend { always, first, never };
  std::string replacement = "\xE2\x96\x81";
  Prepend prepend = Prepend::always;
  bool split = true;
};

using PreTokenizer =
    std::variant<SplitText, ByteLevelSplit, Digits, Words, WhiteSpaceSplit, Punctuation, BertSplit, Metaspace>;

// The pre-tokenizer at `place`, a Sequence as its parts in order.  Throws Error: a type or option that is not known.
std::vector<PreTokenizer> read_pre_tokenizers(const JsonPlace& place);

Metaspace read_metaspace(const JsonPlace& place);

// Empty pieces are dropped.
std::vector<Piece> pre_tokenize(const std::vector<PreTokenizer>& pre_tokenizers, Piece piece);

}  // namespace foveate::io
