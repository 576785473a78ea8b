// attend against plain loops in double, over every term of the score, forward and backward.
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include "foveate/ops/attend/attend.h"
#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

TEST_P(AttendAtLevel, every_score_term_equals_the_oracle) {
  const Shape shape;
  for (const std::vector<int64_t>& bias :
       std::vector<std::vector<int64_t>>{{2, 4, 13, 29}, {1, 4, 1, 29}, {2, 1, 13, 1}, {1, 1, 1, 1}, {1, 1, 13, 29}}) {
    for (Problem p : {rule_problem(shape, {.window_left = 7, .sinks = 1}), block_problem(shape, 1, 4, 8, {}),
                      token_problem(shape, 2, 4, {})}) {
      p.score = {.scale = 0.37, .soft_cap = 1.5, .bias = random_tensor(bias, 5), .sink = random_tensor({4}, 6)};
      expect_oracle_in_both(p);
    }
  }
}

TEST_P(AttendAtLevel, slopes_relative_logits_leaky_and_dropout_equal_the_oracle) {
  const Shape shape;
  for (Problem p : {rule_problem(shape, {.window_left = 7, .sinks = 1}), rule_problem(shape, {.query_start = 3}),
                    block_problem(shape, 1, 4, 8, {}), token_problem(shape, 2, 4, {})}) {
    std::vector<Score> scores(6);
    scores[0].slopes = random_tensor({4}, 6);
    scores[1].relative = relative_term(shape, {2, 4, 13});
    scores[2].relative = relative_term(shape, {1, 4, 1});
    scores[3].leaky = 0.2;
    scores[4].dropout = 0.3, scores[4].dropout_seed = at::scalar_tensor(11, at::kLong);
    scores[5] = {.scale = 0.6,
                 .soft_cap = 2.0,
                 .bias = random_tensor({1, 4, 13, 1}, 5),
                 .sink = random_tensor({4}, 6),
                 .slopes = random_tensor({4}, 8),
                 .relative = relative_term(shape, {2, 1, 13}),
                 .leaky = 0.1,
                 .dropout = 0.5,
                 .dropout_seed = at::full({1}, -3, at::kLong)};
    for (const Score& score : scores) {
      p.score = score;
      expect_oracle_in_both(p);
    }
  }
}

TEST_P(AttendAtLevel, score_terms_join_over_tiles_strips_and_slabs) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 230, .keys = 701, .dim = 4, .value_dim = 3};
  for (const std::vector<int64_t>& bias :
       std::vector<std::vector<int64_t>>{{1, 2, 230, 1}, {1, 2, 1, 701}, {1, 1, 230, 701}, {1, 1, 1, 701}})
    for (Problem p : {rule_problem(shape, {}), token_problem(shape, 1, 16, {})}) {
      p.score = {.bias = random_tensor(bias, 5),
                 .slopes = random_tensor({2}, 8).mul(0.01),
                 .relative = relative_term(shape, {1, 2, 230}),
                 .leaky = 0.3,
                 .dropout = 0.25};
      expect_oracle(p, at::kDouble, {1e-11, 1e-11});
      expect_oracle(p, at::kFloat, {2e-4, 2e-4});
    }
}

TEST_P(AttendAtLevel, dropout_takes_its_share_and_another_seed_takes_others) {
  const Shape shape{.batch = 1, .heads = 1, .kv_heads = 1, .queries = 200, .keys = 300, .dim = 4, .value_dim = 1};
  Problem p = rule_problem(shape, Rule::full());
  p.q = at::zeros(p.q.sizes()), p.v = at::ones(p.v.sizes());
  const auto run = [&](double dropout, int64_t seed) {
    return attend(p.q, p.k, p.v, p.plan, {.dropout = dropout, .dropout_seed = at::scalar_tensor(seed, at::kLong)}).out;
  };
  const Tensor first = run(0.2, 1);
  EXPECT_NEAR(first.mean().item<double>(), 1, 5 * std::sqrt(0.25 / (200 * 300)));
  EXPECT_NEAR(first.var().item<double>() * 300, 0.25, 0.1);  // of independent draws: p / (1 - p)
  EXPECT_TRUE(first.equal(run(0.2, 1)));
  EXPECT_FALSE(first.equal(run(0.2, 2)));
  EXPECT_TRUE(run(0, 1).eq(1).all().item<bool>());
}

TEST_P(AttendAtLevel, scale_zero_and_negative_are_taken_as_given) {
  Problem p = rule_problem({}, {});
  for (const double scale : {0.0, -0.5}) {
    p.score.scale = scale;
    expect_oracle_in_both(p);
  }
}

TEST_P(AttendAtLevel, a_soft_cap_holds_logits_far_beyond_it) {
  Problem p = rule_problem({}, {});
  p.score = {.scale = 400.0, .soft_cap = 0.5};
  const Attended got = attend(p.q, p.k, p.v, p.plan, p.score);
  const auto want = oracle_attention(to_array(p.q), to_array(p.k), to_array(p.v), p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), kSingleBound));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), kSingleBound));
}

TEST_P(AttendAtLevel, a_bias_of_minus_infinity_hides_keys_and_whole_rows) {
  Problem p = rule_problem({}, {});
  const Tensor bias = at::zeros({2, 4, 13, 29});
  bias.select(3, 3).fill_(-INFINITY);
  bias.select(2, 5).fill_(-INFINITY);
  p.visible = [by_rule = p.visible](int64_t b, int64_t h, int64_t i, int64_t j) {
    return j == 3 || i == 5 ? 0 : by_rule(b, h, i, j);
  };
  for (Tensor* x : {&p.q, &p.k, &p.v}) x->requires_grad_();
  const Attended got = attend(p.q, p.k, p.v, p.plan, {.bias = bias});
  const auto want = oracle_attention(to_array(p.q), to_array(p.k), to_array(p.v), p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), kSingleBound));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), kSingleBound));
  got.out.sum().backward();
  EXPECT_TRUE(p.q.grad().isfinite().all().item<bool>());
  EXPECT_EQ(p.k.grad().select(2, 3).abs().max().item<float>(), 0);
  EXPECT_EQ(p.q.grad().select(2, 5).abs().max().item<float>(), 0);
}

}  // namespace
}  // namespace foveate::ops
