// attend against plain loops in double, over every kind of plan, forward and backward.
#include "foveate/ops/attend/attend.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <array>

#include "foveate/base/error.h"
#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

INSTANTIATE_TEST_SUITE_P(Levels, AttendAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

TEST_P(AttendAtLevel, every_rule_equals_the_oracle) {
  const Shape shape;
  for (const Rule& rule : rules(shape)) expect_oracle_in_both(rule_problem(shape, rule));
}

TEST_P(AttendAtLevel, tiles_and_pieces_join_without_seams) {  // more rows than a tile, more keys than a piece
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 301, .keys = 1203, .dim = 4, .value_dim = 3};
  for (const Rule& rule : {Rule{}, Rule{.window_left = 150, .sinks = 9},
                           Rule{.query_start = 100, .window_left = 600, .window_right = 300}})
    expect_oracle(rule_problem(shape, rule), at::kDouble, {1e-11, 1e-11});
}

TEST_P(AttendAtLevel, block_plans_equal_the_oracle) {
  for (const int64_t plan_heads : {1, 2, 4})
    for (const auto& [query_block, key_block] :
         std::vector<std::pair<int64_t, int64_t>>{{4, 8}, {1, 3}, {16, 32}, {5, 1}})
      for (const Rule& rule : {Rule{}, Rule::full(), Rule{.window_left = 6}})
        expect_oracle_in_both(block_problem({}, plan_heads, query_block, key_block, rule));
}

TEST_P(AttendAtLevel, partial_and_full_lists_may_have_different_head_axes) {
  const Shape shape;
  const Problem fine = block_problem(shape, 4, 4, 8, {});
  Problem mixed = fine;
  auto& plan = std::get<BlockPlan>(mixed.plan);
  plan.full_count = plan.full_count->narrow(1, 0, 1), plan.full_index = plan.full_index->narrow(1, 0, 1);
  Problem spread = fine;
  auto& wide = std::get<BlockPlan>(spread.plan);
  wide.full_count = plan.full_count->expand({-1, 4, -1}), wide.full_index = plan.full_index->expand({-1, 4, -1, -1});
  const auto attended = [](const Problem& p) { return attend(p.q, p.k, p.v, p.plan).out; };
  EXPECT_TRUE(same(attended(mixed), attended(spread), {1e-6, 1e-6}));
  plan.full_count = wide.full_count->narrow(1, 0, 2), plan.full_index = wide.full_index->narrow(1, 0, 2);
  EXPECT_TRUE(same(attended(mixed), attended(spread), {1e-6, 1e-6}));
}

TEST_P(AttendAtLevel, lists_over_no_keys_give_empty_rows) {
  Problem p = token_problem({}, 1, 4, {});
  p.k = p.k.narrow(2, 0, 0), p.v = p.v.narrow(2, 0, 0);
  const Attended got = attend(p.q, p.k, p.v, p.plan);
  EXPECT_EQ(got.out.abs().max().item<float>(), 0);
  EXPECT_TRUE(got.lse.eq(-INFINITY).all().item<bool>());
}

TEST_P(AttendAtLevel, token_plans_equal_the_oracle) {
  for (const int64_t plan_heads : {1, 2, 4})
    for (const int64_t query_block : {1, 4, 13, 64})
      for (const Rule& rule : rules({})) expect_oracle_in_both(token_problem({}, plan_heads, query_block, rule));
}

TEST_P(AttendAtLevel, run_plans_equal_the_oracle) {
  for (const int64_t plan_heads : {1, 2, 4})
    for (const int64_t query_block : {1, 4, 64})
      for (const Rule& rule : rules({})) expect_oracle_in_both(run_problem({}, plan_heads, query_block, rule));
  const Shape large{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 230, .keys = 901, .dim = 4, .value_dim = 3};
  for (const Rule& rule : {Rule{}, Rule::full(), Rule{.window_left = 300, .sinks = 70}}) {
    expect_oracle(run_problem(large, 1, 50, rule), at::kDouble, {1e-11, 1e-11});
    expect_oracle(run_problem(large, 1, 50, rule), at::kFloat, {1e-4, 1e-4});
  }
}

TEST_P(AttendAtLevel, blocks_that_are_no_multiple_of_a_panel_equal_the_oracle) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 130, .keys = 901, .dim = 4, .value_dim = 3};
  for (const int64_t key_block : {64, 96, 130, 200}) {
    expect_oracle(block_problem(shape, 1, 32, key_block, {}), at::kDouble, {1e-11, 1e-11});
    expect_oracle(block_problem(shape, 1, 32, key_block, {}), at::kFloat, {1e-4, 1e-4});
  }
}

