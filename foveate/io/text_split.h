// Cuts text into the pieces inside which byte-level BPE may merge, by the pattern that a GGUF file names.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/regex.h"

namespace foveate::io {

// Immutable after construction: one splitter serves several threads.
class TextSplitter {
 public:
  // `pre` is tokenizer.ggml.pre of the file `source`.  Throws Error for an unknown name, with the known ones.
  TextSplitter(std::string_view pre, std::string_view source);

  // Calls take(piece) for every piece in order; the pieces are views into text and cover it.  A byte that belongs to no
  // UTF-8 character counts as a symbol (neither letter, number nor space), like the U+FFFD llama.cpp puts in its place.
  void split(std::string_view text, const std::function<void(std::string_view)>& take) const;

  // Whether a piece that is a token as a whole is that token, whatever the merges say (Llama 3).
  bool keeps_whole_tokens() const { return keeps_whole_tokens_; }

 private:
  void split_from(size_t pass, std::string_view text, std::string_view matchable,
                  const std::function<void(std::string_view)>& take) const;

  std::vector<Regex> passes_;
  bool keeps_whole_tokens_ = false;
};

}  // namespace foveate::io
