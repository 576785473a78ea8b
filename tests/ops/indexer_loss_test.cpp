// The indexer's loss against plain loops in double, its golden numbers, and its gradient against finite differences.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>
#include <set>

#include "foveate/base/error.h"
#include "foveate/ops/index/training.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

struct Problem {
  IndexerRows rows;
  IndexerTarget target;
};

Problem make_problem(int64_t queries, int64_t keys) {
  Problem p{
      {random_tensor({queries, 3, 5}, 1, at::kDouble), random_tensor({keys, 5}, 2, at::kDouble),
       random_tensor({queries, 3}, 3, at::kDouble), at::zeros({queries}, at::kLong), at::zeros({queries}, at::kLong)},
      {random_tensor({4, queries, 6}, 4, at::kDouble), random_tensor({2, keys, 6}, 5, at::kDouble), 0.7, 2.0}};
  for (int64_t t = 0; t < queries; ++t)
    p.rows.start[t].fill_(t % 3), p.rows.end[t].fill_(t % 3 + (t == 1 ? 0 : keys - 3));
  return p;
}

// Mean over rows of KL(p || softmax(I)), both over `seen` of a row.
double loss_by_loops(const Problem& p, const std::vector<std::set<int64_t>>& seen) {
  const Array qi = to_array(p.rows.q), ki = to_array(p.rows.k.unsqueeze(0)), w = to_array(p.rows.weights.unsqueeze(0));
  const Array q = to_array(p.target.q), k = to_array(p.target.k);
  double total = 0;
  int64_t rows = 0;
  for (int64_t t = 0; t < std::ssize(seen); ++t) {
    if (seen[size_t(t)].empty()) continue;
    ++rows;
    std::map<int64_t, double> logit, mass;
    for (const int64_t s : seen[size_t(t)])
      for (int64_t j = 0; j < qi.shape[1]; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < qi.shape[2]; ++d) dot += qi.at(t, j, d, 0) * ki.at(0, s, d, 0);
        logit[s] += w.at(0, t, j, 0) * std::max(dot, 0.0);
      }
    for (int64_t h = 0; h < q.shape[0]; ++h) {
      std::map<int64_t, double> e;
      double sum = 0;
      for (const int64_t s : seen[size_t(t)]) {
        double dot = 0;
        for (int64_t d = 0; d < q.shape[2]; ++d) dot += q.at(h, t, d, 0) * k.at(h * k.shape[0] / q.shape[0], s, d, 0);
        sum += e[s] = std::exp(2 * std::tanh(0.7 * dot / 2));
      }
      for (const int64_t s : seen[size_t(t)]) mass[s] += e[s] / sum / double(q.shape[0]);
    }
    double sum = 0;
    for (const int64_t s : seen[size_t(t)]) sum += std::exp(logit[s]);
    for (const int64_t s : seen[size_t(t)])
      total += mass[s] * (std::log(mass[s]) - std::max(logit[s] - std::log(sum), -100.0));
  }
  return total / double(rows);
}

TEST(IndexerLoss, equals_plain_loops_over_ranges_and_over_lists) {
  const Problem p = make_problem(9, 14);
  std::vector<std::set<int64_t>> seen(9), chosen(9);
  Tensor index = at::full({9, 5}, -1, at::kInt);
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t s = p.rows.start[t].item<int64_t>(); s < p.rows.end[t].item<int64_t>(); ++s) {
      seen[size_t(t)].insert(s);
      if ((s + t) % 3 == 0 && chosen[size_t(t)].size() < 5) {
        index[t][int64_t(chosen[size_t(t)].size())].fill_(s);
        chosen[size_t(t)].insert(s);
      }
    }
  EXPECT_NEAR(indexer_loss(p.rows, p.target).item<double>(), loss_by_loops(p, seen), 1e-12);
  EXPECT_NEAR(indexer_loss(p.rows, p.target, index).item<double>(), loss_by_loops(p, chosen), 1e-12);
}