TEST_P(AttendAtLevel, short_query_blocks_equal_the_oracle) {  // run key by key
  const Shape shape{.batch = 2, .heads = 4, .kv_heads = 2, .queries = 110, .keys = 233, .dim = 6, .value_dim = 5};
  for (const int64_t plan_heads : {1, 2, 4})
    for (const int64_t query_block : {1, 3})
      for (const int64_t key_block : {64, 128})
        for (const Rule& rule : {Rule{}, Rule{.window_left = 90, .sinks = 10}, ordered(shape, {}, true, true)}) {
          Problem p = block_problem(shape, plan_heads, query_block, key_block, rule);
          if (query_block == 3) p.score = {.sink = random_tensor({4}, 6), .slopes = random_tensor({4}, 8).mul(0.1)};
          expect_oracle(p, at::kFloat, {1e-4, 1e-4});
        }
}

TEST_P(AttendAtLevel, a_block_listed_twice_counts_twice_also_key_by_key) {
  const Shape shape{.batch = 1, .heads = 1, .kv_heads = 1, .queries = 40, .keys = 200, .dim = 6, .value_dim = 5};
  BlockPlan plan{1, 64, at::full({1, 1, 40}, 3, at::kInt), at::full({1, 1, 40, 3}, 1, at::kInt), {}, {}, Rule::full()};
  plan.index.select(3, 1).fill_(2);
  const Problem p = make_problem(
      shape, plan,
      [](int64_t, int64_t, int64_t, int64_t j) -> int { return j >= 64 && j < 128    ? 2
                                                               : j >= 128 && j < 192 ? 1
                                                                                     : 0; },
      1);
  expect_oracle(p, at::kFloat, {1e-4, 1e-4});
}

TEST_P(AttendAtLevel, queries_in_any_order_equal_the_oracle) {
  const Shape shape;
  for (const bool by_head : {false, true})
    for (const bool some : {false, true})
      for (const Rule& plain : {Rule{}, Rule{.window_left = 5, .sinks = 1}, rules(shape)[9], rules(shape)[10]}) {
        const Rule rule = ordered(shape, plain, by_head, some);
        for (Problem p : {rule_problem(shape, rule), block_problem(shape, 2, 4, 8, rule),
                          token_problem(shape, by_head ? 4 : 1, 4, rule), run_problem(shape, 1, 5, rule)}) {
          expect_oracle_in_both(p);
          p.score = {.bias = random_tensor({2, 4, 13, 29}, 5),
                     .sink = random_tensor({4}, 6),
                     .slopes = random_tensor({4}, 8),
                     .relative = relative_term(shape, {2, 1, 13}),
                     .dropout = 0.2};
          expect_oracle_in_both(p);
        }
      }
}

TEST_P(AttendAtLevel, head_maps_equal_the_oracle) {
  const Shape shape{.heads = 5, .kv_heads = 5};
  for (const auto& [keys, values] : std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>>{
           {{0, 0, 0, 1, 1}, {0, 0, 0, 1, 1}}, {{1, 0, 1, 2, 0}, {1, 0, 1, 2, 0}}, {{0, 0, 1, 1, 1}, {0, 1, 1, 2, 0}}})
    for (Problem p : {rule_problem(shape, {}), block_problem(shape, 5, 4, 8, {}), token_problem(shape, 1, 4, {}),
                      run_problem(shape, 1, 4, {.window_left = 9})}) {
      p.k = p.k.narrow(1, 0, 3), p.v = p.v.narrow(1, 0, 3);
      p.heads = {longs(keys, {5}), longs(values, {5})};
      expect_oracle_in_both(p);
      p.score = {.bias = random_tensor({1, 5, 13, 29}, 5), .slopes = random_tensor({5}, 8)};
      expect_oracle_in_both(p);
    }
}

TEST_P(AttendAtLevel, lists_by_query_head_stay_apart_where_a_head_map_joins_heads) {
  for (Problem p : {block_problem({.heads = 3, .kv_heads = 3}, 3, 4, 8, {}),
                    token_problem({.heads = 3, .kv_heads = 3}, 3, 4, {})}) {
    p.heads.keys = longs({0, 0, 1}, {3});
    expect_oracle_in_both(p);
  }
}

