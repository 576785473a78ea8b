// How a training run went, as a page.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace foveate::report {

// What was measured up to a step, by name.
struct TrainingRecord {
  int64_t step = 0;  // ascending
  std::vector<std::pair<std::string, double>> values;
};

// A self-contained page: the last numbers and a curve for every name, in the order in which they first appear.
// `command` stands at the top, as text; `more` at the end, HTML.
std::string training_page(std::string_view command, std::span<const TrainingRecord> records,
                          const std::string& more = "");

}  // namespace foveate::report
