// Sums over visible values against plain loops, for every plan.
#include <ATen/TensorOperators.h>

#include "foveate/ops/sums/visible.h"
#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

void expect_loops(const Problem& p, const Shape& s) {
  const Tensor v = p.v.to(at::kDouble).requires_grad_();
  const VisibleSum got = visible_sum(v, p.plan, s.heads, s.queries);
  const Array values = to_array(v),
              d = to_array(random_tensor({s.batch, s.heads, s.queries, s.value_dim}, 9, at::kDouble));
  (got.sum * to_tensor(d)).sum().backward();
  Array sum(s.batch, s.heads, s.queries, s.value_dim), count(s.batch, s.heads, s.queries, 1);
  Array d_v(s.batch, s.kv_heads, s.keys, s.value_dim);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.queries; ++i)
        for (int64_t j = 0; j < s.keys; ++j) {
          const int times = p.visible(b, h, i, j);
          count.at(b, h, i, 0) += times;
          for (int64_t e = 0; e < s.value_dim; ++e) {
            const int64_t head = h * s.kv_heads / s.heads;
            sum.at(b, h, i, e) += times * values.at(b, head, j, e);
            d_v.at(b, head, j, e) += times * d.at(b, h, i, e);
          }
        }
  EXPECT_TRUE(same(got.sum, to_tensor(sum), {1e-10, 1e-10}));
  EXPECT_TRUE(same(got.count, to_tensor(count).squeeze(3), {0, 0}));
  EXPECT_TRUE(same(v.grad(), to_tensor(d_v), {1e-10, 1e-10}));
  const VisibleSum single = visible_sum(p.v, p.plan, s.heads, s.queries);
  EXPECT_TRUE(same(single.sum, to_tensor(sum), {1e-5, 1e-4}));
}

TEST(VisibleSum, equals_plain_loops_for_every_plan) {
  const Shape s;
  for (const Rule& rule : rules(s)) expect_loops(rule_problem(s, rule), s);
  expect_loops(rule_problem(s, {.query_start = 40}), s);
  expect_loops(rule_problem(s, {.query_start = -20}), s);
  expect_loops(rule_problem(s, {.window_right = 3}), s);
  for (const Problem& p : {block_problem(s, 2, 4, 8, {}), token_problem(s, 1, 4, {}), run_problem(s, 4, 5, {})})
    expect_loops(p, s);
}

TEST(VisibleSum, an_invisible_nan_reaches_no_row) {
  const Shape s;
  for (const Rule& rule : {Rule{}, Rule{.window_left = 3}}) {
    Problem p = rule_problem(s, rule);
    p.v.select(2, 20).fill_(NAN);  // position 20 is query 4's
    const Tensor sum = visible_sum(p.v, p.plan, s.heads, s.queries).sum;
    EXPECT_TRUE(sum.narrow(2, 0, 4).isfinite().all().item<bool>());
    EXPECT_TRUE(sum.select(2, 4).isnan().all().item<bool>());
    if (rule.window_left) {
      EXPECT_TRUE(sum.narrow(2, 8, 5).isfinite().all().item<bool>());
    }
  }
}

}  // namespace
}  // namespace foveate::ops