TEST_P(AttendAtLevel, a_plan_without_rows_gives_empty_rows) {
  Problem p = rule_problem({}, {});
  p.plan = Rule{.query_order = at::zeros({1, 1, 0}, at::kLong)};
  p.visible = [](int64_t, int64_t, int64_t, int64_t) { return 0; };
  expect_oracle_in_both(p);
  p.score.sink = random_tensor({4}, 6);
  expect_oracle_in_both(p);
  Problem none = rule_problem({.queries = 0}, rules({.queries = 0})[9]);  // with documents
  std::get<Rule>(none.plan).query_order = at::full({1, 1, 5}, -1, at::kLong);
  expect_oracle_in_both(none);
}

TEST_P(AttendAtLevel, rows_before_the_first_key_see_no_listed_key) {
  expect_oracle_in_both(token_problem({.queries = 29, .keys = 3}, 1, 4, {}));
  expect_oracle_in_both(token_problem({.queries = 29, .keys = 3}, 1, 16, {.query_start = -50}));
}

TEST_P(AttendAtLevel, one_query_no_query_one_key_no_key) {
  for (const int64_t queries : {0, 1, 2})
    for (const int64_t keys : {0, 1, 5})
      expect_oracle_in_both(
          rule_problem({.queries = queries, .keys = keys}, Rule{.query_start = 0, .window_right = std::nullopt}));
}

TEST_P(AttendAtLevel, few_queries_equal_the_oracle) {  // whose keys are read as they are, not packed
  for (const auto& [queries, heads, dim, value_dim] :
       std::vector<std::array<int64_t, 4>>{{1, 2, 40, 33}, {2, 6, 33, 16}, {7, 2, 32, 70}}) {
    const Shape shape{
        .batch = 1, .heads = heads, .kv_heads = 2, .queries = queries, .keys = 701, .dim = dim, .value_dim = value_dim};
    for (Problem p :
         {rule_problem(shape, {}), rule_problem(shape, {.window_left = 300, .sinks = 9}),
          token_problem(shape, 2, 4, {}), run_problem(shape, 1, 8, {}), block_problem(shape, 1, 8, 64, {})}) {
      expect_oracle(p, at::kFloat, {1e-4, 1e-4});
      p.score = {.soft_cap = 2.0,
                 .bias = random_tensor({1, heads, queries, 701}, 5),
                 .sink = random_tensor({heads}, 6),
                 .slopes = random_tensor({heads}, 8).mul(0.01),
                 .relative = relative_term(shape, {1, heads, queries}),
                 .leaky = 0.3,
                 .dropout = 0.25};
      expect_oracle(p, at::kFloat, {2e-4, 2e-4});
      for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
        const double unit = type == at::kHalf ? 1e-3 : 8e-3;
        p.score = {};
        const Tensor q = p.q.to(type), k = p.k.to(type), v = p.v.to(type);
        const auto want = oracle_attention(to_array(q), to_array(k), to_array(v), p.visible, oracle_score(p));
        EXPECT_TRUE(same(attend(q, k, v, p.plan).out, to_tensor(want.out), {unit, unit}));
      }
    }
  }
}

TEST_P(AttendAtLevel, few_queries_over_many_keys_join_their_parts) {
  const Shape shape{.batch = 1, .heads = 3, .kv_heads = 1, .queries = 2, .keys = 3300, .dim = 16, .value_dim = 16};
  for (const Rule& rule : {Rule{}, Rule{.query_start = 0}, Rule{.window_left = 1500, .sinks = 70}}) {
    Problem p = rule_problem(shape, rule);
    expect_oracle(p, at::kFloat, {1e-4, 1e-4});
    p.score = {.soft_cap = 3.0, .sink = random_tensor({3}, 6)};
    expect_oracle(p, at::kFloat, {1e-4, 1e-4});
  }
  Problem p = rule_problem(shape, {});
  p.v.select(2, 3000)[0][0][5] = INFINITY;  // in the last of three parts
  p.q[0][0].fill_(NAN);
  const Tensor out = attend(p.q, p.k, p.v, p.plan).out;
  EXPECT_TRUE(out[0][0].isnan().all().item<bool>());
  EXPECT_TRUE(out[0].narrow(0, 1, 2).select(2, 5).eq(INFINITY).all().item<bool>());
  EXPECT_TRUE(out[0].narrow(0, 1, 2).narrow(2, 6, 10).isfinite().all().item<bool>());
}

