// SentencePiece's normalisation: a double-array trie of texts and what each becomes ("precompiled_charsmap").
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/pipeline/json_place.h"

namespace foveate::io {

class Charsmap {
 public:
  // `bytes`: the trie's size in bytes, its units, the replacements with a NUL behind each.  Throws Error, naming
  // `what`: a size that does not fit.  A trie that points outside itself is one in which nothing is found.
  Charsmap(std::string_view bytes, const std::string& what);

  // As the `tokenizers` package does it: a grapheme of less than six bytes whose shortest known beginning is in the
  // trie becomes that one's replacement, of others each character.
  std::string apply(std::string_view text) const;

 private:
  std::optional<std::string_view> replacement(std::string_view text) const;
  void append_grapheme(std::string_view grapheme, std::string& result) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

// Throws Error: not the base64 text of some bytes.
std::string decode_base64(const JsonPlace& place);

}  // namespace foveate::io
