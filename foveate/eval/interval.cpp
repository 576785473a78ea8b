#include "foveate/eval/interval.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::eval {
namespace {

constexpr int kResamples = 2000;
constexpr int kTail = kResamples * 25 / 1000;           // resamples cut off on each side
constexpr uint64_t kBootstrapStream = 0x626f6f7400ull;  // keeps these draws apart from the generators' ("boot")

double total(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

}  // namespace

Interval ratio_interval(std::span<const double> numerators, std::span<const double> weights, uint64_t seed) {
  const size_t n = numerators.size();
  require(n >= 1, "bootstrap: needs at least one item, got none");
  require(weights.size() == n, "bootstrap: both lists must have one entry per item, got {} and {}", n, weights.size());
  for (const double weight : weights) require(weight > 0, "bootstrap: a weight must be > 0, got {}", weight);

  const double mean = total(numerators) / total(weights);
  const double first = numerators[0] / weights[0];
  bool all_equal = true;
  for (size_t i = 1; i < n; ++i) all_equal = all_equal && numerators[i] / weights[i] == first;
  if (all_equal) return {first, first, first};          // resampling would only add rounding
  if (!std::isfinite(mean)) return {mean, mean, mean};  // a NaN cannot be sorted

  Random random(seed, kBootstrapStream);
  std::vector<double> means(kResamples);
  for (double& resampled : means) {
    double sum = 0, weight = 0;
    for (size_t i = 0; i < n; ++i) {
      const size_t item = random.below(n);
      sum += numerators[item], weight += weights[item];
    }
    resampled = sum / weight;
  }
  std::sort(means.begin(), means.end());
  return {mean, means[kTail - 1], means[kResamples - kTail]};
}

Interval paired_interval(std::span<const double> mechanism, std::span<const double> dense, uint64_t seed) {
  require(mechanism.size() == dense.size(), "bootstrap: paired lists must have equal sizes, got {} and {}",
          mechanism.size(), dense.size());
  std::vector<double> differences(mechanism.size());
  for (size_t i = 0; i < differences.size(); ++i) differences[i] = mechanism[i] - dense[i];
  return ratio_interval(differences, std::vector<double>(differences.size(), 1.0), seed);
}

}  // namespace foveate::eval