TEST_P(AttendAtLevel, few_queries_meet_nan_and_inf_as_many_do) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Problem p = rule_problem({.queries = 2, .keys = 150}, {.query_start = 100, .window_left = 60});
    const Tensor q = p.q.to(type), k = p.k.to(type), v = p.v.to(type);
    const Tensor want = attend(q, k, v, p.plan).out;
    for (const int64_t hidden : {3, 39, 102, 149}) k.select(2, hidden).fill_(NAN), v.select(2, hidden).fill_(INFINITY);
    EXPECT_TRUE(attend(q, k, v, p.plan).out.equal(want));
    v.select(2, 101).fill_(INFINITY);  // the second sees it
    v.select(2, 70)[0][0][0] = NAN;    // both do
    const Tensor out = attend(q, k, v, p.plan).out;
    EXPECT_TRUE(out.select(2, 0).narrow(2, 1, 4).equal(want.select(2, 0).narrow(2, 1, 4)));
    EXPECT_TRUE(out[0].narrow(0, 0, 2).select(1, 0).select(1, 0).isnan().all().item<bool>());
    EXPECT_TRUE(out.select(2, 1).narrow(2, 1, 4).eq(INFINITY).all().item<bool>());
  }
}

TEST_P(AttendAtLevel, low_precision_is_as_close_as_its_inputs_allow) {
  const Shape shape{.batch = 1, .heads = 4, .kv_heads = 2, .queries = 40, .keys = 77, .dim = 32, .value_dim = 16};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const double unit = type == at::kHalf ? 1e-3 : 8e-3;  // one rounding of the result; sums run in fp32
    for (const Problem& p : {rule_problem(shape, {.window_left = 20, .sinks = 2}), token_problem(shape, 2, 8, {})}) {
      const Tensor q = p.q.to(type), k = p.k.to(type), v = p.v.to(type);
      const Attended got = attend(q, k, v, p.plan);
      const auto want = oracle_attention(to_array(q), to_array(k), to_array(v), p.visible, oracle_score(p));
      EXPECT_EQ(got.out.scalar_type(), type);
      EXPECT_EQ(got.lse.scalar_type(), at::kFloat);
      EXPECT_TRUE(same(got.out, to_tensor(want.out), {unit, unit}));
      EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), {1e-4, 1e-5}));
    }
  }
}

TEST_P(AttendAtLevel, strides_do_not_matter) {
  const Problem p = rule_problem({}, {.window_left = 5});
  const auto heads_last = [](const Tensor& t) { return t.transpose(1, 2).contiguous().transpose(1, 2); };
  const auto padded = [](const Tensor& t) {
    return at::full({t.size(0), t.size(1), t.size(2), t.size(3) + 3}, NAN).narrow(3, 1, t.size(3)).copy_(t);
  };
  const Attended want = attend(p.q, p.k, p.v, p.plan);
  EXPECT_TRUE(attend(heads_last(p.q), heads_last(p.k), heads_last(p.v), p.plan).out.equal(want.out));
  EXPECT_TRUE(attend(padded(p.q), padded(p.k), padded(p.v), p.plan).out.equal(want.out));
}

TEST_P(AttendAtLevel, inputs_are_left_as_they_were) {
  Problem p = rule_problem({.batch = 1, .heads = 1, .kv_heads = 1}, {});
  const Tensor q = p.q.clone(), k = p.k.clone(), v = p.v.clone();
  attend(p.q, p.k, p.v, p.plan, {.scale = 3.0});
  EXPECT_TRUE(p.q.equal(q) && p.k.equal(k) && p.v.equal(v));
}

TEST_P(AttendAtLevel, a_row_without_a_key_is_zero_and_its_gradients_too) {
  Problem p = rule_problem({}, {.key_lengths = longs({0, 4}, {2})});
  for (Tensor* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
  const Attended got = attend(p.q, p.k, p.v, p.plan);
  EXPECT_EQ(got.out[0].abs().max().item<float>(), 0);
  EXPECT_TRUE(got.lse[0].eq(-INFINITY).all().item<bool>());
  got.out.sum().backward();
  EXPECT_EQ(p.q.grad()[0].abs().max().item<float>(), 0);
  EXPECT_EQ(p.k.grad()[0].abs().max().item<float>(), 0);
  EXPECT_TRUE(p.q.grad().isfinite().all().item<bool>());
}

TEST_P(AttendAtLevel, an_invisible_nan_or_inf_changes_no_row) {
  const Rule rule{.window_left = 4};
  for (Problem p : {rule_problem({}, rule), token_problem({}, 2, 4, rule), block_problem({}, 1, 4, 8, rule)}) {
    const Attended want = attend(p.q, p.k, p.v, p.plan);
    for (const double poison : {double(NAN), double(INFINITY)}) {
      Problem bad = p;
      bad.k = p.k.clone(), bad.v = p.v.clone();
      bad.k.select(2, 20).fill_(poison);
      bad.v.select(2, 20).fill_(poison);
      for (Tensor* t : {&bad.q, &bad.k, &bad.v}) *t = t->detach().requires_grad_();
      const Attended got = attend(bad.q, bad.k, bad.v, bad.plan);
      const Tensor total = got.out.detach().isfinite();  // backward from the rows that do not see it
      got.out.masked_fill(total.logical_not(), 0).sum().backward();
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t h = 0; h < 4; ++h)
          for (int64_t i = 0; i < 13; ++i) {
            if (p.visible(b, h, i, 20)) continue;
            EXPECT_TRUE(same(got.out[b][h][i], want.out[b][h][i], {1e-6, 1e-6}));
            EXPECT_TRUE(bad.q.grad()[b][h][i].isfinite().all().item<bool>());
          }
    }
  }
}

