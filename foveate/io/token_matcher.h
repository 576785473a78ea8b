// Finds the longest of a set of token texts at a place in a text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace foveate::io {

class TokenMatcher {
 public:
  struct Match {
    size_t begin, length;
    int32_t id;
  };

  // text must not be empty and must outlive the matcher.
  void add(std::string_view text, int32_t id);

  // The leftmost match at or after `from`, the longest one there; length 0 if there is none.
  Match next(std::string_view text, size_t from) const;

 private:
  std::array<std::vector<size_t>, 256> lengths_;  // by first byte: the lengths of its texts, longest first
  std::unordered_map<std::string_view, int32_t> ids_;
};

}  // namespace foveate::io
