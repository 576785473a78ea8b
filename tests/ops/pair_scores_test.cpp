// Scores of single pairs against plain loops in double, at every level.
#include "foveate/ops/pairs/pair_scores.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class PairsAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, PairsAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

Tensor lists(int64_t heads, int64_t queries, int64_t keys) {  // some empty, some behind the keys, some twice
  Random random(5);
  const Tensor t = at::zeros({2, heads, queries, 6}, at::kInt);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.mutable_data_ptr<int32_t>()[i] = int32_t(random.below(uint64_t(keys + 3))) - 2;
  return t;
}

void expect_loops(const Tensor& q, const Tensor& k, const Tensor& index, Bound bound) {
  const Tensor x = q.detach().requires_grad_(), y = k.detach().requires_grad_();
  const Tensor got = pair_scores(x, y, index, 0.3);
  const Tensor d = random_tensor(got.sizes(), 8, got.scalar_type());
  got.masked_fill(got.detach().isinf(), 0).mul(d).sum().backward();
  const Array a = to_array(q), b = to_array(k), weights = to_array(d), ids = to_array(index);
  Array want(got.size(0), got.size(1), got.size(2), got.size(3)), d_q = a, d_k = b;
  std::fill(d_q.data.begin(), d_q.data.end(), 0), std::fill(d_k.data.begin(), d_k.data.end(), 0);
  for (int64_t n = 0; n < q.size(0); ++n)
    for (int64_t h = 0; h < q.size(1); ++h)
      for (int64_t i = 0; i < q.size(2); ++i)
        for (int64_t c = 0; c < index.size(3); ++c) {
          const int64_t list = index.size(1) == 1 ? 0 : h * index.size(1) / q.size(1), head = h * k.size(1) / q.size(1);
          const int64_t j = int64_t(ids.at(index.size(0) == 1 ? 0 : n, list, i, c));
          want.at(n, h, i, c) = -INFINITY;
          if (j < 0 || j >= k.size(2)) continue;
          double s = 0;
          for (int64_t e = 0; e < q.size(3); ++e) {
            s += a.at(n, h, i, e) * b.at(n, head, j, e);
            d_q.at(n, h, i, e) += 0.3 * weights.at(n, h, i, c) * b.at(n, head, j, e);
            d_k.at(n, head, j, e) += 0.3 * weights.at(n, h, i, c) * a.at(n, h, i, e);
          }
          want.at(n, h, i, c) = 0.3 * s;
        }
  EXPECT_TRUE(same(got, to_tensor(want), bound));
  EXPECT_TRUE(same(x.grad(), to_tensor(d_q), bound)) << "dq";
  EXPECT_TRUE(same(y.grad(), to_tensor(d_k), bound)) << "dk";
}

TEST_P(PairsAtLevel, equal_plain_loops_with_gradients) {
  for (const int64_t dim : {1, 8, 19})
    for (const int64_t heads : {1, 2, 4}) {
      const Tensor q = random_tensor({2, 4, 13, dim}, 1), k = random_tensor({2, 17, 2, dim}, 2).transpose(1, 2);
      const Tensor index = lists(heads, 13, 17);
      expect_loops(q.to(at::kDouble), k.to(at::kDouble), index, {1e-12, 1e-12});
      expect_loops(q, k, index, {1e-5, 1e-5});
      expect_loops(q, k, index.narrow(0, 0, 1).to(at::kLong), {1e-5, 1e-5});
      expect_loops(q.to(at::kBFloat16), k.to(at::kBFloat16), index, {2e-2, 8e-3});
    }
}

TEST_P(PairsAtLevel, gradients_have_the_same_bits_on_any_number_of_threads) {
  const int before = at::get_num_threads();
  std::vector<Tensor> results;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const Tensor q = random_tensor({2, 4, 300, 8}, 1).requires_grad_(),
                 k = random_tensor({2, 1, 50, 8}, 2).requires_grad_();
    pair_scores(q, k, lists(1, 300, 48), 1).clamp_min(-1e30).square().sum().backward();
    results.push_back(k.grad().clone());
  }
  at::set_num_threads(before);
  EXPECT_TRUE(results[0].equal(results[1]));
}

TEST_P(PairsAtLevel, a_second_derivative_is_refused_where_the_kernels_run) {
  const Tensor q = random_tensor({1, 1, 3, 4}, 1).requires_grad_(), k = random_tensor({1, 1, 5, 4}, 2);
  const Tensor scores = pair_scores(q, k, at::zeros({1, 1, 3, 2}, at::kInt), 1);
  const auto first = torch::autograd::grad({scores.square().sum()}, {q}, {}, std::nullopt, /*create_graph=*/true);
  const auto second = [&] { first[0].square().sum().backward(); };
  if (GetParam() == "definition")
    EXPECT_NO_THROW(second());
  else
    EXPECT_ANY_THROW(second());
}

TEST_P(PairsAtLevel, empty_axes_and_wrong_shapes) {
  const Tensor q = random_tensor({2, 4, 13, 8}, 1), k = random_tensor({2, 2, 17, 8}, 2), index = lists(1, 13, 17);
  EXPECT_TRUE(pair_scores(q, k.narrow(2, 0, 0), index, 1).eq(-INFINITY).all().item<bool>());
  EXPECT_EQ(pair_scores(q, k, index.narrow(3, 0, 0), 1).numel(), 0);
  EXPECT_EQ(pair_scores(q.narrow(2, 0, 0), k, index.narrow(2, 0, 0), 1).numel(), 0);
  EXPECT_ANY_THROW(pair_scores(q, k.to(at::kDouble), index, 1));
  EXPECT_ANY_THROW(pair_scores(q, k, index.narrow(2, 0, 5), 1));
  EXPECT_ANY_THROW(pair_scores(q, k, index.to(at::kFloat), 1));
}

}  // namespace
}  // namespace foveate::ops