TEST_P(AttendAtLevel, a_visible_infinite_value_reaches_the_rows_that_see_it) {
  Problem p = rule_problem({.batch = 1}, {});
  p.v.select(2, 20).fill_(INFINITY);
  const Attended got = attend(p.q, p.k, p.v, p.plan);
  EXPECT_TRUE(got.out.narrow(2, 4, 9).eq(INFINITY).all().item<bool>());  // query 4 sits at key 20
  EXPECT_TRUE(got.out.narrow(2, 0, 4).isfinite().all().item<bool>());
}

TEST_P(AttendAtLevel, counts_visible_pairs) {
  const Shape shape;
  std::vector<Problem> problems = {block_problem(shape, 2, 4, 8, {}), token_problem(shape, 4, 4, {}),
                                   token_problem(shape, 1, 1, {.window_left = 3})};
  for (const Rule& rule : rules(shape)) {
    problems.push_back(rule_problem(shape, rule));
    for (const int64_t heads : {1, 2, 4}) problems.push_back(run_problem(shape, heads, 1, rule));
  }
  for (const Problem& p : problems) {
    double want = 0;
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t h = 0; h < shape.heads; ++h)
        for (int64_t i = 0; i < shape.queries; ++i)
          for (int64_t j = 0; j < shape.keys; ++j) want += p.visible(b, h, i, j);
    EXPECT_EQ(visible_pairs(p.plan, p.q, p.k), want);
  }
}

std::string message_of(const Problem& p) {
  try {
    attend(p.q, p.k, p.v, p.plan, p.score);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST_P(AttendAtLevel, says_what_does_not_fit) {
  const auto broken = [](auto&& change) {
    Problem p = rule_problem({}, {});
    change(p);
    return message_of(p);
  };
  const auto expect = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect(broken([](Problem& p) { p.q = p.q[0]; }), "must be [batch, heads, length, dim]");
  expect(broken([](Problem& p) { p.k = p.k.to(at::kDouble); }), "share one dtype");
  expect(broken([](Problem& p) { p.q = p.q.to(at::kInt); }), "share one dtype");
  expect(broken([](Problem& p) { p.q = p.q.narrow(1, 0, 3); }), "multiple of key heads, got 3 and 2");
  expect(broken([](Problem& p) { p.k = p.k.narrow(3, 0, 4); }), "must agree");
  expect(broken([](Problem& p) { p.v = p.v.narrow(2, 0, 4); }), "must agree");
  expect(broken([](Problem& p) { p.score.soft_cap = 0; }), "soft_cap must be > 0, got 0");
  expect(broken([](Problem& p) { p.score.bias = at::zeros({1, 1, 2, 1}); }), "bias must");
  expect(broken([](Problem& p) { p.score.sink = at::zeros({3}); }), "sink must");
  expect(broken([](Problem& p) { p.plan = Rule{.window_left = -1}; }), "window_left must be 0 .. 2^48, got -1");
  expect(broken([](Problem& p) { p.plan = Rule{.window_right = INT64_MAX}; }), "window_right must be 0 .. 2^48");
  expect(broken([](Problem& p) { p.plan = Rule{.query_start = INT64_MIN}; }), "query_start must be");
  expect(broken([](Problem& p) { p.plan = Rule{.key_lengths = at::zeros({3}, at::kLong)}; }),
         "key_lengths must be int64 [2]");
  expect(broken([](Problem& p) {
           p.plan = Rule{.query_documents = at::zeros({2, 13}, at::kLong)};
         }),
         "must come together");
  expect(broken([](Problem& p) {
           p.plan = TokenPlan{4, at::zeros({1, 3, 4, 2}, at::kInt), {}};
         }),
         "index must be integers");
  expect(broken([](Problem& p) {
           p.plan = TokenPlan{0, at::zeros({1, 1, 4, 2}, at::kInt), {}};
         }),
         "query_block must be >= 1");
}

}  // namespace
}  // namespace foveate::ops
