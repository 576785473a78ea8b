#include "foveate/models/language/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "foveate/base/error.h"

namespace foveate::models {

void Sampling::validate() const {
  require(temperature >= 0 && std::isfinite(temperature), "sampling: temperature must be >= 0, got {}", temperature);
  require(top_k >= 0, "sampling: top_k must be >= 0, got {}", top_k);
  require(top_p > 0 && top_p <= 1, "sampling: top_p must be in (0, 1], got {}", top_p);
  require(min_p >= 0 && min_p <= 1, "sampling: min_p must be in [0, 1], got {}", min_p);
}

int32_t sample(std::span<const float> logits, const Sampling& sampling, Random& random) {
  require(!logits.empty(), "sample: logits must not be empty");
  for (const float logit : logits) require(!std::isnan(logit), "sample: logits must be numbers, got NaN");
  const auto best = std::ranges::max_element(logits);
  if (sampling.temperature == 0) return int32_t(best - logits.begin());

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  const size_t kept = sampling.top_k > 0 ? std::min<size_t>(sampling.top_k, order.size()) : order.size();
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), better);
  order.resize(kept);
  std::vector<double> weights;
  for (const int32_t id : order) weights.push_back(std::exp((double(logits[id]) - *best) / sampling.temperature));
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  size_t count = 0;
  while (count < kept && weights[count] >= sampling.min_p && (count == 0 || sum < sampling.top_p * all))
    sum += weights[count++];
  double target = random.uniform() * sum;
  for (size_t i = 0; i + 1 < count; ++i) {
    target -= weights[i];
    if (target < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace foveate::models
