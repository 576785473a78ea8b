// Tokens that are cut out of a text before the model sees it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "foveate/io/pipeline/normalizer.h"
#include "foveate/io/token_matcher.h"

namespace foveate::io {

struct AddedToken {
  int32_t id = 0;
  std::string content = {};
  bool special = false;                 // stands for itself only where special tokens are parsed
  bool lstrip = false, rstrip = false;  // takes the white space before or behind it along
  bool single_word = false;             // only where no word character is next to it
  bool normalized = true;               // is looked for in normalised text, in its own normalised form
};

class AddedTokens {
 public:
  AddedTokens(std::vector<AddedToken> tokens, const std::vector<Normalizer>& normalizers);
  AddedTokens(const AddedTokens&) = delete;  // the matchers point into the tokens
  AddedTokens& operator=(const AddedTokens&) = delete;

  struct Part {
    size_t begin, end;
    int32_t id;  // -1: text between tokens
  };
  // The parts of raw and of normalised text, leftmost and longest tokens first.
  std::vector<Part> split_raw(std::string_view text, bool parse_special) const {
    return split(raw_, text, parse_special);
  }
  std::vector<Part> split_normalised(std::string_view text, bool parse_special) const {
    return split(normalised_, text, parse_special);
  }

 private:
  std::vector<Part> split(const TokenMatcher& matcher, std::string_view text, bool parse_special) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::string> texts_;  // what is looked for, by place in tokens_
  TokenMatcher raw_, normalised_;   // to places in tokens_
};

}  // namespace foveate::io
