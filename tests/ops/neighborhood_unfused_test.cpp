// Neighborhood attention in two steps against the fused operator, and the gradients of its parts.
#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/autograd.h>

#include "foveate/ops/neighborhood/neighborhood.h"
#include "foveate/ops/neighborhood/unfused.h"
#include "tests/support/attend_problems.h"
#include "tests/support/messages.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class UnfusedAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, UnfusedAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

const std::vector<Neighborhood> kCases = {
    {{{13, 5, 2, 2, true}}}, {{{7, 3, 1, 2}, {9, 4, 3}}}, {{{3, 2}, {5, 3, 1, 1, true}, {6, 4}}}};

TEST_P(UnfusedAtLevel, equals_the_fused_operator_with_gradients) {
  for (const Neighborhood& n : kCases)
    for (const auto& [type, bound] : {std::pair(at::kDouble, kDoubleBound), std::pair(at::kFloat, kSingleBound)}) {
      const int64_t places = n.positions();
      std::vector<std::vector<Tensor>> grads;
      std::vector<Tensor> outs;
      for (const bool fused : {true, false}) {
        const Tensor q = random_tensor({2, 4, places, 8}, 1, type).requires_grad_(),
                     k = random_tensor({2, 2, places, 8}, 2, type).requires_grad_(),
                     v = random_tensor({2, 2, places, 5}, 3, type).requires_grad_();
        const Tensor out = fused ? attend_neighborhood(q, k, v, n, {.scale = 0.4}).out
                                 : neighborhood_av(at::softmax(neighborhood_qk(q, k, n) * 0.4, -1), v, n);
        (out * random_tensor({2, 4, places, 5}, 4, type)).sum().backward();
        outs.push_back(out), grads.push_back({q.grad(), k.grad(), v.grad()});
      }
      EXPECT_TRUE(same(outs[1], outs[0], bound));
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same(grads[1][i], grads[0][i], bound)) << i;
    }
}

TEST(Unfused, hidden_keys_have_minus_infinity_and_no_gradient) {
  const Neighborhood n{{{6, 3, 1, 1, true}}};
  const Tensor q = random_tensor({1, 1, 6, 4}, 1).requires_grad_(), k = random_tensor({1, 1, 6, 4}, 2).requires_grad_();
  const Tensor scores = neighborhood_qk(q, k, n);
  EXPECT_EQ(scores.detach().isinf().sum().item<int64_t>(), 3);  // rows of one and of two keys
  scores.sum().backward();
  EXPECT_TRUE(at::isfinite(q.grad()).all().item<bool>() && at::isfinite(k.grad()).all().item<bool>());
}

// <in(w, q), k> = <w, qk(q, k)> = <av(w, k), q>: the three are each other's gradients.
TEST(Unfused, the_three_parts_are_adjoint_and_differentiable_twice) {
  const Neighborhood n{{{5, 3, 1, 1}, {6, 3, 2, 2}}};
  const Tensor q = random_tensor({1, 4, 30, 3}, 1, at::kDouble).requires_grad_(),
               k = random_tensor({1, 2, 30, 3}, 2, at::kDouble).requires_grad_(),
               w = random_tensor({1, 4, 30, 9}, 3, at::kDouble).requires_grad_();
  const Tensor a = (neighborhood_in(w, q, 2, n) * k).sum(), b = (w * neighborhood_qk(q, k, n)).sum(),
               c = (neighborhood_av(w, k, n) * q).sum();
  EXPECT_TRUE(same(a, b, {1e-10, 1e-10}));
  EXPECT_TRUE(same(c, b, {1e-10, 1e-10}));
  const auto gradients = [&](const Tensor& x) { return torch::autograd::grad({x}, {q, k, w}, {}, true, true); };
  const auto of_a = gradients(a), of_b = gradients(b), of_c = gradients(c);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same(of_a[i], of_b[i], {1e-10, 1e-10})) << i;
    EXPECT_TRUE(same(of_c[i], of_b[i], {1e-10, 1e-10})) << i;
  }
  const Tensor second = torch::autograd::grad({of_a[0].square().sum()}, {w})[0],
               same_second = torch::autograd::grad({of_b[0].square().sum()}, {w})[0];
  EXPECT_TRUE(same(second, same_second, {1e-10, 1e-10}));
  EXPECT_GT(second.abs().sum().item<double>(), 0.1);
}

TEST(Unfused, says_what_does_not_fit) {
  const Neighborhood n{{{6, 3}}};
  const Tensor q = random_tensor({1, 2, 6, 4}, 1);
  EXPECT_EQ(message_of([&] {
              neighborhood_qk(q, random_tensor({1, 2, 5, 4}, 2), n);
            }),
            "neighborhood_qk: tensors must share a dtype, the batch and the 6 places of the grid, heads be multiples, "
            "got Float [1, 2, 6, 4] and Float [1, 2, 5, 4]");
  EXPECT_EQ(message_of([&] { neighborhood_av(q, q, n); }),
            "neighborhood_av: tensors must share a dtype, the batch and the 6 places of the grid, heads be multiples, "
            "got Float [1, 2, 6, 4] and Float [1, 2, 6, 4]");
}

}  // namespace
}  // namespace foveate::ops