TEST(IndexerLoss, the_golden_row) {  // one head of one dim: I = w max(q k, 0) takes any numbers
  Tensor weights = at::ones({1, 2}, at::kDouble);
  weights[0][1].fill_(-1);
  const Tensor q = at::tensor({1., -1.}, at::kDouble).view({1, 2, 1}).requires_grad_();
  const Tensor k = at::tensor({.2, 1., -.5}, at::kDouble).view({3, 1}).requires_grad_();
  const Tensor zero = at::zeros({1}, at::kLong);
  // p = [.5, .3, .2]: one head, one dim, logits log p.
  const Tensor target = at::tensor({.5, .3, .2}, at::kDouble).log().view({1, 3, 1});
  const Tensor loss = indexer_loss({q, k, weights, zero, zero + 3}, {at::ones({1, 1, 1}, at::kDouble), target, 1, {}});
  EXPECT_NEAR(loss.item<double>(), .184642, 1e-6);
  loss.backward();
  EXPECT_TRUE(same(k.grad().view({3}), at::tensor({-.231336, .297922, -.066586}, at::kDouble), {1e-6, 0}));
  const Tensor logits = differentiable_index_logits({q, k, weights, zero, zero + 3});
  EXPECT_TRUE(same(logits.view({3}), at::tensor({.2, 1., -.5}, at::kDouble), {1e-15, 0}));
}

TEST(IndexerLoss, gradients_are_finite_differences) {
  Problem p = make_problem(7, 11);
  const Tensor index = random_tensor({7, 6}, 9).mul(5).round().abs().to(at::kInt);
  for (const auto& list : {std::optional<Tensor>(), std::optional(index)}) {
    std::vector<Tensor*> inputs = {&p.rows.q, &p.rows.k, &p.rows.weights};
    for (Tensor* t : inputs) *t = t->detach().requires_grad_();
    (3 * indexer_loss(p.rows, p.target, list)).backward();
    const at::NoGradGuard no_grad;
    for (Tensor* t : inputs)
      for (int64_t i = 0; i < t->numel(); ++i) {
        constexpr double kStep = 1e-6;
        const Tensor at = t->view({-1})[i];
        const auto moved = [&](double by) {
          at.add_(by);
          const double loss = 3 * indexer_loss(p.rows, p.target, list).item<double>();
          at.sub_(by);
          return loss;
        };
        EXPECT_NEAR(t->grad().view({-1})[i].item<double>(), (moved(kStep) - moved(-kStep)) / (2 * kStep), 1e-7);
      }
  }
}

TEST(IndexerLoss, its_gradient_equals_autograd_through_the_logits_also_where_logs_are_cut) {
  Problem p = make_problem(6, 10);
  p.rows.weights.mul_(60);  // some log probabilities below -100
  p.target.soft_cap.reset();
  const Tensor logits = differentiable_index_logits({p.rows.q.requires_grad_(), p.rows.k.requires_grad_(),
                                                     p.rows.weights.requires_grad_(), p.rows.start, p.rows.end});
  const Tensor hidden = logits.detach().isinf();
  const Tensor s = (p.target.q.unflatten(0, {2, 2}).matmul(p.target.k.transpose(1, 2).unsqueeze(1)) * 0.7)
                       .masked_fill(hidden, -INFINITY)
                       .softmax(-1)
                       .nan_to_num()
                       .sum({0, 1})
                       .div(4);
  const Tensor own = logits.masked_fill(hidden, -1e30).log_softmax(1).clamp_min(-100);
  EXPECT_TRUE(own.eq(-100).logical_and(hidden.logical_not()).any().item<bool>());
  const Tensor want = (s * (s.clamp_min(1e-300).log() - own)).masked_fill(hidden, 0).sum() / 5;
  const auto expected = torch::autograd::grad({want}, {p.rows.q, p.rows.k, p.rows.weights});
  const Tensor loss = indexer_loss(p.rows, p.target);
  const auto got = torch::autograd::grad({loss}, {p.rows.q, p.rows.k, p.rows.weights});
  EXPECT_NEAR(loss.item<double>(), want.item<double>(), 1e-9 * want.item<double>());
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same(got[i], expected[i], {1e-10, 1e-9})) << i;
}

TEST(IndexerLoss, refuses_what_does_not_fit) {
  const Problem p = make_problem(4, 6);
  Problem other = p;
  other.rows.k = p.rows.k.to(at::kFloat);
  EXPECT_THROW(indexer_loss(other.rows, p.target), Error);
  other = p;
  other.target.k = p.target.k.narrow(1, 0, 5);
  EXPECT_THROW(indexer_loss(p.rows, other.target), Error);
  EXPECT_THROW(indexer_loss(p.rows, p.target, at::zeros({3, 2}, at::kInt)), Error);
  EXPECT_THROW(indexer_loss(p.rows, p.target, at::zeros({4, 2})), Error);
}

}  // namespace
}  // namespace foveate::ops
