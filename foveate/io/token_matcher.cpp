#include "foveate/io/token_matcher.h"

#include <algorithm>
#include <functional>

namespace foveate::io {

void TokenMatcher::add(std::string_view text, int32_t id) {
  ids_.emplace(text, id);
  std::vector<size_t>& lengths = lengths_[uint8_t(text[0])];
  const auto place = std::ranges::lower_bound(lengths, text.size(), std::greater<>());
  if (place == lengths.end() || *place != text.size()) lengths.insert(place, text.size());
}

TokenMatcher::Match TokenMatcher::next(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin)
    for (const size_t length : lengths_[uint8_t(text[begin])]) {
      if (length > text.size() - begin) continue;
      const auto found = ids_.find(text.substr(begin, length));
      if (found != ids_.end()) return {begin, length, found->second};
    }
  return {text.size(), 0, -1};
}

}  // namespace foveate::io
