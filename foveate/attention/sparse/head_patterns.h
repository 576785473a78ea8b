// How many lines each head of each layer keeps, in the form MInference ships (configs/*_best_pattern.json): a list with
// one object for each layer,
//   [{"0": ["vertical_and_slash", 1000, 6096, 0.33], "1": ["stream_llm", 100, 800, 0.96]}, ..]
// head: [kind, columns, distances, score that the search gave it].
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::attention {

struct HeadPattern {
  enum class Kind {
    vertical_and_slash,  // the columns and distances with the most attention
    stream_llm           // the first columns and the nearest distances
  };
  friend constexpr auto enum_names(Kind) { return std::array<std::string_view, 2>{"vertical_and_slash", "stream_llm"}; }
  int64_t vertical = 0, slash = 0;
  Kind kind = Kind::vertical_and_slash;
  double score = 0;
};

using LayerPatterns = std::map<int64_t, HeadPattern>;  // by query head

// Throws Error, naming `source` and the place: not of the form above, a head that is no number, a kind that is neither
// of the two, counts that are no whole numbers >= 1.
std::vector<LayerPatterns> parse_head_patterns(std::string_view text, const std::string& source);
std::vector<LayerPatterns> read_head_patterns(const std::string& path);

std::string head_patterns_as_json(const std::vector<LayerPatterns>& layers);

}  // namespace foveate::attention
