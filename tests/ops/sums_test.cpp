// Sums of attention probabilities against plain loops in double, at every level.
#include "foveate/ops/sums/sums.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>

#include <algorithm>
#include <cmath>

#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

class SumsAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, SumsAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

// The logit of a visible pair: scale * q.k and slopes.
double logit(const Array& q, const Array& k, const OracleScore& score, int64_t b, int64_t h, int64_t i, int64_t j) {
  double s = 0;
  for (int64_t d = 0; d < q.shape[3]; ++d) s += q.at(b, h, i, d) * k.at(b, h * k.shape[1] / q.shape[1], j, d);
  s *= score.scale;
  if (score.slopes) s -= (*score.slopes)[size_t(h)] * double(std::abs(score.query_start + i - j));
  return s;
}

Tensor oracle(const Problem& p, const Tensor& lse, const SumOptions& o) {
  const Array q = to_array(p.q), k = to_array(p.k), logs = to_array(lse.unsqueeze(3));
  const OracleScore score = oracle_score(p);
  const int64_t queries = q.shape[2], keys = k.shape[2];
  const auto blocks = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
  const bool by_block = o.by == SumBy::block;
  Array sums(q.shape[0], q.shape[1],
             o.by == SumBy::row ? queries
             : by_block         ? blocks(queries, o.query_block)
                                : 1,
             o.by == SumBy::row ? 1
             : by_block         ? blocks(keys, o.key_block)
                                : keys);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < keys; ++j) {
          const int times = p.visible(b, h, i, j);
          if (times == 0 || logs.at(b, h, i, 0) == -INFINITY) continue;
          const int64_t away = score.query_start + i - j;
          double w = std::exp(logit(q, k, score, b, h, i, j) - logs.at(b, h, i, 0));
          if (o.squared) w *= w;
          if (o.distance) w *= double(std::min(std::abs(away), *o.distance));
          if (o.by == SumBy::diagonal && (away < 0 || away >= keys)) continue;
          const int64_t place = o.by == SumBy::row ? i : by_block ? i / o.query_block : 0;
          const int64_t column = o.by == SumBy::row ? 0 : by_block ? j / o.key_block : o.by == SumBy::key ? j : away;
          sums.at(b, h, place, column) += times * w;
        }
  const Tensor t = to_tensor(sums);
  return by_block ? t : o.by == SumBy::row ? t.squeeze(3) : t.squeeze(2);
}

std::vector<SumOptions> options() {
  std::vector<SumOptions> all;
  for (const SumBy by : {SumBy::row, SumBy::key, SumBy::diagonal, SumBy::block})
    for (const bool squared : {false, true})
      all.push_back({.by = by, .query_block = squared ? 1 : 5, .key_block = squared ? 64 : 7, .squared = squared});
  for (const SumBy by : {SumBy::row, SumBy::diagonal}) all.push_back({.by = by, .distance = 6});
  all.push_back({.by = SumBy::block, .query_block = 1, .key_block = 1});  // the probabilities themselves
  return all;
}

void expect_oracle_sums(const Problem& p, const std::vector<SumOptions>& wanted) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    Problem typed = p;
    typed.q = p.q.to(type), typed.k = p.k.to(type), typed.v = p.v.to(type);
    const Tensor lse = attend(typed.q, typed.k, typed.v, p.plan, p.score).lse;
    for (const SumOptions& o : wanted)
      EXPECT_TRUE(same(attention_sums(typed.q, typed.k, lse, p.plan, p.score, o), oracle(typed, lse, o),
                       type == at::kDouble ? Bound{1e-12, 1e-12} : Bound{1e-4, 1e-4}))
          << "by " << int(o.by) << " squared " << o.squared << " blocks " << o.query_block << " " << o.key_block;
  }
}

TEST_P(SumsAtLevel, equal_the_oracle_for_every_plan) {
  const Shape shape;
  for (const Rule& rule : rules(shape)) expect_oracle_sums(rule_problem(shape, rule), options());
  for (const Problem& p :
       {block_problem(shape, 4, 4, 8, {}), token_problem(shape, 2, 4, {}), run_problem(shape, 1, 5, {}),
        rule_problem(shape, ordered(shape, {}, true, true)), block_problem({.keys = 140}, 2, 1, 64, {})})
    expect_oracle_sums(p, options());
  Problem sloped = rule_problem(shape, {});
  sloped.score.slopes = random_tensor({4}, 3);
  expect_oracle_sums(sloped, options());
}

TEST_P(SumsAtLevel, join_over_tiles_and_parts) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 430, .keys = 901, .dim = 4, .value_dim = 3};
  expect_oracle_sums(rule_problem(shape, {}), options());
}

TEST_P(SumsAtLevel, rows_of_all_keys_sum_to_one_and_a_selection_to_the_mass_it_keeps) {
  const Problem p = rule_problem({}, {});
  const Tensor lse = attend(p.q, p.k, p.v, p.plan).lse;
  const Tensor all = attention_sums(p.q, p.k, lse, p.plan, {}, {.by = SumBy::row});
  EXPECT_TRUE(same(all, at::ones_like(all).to(at::kDouble), {1e-5, 0}));
  const Tensor kept = attention_sums(p.q, p.k, lse, Rule{.window_left = 3}, {}, {.by = SumBy::row});
  const Tensor window = attend(p.q, p.k, p.v, Rule{.window_left = 3}).lse;
  EXPECT_TRUE(same(kept, (window - lse).exp().to(at::kDouble), {1e-5, 1e-6}));
}

TEST_P(SumsAtLevel, have_the_same_bits_on_any_number_of_threads) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 700, .keys = 700, .dim = 8, .value_dim = 8};
  const Problem p = rule_problem(shape, {});
  const Tensor lse = attend(p.q, p.k, p.v, p.plan).lse;
  const int before = at::get_num_threads();
  for (const SumOptions& o : options()) {
    std::vector<Tensor> results;
    for (const int threads : {1, 2}) {
      at::set_num_threads(threads);
      results.push_back(attention_sums(p.q, p.k, lse, p.plan, {}, o));
    }
    EXPECT_TRUE(results[0].equal(results[1]));
  }
  at::set_num_threads(before);
}

TEST_P(SumsAtLevel, an_invisible_nan_adds_nothing_and_empty_problems_give_zeros) {
  Problem p = rule_problem({}, {.window_right = std::nullopt, .key_lengths = longs({20, 20}, {2})});
  const Tensor lse = attend(p.q, p.k, p.v, p.plan).lse;
  const Tensor want = attention_sums(p.q, p.k, lse, p.plan);
  p.k.narrow(2, 20, 9).fill_(NAN);
  EXPECT_TRUE(attention_sums(p.q, p.k, lse, p.plan).equal(want));
  const Tensor none = attention_sums(p.q, p.k.narrow(2, 0, 0), lse, Rule{.query_start = 0}, {}, {.by = SumBy::row});
  EXPECT_EQ(none.abs().max().item<float>(), 0);
}

TEST_P(SumsAtLevel, say_what_does_not_fit) {
  const Problem p = rule_problem({}, {});
  const Tensor lse = attend(p.q, p.k, p.v, p.plan).lse;
  EXPECT_ANY_THROW(attention_sums(p.q, p.k, lse.narrow(2, 0, 3), p.plan));
  EXPECT_ANY_THROW(attention_sums(p.q, p.k, lse, p.plan, {}, {.key_block = 0}));
  EXPECT_ANY_THROW(attention_sums(p.q, p.k, lse, p.plan, {}, {.distance = 0}));
}

}  // namespace
}  // namespace foveate::ops
