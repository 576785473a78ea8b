#include "foveate/ops/select/select.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/select/pool.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;
using test::same;

TEST(Pool, even_cuts_end_with_a_shorter_segment) {
  EXPECT_EQ(even_cuts(10, 4), (std::vector<int64_t>{0, 4, 8, 10}));
  EXPECT_EQ(even_cuts(8, 4), (std::vector<int64_t>{0, 4, 8}));
  EXPECT_EQ(even_cuts(0, 4), (std::vector<int64_t>{0}));
  EXPECT_THROW(even_cuts(3, 0), Error);
}

TEST(Pool, equals_plain_loops_for_ragged_segments) {
  const at::Tensor x = random_tensor({2, 3, 11, 4}, 1);
  const std::vector<int64_t> cuts = {0, 1, 4, 10, 11};
  const at::Tensor mean = pool_segments(x, cuts, Pooling::mean),
                   root = pool_segments(x, cuts, Pooling::mean_times_root), top = pool_segments(x, cuts, Pooling::max);
  for (int64_t c = 0; c < 4; ++c) {
    const int64_t n = cuts[c + 1] - cuts[c];
    const at::Tensor part = x.narrow(2, cuts[c], n);
    EXPECT_TRUE(same(mean.select(2, c), part.mean(2), {1e-6, 1e-6}));
    EXPECT_TRUE(same(root.select(2, c), part.mean(2).mul(std::sqrt(double(n))), {1e-6, 1e-6}));
    EXPECT_TRUE(same(top.select(2, c), part.amax(2), {0, 0}));
  }
  EXPECT_THROW(pool_segments(x, std::vector<int64_t>{0, 4, 4, 11}, Pooling::mean), Error);
  EXPECT_THROW(pool_segments(x, std::vector<int64_t>{0, 4}, Pooling::mean), Error);
}

// The definition, token by token: forced keys, then the best of the rest by (score, index).
std::vector<int> select_by_sorting(const std::vector<float>& scores, const std::vector<int64_t>& cuts,
                                   const Candidates& c, int64_t budget) {
  std::vector<int> chosen, rest;
  for (int64_t key = c.first; key < c.last; ++key) {
    const bool is_forced = key < c.first + c.forced_head || key >= c.last - c.forced_tail;
    (is_forced ? chosen : rest).push_back(int(key));
  }
  const auto score = [&](int key) {
    const float s = scores[size_t(std::upper_bound(cuts.begin(), cuts.end(), key) - cuts.begin() - 1)];
    return std::isnan(s) ? -INFINITY : s;
  };
  std::stable_sort(rest.begin(), rest.end(), [&](int a, int b) { return score(a) > score(b); });
  for (const int key : rest)
    if (std::ssize(chosen) < budget) chosen.push_back(key);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

TEST(Select, equals_sorting_every_token) {
  Random random(3);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int64_t> cuts = {0};
    while (cuts.back() < 40) cuts.push_back(cuts.back() + 1 + int64_t(random.below(7)));
    const int64_t keys = cuts.back(), chunks = std::ssize(cuts) - 1;
    std::vector<float> scores;
    for (int64_t i = 0; i < chunks; ++i)
      scores.push_back(random.below(9) == 0 ? NAN : float(random.below(5)));  // many ties
    const int64_t last = int64_t(random.below(uint64_t(keys + 1))),
                  first = last > 0 ? int64_t(random.below(uint64_t(last))) : 0;
    const Candidates c{first, last, int64_t(random.below(4)), int64_t(random.below(4))};
    const int64_t budget = 6 + int64_t(random.below(20));
    const at::Tensor index =
        select_tokens(at::tensor(scores, at::kFloat).view({1, 1, 1, chunks}), cuts, {&c, 1}, budget);
    std::vector<int> got;
    for (int64_t i = 0; i < index.size(3); ++i)
      if (index[0][0][0][i].item<int>() >= 0) got.push_back(index[0][0][0][i].item<int>());
    EXPECT_EQ(got, select_by_sorting(scores, cuts, c, budget)) << "trial " << trial;
  }
}

TEST(Select, refuses_forced_keys_over_budget) {
  const Candidates c{0, 20, 5, 6};
  const std::vector<int64_t> cuts = {0, 20};
  EXPECT_THROW(select_tokens(at::tensor({1.0f}).view({1, 1, 1, 1}), cuts, {&c, 1}, 10), Error);
  EXPECT_NO_THROW(select_tokens(at::tensor({1.0f}).view({1, 1, 1, 1}), cuts, {&c, 1}, 11));
}

}  // namespace
}  // namespace foveate::ops
