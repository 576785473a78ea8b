// search_stripes against a loop over all candidates.
#include "foveate/ops/select/stripes.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "tests/support/attend_problems.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;

// Small whole numbers: every order of summation is exact, and there are many ties.
at::Tensor whole(at::IntArrayRef shape, uint64_t seed, at::ScalarType type) {
  return (random_tensor(shape, seed, at::kDouble) * 1.5).round().to(type);
}

at::Tensor loops(const StripeProblem& p, int64_t count) {
  const test::Array q = test::to_array(p.q), k = test::to_array(p.k);
  const at::Tensor keys = at::full({p.q.size(0), p.q.size(1), p.q.size(2), count}, -1, at::kLong);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        std::vector<std::pair<double, int64_t>> order;
        const int64_t first_row = p.first.size(0) == 1 ? 0 : b, end_row = p.end.size(0) == 1 ? 0 : b;
        for (const int64_t distance : p.distances) {
          const int64_t j = p.query_start + i - distance;
          if (j < p.first[first_row][i].item<int64_t>() || j >= p.end[end_row][i].item<int64_t>()) continue;
          double score = 0;
          for (int64_t d = 0; d < q.shape[3]; ++d)
            score += q.at(b, h, i, d) * k.at(b, h / (q.shape[1] / k.shape[1]), j, d);
          if (!std::isnan(score)) order.emplace_back(-score, j);
        }
        std::sort(order.begin(), order.end());
        for (int64_t r = 0; r < std::min<int64_t>(count, std::ssize(order)); ++r)
          keys[b][h][i][r] = order[size_t(r)].second;
      }
  return keys;
}

class Stripes : public test::AttendAtLevel {};

TEST_P(Stripes, finds_what_a_loop_finds) {
  const std::vector<int64_t> distances = {0, 3, 8, 15, 24, 35, 48, 63, 80};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble})
    for (const int64_t queries : {1, 70, 150}) {
      at::Tensor k = whole({2, 2, 150, 9}, 2, type);
      k[0][1][40][3] = NAN;
      const at::Tensor position = at::arange(150 - queries, 150, at::kLong).view({1, -1});
      const at::Tensor first = at::tensor({0, 20}, at::kLong).view({2, 1}).expand({2, queries}).contiguous();
      const StripeProblem p{whole({2, 4, queries, 9}, 1, type), k, distances, 150 - queries, first, position + 1};
      for (const int64_t count : {1, 3, 12})
        EXPECT_TRUE(search_stripes(p, count).equal(loops(p, count))) << c10::toString(type) << " " << queries;
    }
}

TEST_P(Stripes, refuses_what_does_not_fit) {
  const at::Tensor x = random_tensor({1, 2, 5, 4}, 1), rows = at::zeros({1, 5}, at::kLong);
  const std::vector<int64_t> down = {3, 1}, up = {1, 3};
  EXPECT_THROW(search_stripes({x, x, down, 0, rows, rows}, 1), Error);
  EXPECT_THROW(search_stripes({x, x, up, 0, rows, rows}, 0), Error);
  EXPECT_THROW(search_stripes({x, x.to(at::kDouble), up, 0, rows, rows}, 1), Error);
  EXPECT_THROW(search_stripes({x, x, up, 0, rows.narrow(1, 0, 4), rows}, 1), Error);
  EXPECT_TRUE(search_stripes({x, x, up, 0, rows, rows}, 2).eq(-1).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Levels, Stripes, testing::ValuesIn(test::all_levels()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace foveate::ops
