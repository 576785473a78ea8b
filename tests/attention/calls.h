// Calls of mechanisms that several tests make, and what all of them owe: gradients, the same bits on any threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "foveate/attention/mechanism.h"
#include "tests/support/compare.h"

namespace foveate::test {

struct CallShape {
  int64_t batch = 2, heads = 4, kv_heads = 2, dim = 8, value_dim = 5;
  at::ScalarType type = at::kDouble;
  uint64_t seed = 1;
};

inline attention::Inputs random_call(int64_t queries, int64_t keys, const CallShape& s = {}) {
  attention::Inputs in;
  in.q = random_tensor({s.batch, s.heads, queries, s.dim}, s.seed, s.type);
  in.k = random_tensor({s.batch, s.kv_heads, keys, s.dim}, s.seed + 1, s.type);
  in.v = random_tensor({s.batch, s.kv_heads, keys, s.value_dim}, s.seed + 2, s.type);
  return in;
}

// Rows [first, first + count) as a state takes them: of queries, keys, values and hidden states alike.
inline attention::Inputs rows_of(const attention::Inputs& in, int64_t first, int64_t count) {
  attention::Inputs part = in;
  for (at::Tensor* t : {&part.q, &part.k, &part.v}) *t = t->narrow(2, first, count);
  if (in.hidden) part.hidden = in.hidden->narrow(1, first, count);
  return part;
}

// Whether a causal rule with a window, sinks, row_start [1, 1, Lq] and documents [1, ..] shows query i key j, written
// out.
inline bool rule_shows(const attention::Inputs& in, int64_t i, int64_t j) {
  const int64_t p = in.k.size(2) - in.q.size(2) + i, left = in.rule.window_left.value_or(1 << 30);
  if (in.rule.row_start && j < (*in.rule.row_start)[0][0][i].item<int64_t>()) return false;
  if (in.rule.key_documents && !(*in.rule.query_documents)[0][i].equal((*in.rule.key_documents)[0][j])) return false;
  return j <= p && (p - left <= j || j < in.rule.sinks);
}

// Gradients of loss() against finite differences at up to `places` evenly spread elements of each leaf (fp64).
inline void expect_gradients(const std::function<at::Tensor()>& loss, const std::vector<at::Tensor>& leaves,
                             double tolerance, int64_t places) {
  for (const at::Tensor& leaf : leaves) {
    leaf.requires_grad_();
    leaf.mutable_grad() = at::Tensor();
  }
  loss().backward();
  const at::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  for (size_t n = 0; n < leaves.size(); ++n) {
    ASSERT_TRUE(leaves[n].grad().defined()) << "leaf " << n;
    const at::Tensor flat = leaves[n].view({-1}), gradient = leaves[n].grad().reshape({-1});
    const int64_t step = std::max<int64_t>(flat.numel() / places, 1);
    for (int64_t i = 0; i < flat.numel(); i += step) {
      const double value = flat[i].item<double>();
      flat[i].fill_(value + kStep);
      const double up = loss().item<double>();
      flat[i].fill_(value - kStep);
      const double down = loss().item<double>();
      flat[i].fill_(value);
      ASSERT_NEAR(gradient[i].item<double>(), (up - down) / (2 * kStep), tolerance) << "leaf " << n << " place " << i;
    }
  }
}

// run() gives the same bits on one thread and on two.
inline void expect_same_bits_on_threads(const std::function<at::Tensor()>& run) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor want = run();
  at::set_num_threads(2);
  const at::Tensor got = run();
  at::set_num_threads(before);
  EXPECT_TRUE(got.equal(want));
}

}  // namespace foveate::test
