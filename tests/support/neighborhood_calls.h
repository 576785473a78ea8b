// A call of neighborhood attention with random inputs, and its check against plain loops.
#pragma once

#include <ATen/TensorOperators.h>

#include "foveate/ops/neighborhood/neighborhood.h"
#include "tests/support/attend_problems.h"
#include "tests/support/neighborhood_oracle.h"

namespace foveate::test {

using at::Tensor;
using ops::attend_neighborhood;
using ops::Attended;
using ops::NeighborhoodScore;

inline Neighborhood neighborhood_of(const std::vector<GridAxis>& axes, bool clamps = true) {
  Neighborhood n;
  for (const GridAxis& a : axes) n.axes.push_back({a.length, a.kernel, a.stride, a.dilation, a.is_causal, clamps});
  return n;
}

struct Sizes {
  int64_t batch = 2, heads = 2, kv_heads = 1, dim = 8, value_dim = 8, extra = 0;
  bool has_bias = false, heads_last = false, clamps = true;
};

struct Call {
  std::vector<GridAxis> axes;
  Tensor q, k, v, d_out, d_lse;
  NeighborhoodScore score;
  bool clamps;

  Call(std::vector<GridAxis> grid, const Sizes& s, at::ScalarType type) : axes(std::move(grid)), clamps(s.clamps) {
    int64_t places = 1, table = 1;
    std::vector<int64_t> bias = {s.heads};
    for (const GridAxis& a : axes) places *= a.length, table *= 2 * a.kernel - 1, bias.push_back(2 * a.kernel - 1);
    const auto rows = [&](int64_t heads, int64_t dim, uint64_t seed) {
      const Tensor t = s.heads_last ? random_tensor({s.batch, places, heads, dim}, seed).transpose(1, 2)
                                    : random_tensor({s.batch, heads, places, dim}, seed);
      return t.to(type);
    };
    q = rows(s.heads, s.dim, 1), k = rows(s.kv_heads, s.dim, 2), v = rows(s.kv_heads, s.value_dim, 3);
    d_out = rows(s.heads, s.value_dim, 4), d_lse = random_tensor({s.batch, s.heads, places}, 5, lse());
    score.scale = 0.4;
    if (s.has_bias) score.bias = random_tensor(bias, 6, lse());
    if (s.extra == 0) return;
    score.extra_keys = random_tensor({s.batch, s.kv_heads, s.extra, s.dim}, 7, type);
    score.extra_values = random_tensor({s.batch, s.kv_heads, s.extra, s.value_dim}, 8, type);
  }
  at::ScalarType lse() const { return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  Attended run() const { return attend_neighborhood(q, k, v, neighborhood_of(axes, clamps), score); }
};

inline GridAnswer answer_of(const Call& c) {
  GridProblem p{c.axes, to_array(c.q), to_array(c.k), to_array(c.v), *c.score.scale};
  p.clamps = c.clamps;
  if (c.score.bias) p.bias = to_array(c.score.bias->reshape({1, 1, c.q.size(1), -1}));
  if (c.score.extra_keys)
    p.extra_keys = to_array(*c.score.extra_keys), p.extra_values = to_array(*c.score.extra_values);
  return answer(p, to_array(c.d_out), to_array(c.d_lse));
}

// Forward and all gradients, from out and lse.
inline void expect_oracle(const std::vector<GridAxis>& axes, const Sizes& sizes, at::ScalarType type, Bound bound) {
  Call c(axes, sizes, type);
  const GridAnswer want = answer_of(c);
  std::vector<Tensor*> inputs = {&c.q, &c.k, &c.v};
  if (c.score.bias) inputs.push_back(&*c.score.bias);
  if (c.score.extra_keys) inputs.push_back(&*c.score.extra_keys), inputs.push_back(&*c.score.extra_values);
  for (Tensor* t : inputs) t->requires_grad_();
  const Attended got = c.run();
  EXPECT_EQ(got.out.scalar_type(), type);
  EXPECT_EQ(got.lse.scalar_type(), c.lse());
  ((got.out * c.d_out).to(c.lse()).sum() + (got.lse * c.d_lse).sum()).backward();
  EXPECT_TRUE(same(got.out, to_tensor(want.out), bound)) << "out";
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), bound)) << "lse";
  EXPECT_TRUE(same(c.q.grad(), to_tensor(want.d_q), bound)) << "dq";
  EXPECT_TRUE(same(c.k.grad(), to_tensor(want.d_k), bound)) << "dk";
  EXPECT_TRUE(same(c.v.grad(), to_tensor(want.d_v), bound)) << "dv";
  if (c.score.bias) {
    const Tensor got_bias = c.score.bias->grad().reshape({1, 1, c.q.size(1), -1});
    EXPECT_TRUE(same(got_bias, to_tensor(want.d_bias), {8 * bound.atol, bound.rtol})) << "d_bias";  // over all queries
  }
  if (!c.score.extra_keys) return;
  const Bound sums{4 * bound.atol, bound.rtol};  // over all queries
  EXPECT_TRUE(same(c.score.extra_keys->grad(), to_tensor(want.d_extra_keys), sums)) << "d_extra_keys";
  EXPECT_TRUE(same(c.score.extra_values->grad(), to_tensor(want.d_extra_values), sums)) << "d_extra_values";
}

constexpr Bound kHalfBound{2e-2, 2e-2};  // bf16: 8 bits, on sums of a few numbers of size 1

}  // namespace foveate::test
