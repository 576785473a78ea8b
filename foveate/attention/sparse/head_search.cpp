#include "foveate/attention/sparse/head_search.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/minimum.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/ops/sums/sums.h"

namespace foveate::attention {
namespace {

using at::Tensor;

constexpr std::string_view kName = "head search";

// What blocks of rows list of the keys before their ends, on average over the batch.
double listed_share(const RunPlan& plan, int64_t start, int64_t keys) {
  const Tensor ends = at::arange(1, plan.start.size(2) + 1, at::kLong).mul_(plan.query_block).add_(start);
  const Tensor before = ends.clamp_max(keys).view({1, 1, -1, 1});
  const Tensor listed = at::minimum(plan.end.to(at::kLong), before).sub_(plan.start).clamp_min_(0);
  return double(listed.sum().item<int64_t>()) / double(plan.start.size(0) * before.sum().item<int64_t>());
}

// One head of a sample, and the largest multiple of a candidate that keeps a share of the keys.
class Fitting {
 public:
  Fitting(const HeadSearch& s, const Inputs& in, const LineSums& sums, int64_t head)
      : options_(s.options),
        sums_{sums.columns.narrow(1, head, 1), sums.distances.narrow(1, head, 1), sums.first_key},
        grid_(in, options_.block, options_.block, kName) {}

  std::optional<HeadPattern> fit(const HeadPattern& candidate, double density) const {
    const int64_t larger = std::max(candidate.vertical, candidate.slash);
    const auto scaled = [&](int64_t n) {  // the larger count becomes n
      HeadPattern p = candidate;
      p.vertical = std::max<int64_t>(candidate.vertical * n / larger, 1);
      p.slash = std::max<int64_t>(candidate.slash * n / larger, 1);
      return p;
    };
    const auto fits = [&](int64_t n) { return share(scaled(n)) <= density; };
    if (!fits(1)) return std::nullopt;
    int64_t most = 1, too_many = grid_.keys() + 1;
    while (too_many - most > 1) {
      const int64_t n = (most + too_many) / 2;
      (fits(n) ? most : too_many) = n;
    }
    return scaled(most);
  }

 private:
  double share(const HeadPattern& p) const {
    const Lines lines = select_lines(sums_, {&p, 1}, options_);
    return listed_share(line_runs(lines, grid_), grid_.start(), grid_.keys());
  }

  const VerticalSlash& options_;
  const LineSums sums_;
  BlockGrid grid_;
};

// The candidates of each head: [candidate][head], absent where one does not fit.
std::vector<std::vector<std::optional<HeadPattern>>> candidates_of_heads(const HeadSearch& s, const Inputs& in) {
  const int64_t heads = in.q.size(1);
  std::vector<std::vector<std::optional<HeadPattern>>> all;
  if (!s.density) {
    for (const HeadPattern& candidate : s.candidates) all.push_back({size_t(heads), candidate});
    return all;
  }
  const LineSums sums = line_sums_of_last(in, s.options.last_queries, kName);
  all.resize(s.candidates.size());
  for (int64_t head = 0; head < heads; ++head) {
    const Fitting fitting(s, in, sums, head);
    for (size_t i = 0; i < all.size(); ++i) all[i].push_back(fitting.fit(s.candidates[i], *s.density));
    const bool any = std::any_of(all.begin(), all.end(), [](const auto& c) { return c.back().has_value(); });
    require(any, "head search: density must leave room for what is always kept, got {} for head {}", *s.density, head);
  }
  return all;
}

// What a candidate is worth to each head, lower is better: [Hq] fp64.
Tensor costs(const HeadSearch& s, const Inputs& in, const Attended& dense, const Attended& attended) {
  if (s.by == HeadSearch::By::output_error) {
    const Tensor error = (attended.out.to(at::kDouble) - dense.out.to(at::kDouble)).abs();
    return error.gt(s.tolerance).sum({0, 2, 3}).to(at::kDouble);
  }
  const Tensor mass =
      ops::attention_sums(in.q, in.k, *dense.lse, attended.plans[0].plan, in.score, {.by = ops::SumBy::row});
  return mass.narrow(2, s.first_row, mass.size(2) - s.first_row).to(at::kDouble).mean({0, 2}).neg();
}

}  // namespace

LayerPatterns search_heads(const HeadSearch& s, const Inputs& in) {
  const at::NoGradGuard no_gradients;
  check_options(s.options);
  require(!s.candidates.empty(), "head search: there must be candidates, got none");
  for (const HeadPattern& c : s.candidates)
    require(c.vertical >= 1 && c.slash >= 1, "head search: candidates must have counts >= 1, got {} and {}", c.vertical,
            c.slash);
  require(!s.density || (*s.density > 0 && *s.density <= 1), "head search: density must be in (0, 1], got {}",
          s.density.value_or(1));
  require(in.q.size(2) > 0 && (s.by != HeadSearch::By::kept_mass || (s.first_row >= 0 && s.first_row < in.q.size(2))),
          "head search: first_row must be a row of the sample, got {} of {}", s.first_row, in.q.size(2));
  const Attended dense = Dense{}.attend(in);
  const int64_t heads = in.q.size(1);
  std::vector<double> best(size_t(heads), INFINITY);
  LayerPatterns patterns;
  for (const auto& candidate : candidates_of_heads(s, in)) {
    std::vector<HeadPattern> pairs;
    for (const auto& pair : candidate) pairs.push_back(pair.value_or(HeadPattern{1, 1}));
    const Tensor cost = costs(s, in, dense, attend_lines(in, pairs, s.options));
    for (int64_t head = 0; head < heads; ++head) {
      const double own = cost[head].item<double>();
      if (!candidate[size_t(head)] || !(own < best[size_t(head)])) continue;
      best[size_t(head)] = own;
      patterns[head] = pairs[size_t(head)];
      patterns[head].score = std::abs(own);
    }
  }
  return patterns;
}

}  // namespace foveate::attention
