// Inside of ruler.h: what each task gives to the one place that finds the right size.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/base/random.h"

namespace foveate::eval::ruler {

struct Draft {
  std::string prompt;
  std::vector<std::string> references, leads;
  std::vector<std::string> near;              // could be mistaken for an answer: stands in the text
  std::function<std::string(Random&)> other;  // one more of its kind, perhaps one of the above
};

struct Source {
  std::vector<std::string_view> sentences;  // of prose
  int64_t length = 0;                       // wanted, in tokens
};

struct Task {
  std::string_view name;
  int64_t answer_budget;
  int64_t minimum;  // units
  // More units make a longer text.
  Draft (*make)(const Source& source, int64_t units, Random& random, int variant);
  int variant;
  bool needs_prose;
  int64_t most = INT64_MAX;  // units: for more there are not enough different words
};

Draft make_needle_task(const Source& source, int64_t units, Random& random, int variant);  // 0 .. 7
Draft make_variables(const Source& source, int64_t units, Random& random, int variant);
Draft make_common_words(const Source& source, int64_t units, Random& random, int variant);
Draft make_frequent_words(const Source& source, int64_t units, Random& random, int variant);

// Distinct draws.
std::vector<std::string> draw_distinct(size_t count, const std::function<std::string()>& draw);
std::string random_letters(Random& random, int count, char first);  // "qwertz" from 'a', "QWERT" from 'A'
std::string random_word_pair(Random& random);                       // "quiet-lantern"
inline constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

}  // namespace foveate::eval::ruler
