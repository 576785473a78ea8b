// Bootstrap intervals: how far a mean could have moved had other prompts or documents been drawn.
#pragma once

#include <cstdint>
#include <span>

namespace foveate::eval {

struct Interval {
  double mean = 0;           // of the data as they are
  double low = 0, high = 0;  // 95 % percentile interval over 2,000 resamples
};

// Interval of mean(mechanism - dense), prompt by prompt.  Equal differences give exactly [d, d] (no difference: [0,
// 0]). Throws Error: no data, or different sizes.
Interval paired_interval(std::span<const double> mechanism, std::span<const double> dense, uint64_t seed);

// Interval of sum(numerators) / sum(weights) when whole items (documents) are resampled.
// Throws Error: no data, different sizes, or a weight <= 0.
Interval ratio_interval(std::span<const double> numerators, std::span<const double> weights, uint64_t seed);

}  // namespace foveate::eval
