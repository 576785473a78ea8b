// attend against plain loops in double, over every kind of plan and score, forward and backward.
#include "foveate/ops/attend/attend.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "foveate/kernels/level.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using test::Array;
using test::Bound;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

// Every test runs at every level the machine has.
class AttendAtLevel : public testing::TestWithParam<std::string> {
  void SetUp() override { ::setenv("FOVEATE_BACKEND", GetParam().c_str(), 1); }
  void TearDown() override { ::unsetenv("FOVEATE_BACKEND"); }
};

std::vector<std::string> all_levels() {
  std::vector<std::string> names = {"definition"};
  for (const kernels::Table* table : kernels::levels()) names.emplace_back(table->name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Levels, AttendAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

struct Shape {
  int64_t batch = 2, heads = 4, kv_heads = 2, queries = 13, keys = 29, dim = 8, value_dim = 5;
};

struct Problem {
  Tensor q, k, v;
  Plan plan;
  Score score;
  test::Visible visible;
};

Tensor longs(std::vector<int64_t> values, at::IntArrayRef shape) { return at::tensor(values, at::kLong).view(shape); }

// Visibility by the words of rule.h, one pair at a time.
test::Visible visible_by(const Rule& rule, const Shape& s) {
  return [rule, s](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    const int64_t p = rule.query_start.value_or(s.keys - s.queries) + i;
    const auto row = [&](const Tensor& t) {
      return t[t.size(0) == 1 ? 0 : b][t.size(1) == 1 ? 0 : h][i].item<int64_t>();
    };
    if (rule.window_right && j > p + *rule.window_right) return 0;
    if (rule.window_left && j < p - *rule.window_left && j >= rule.sinks) return 0;
    if (rule.head_window) {
      const int64_t left = (*rule.head_window)[h].item<int64_t>();
      if (left >= 0 && j < p - left && j >= rule.sinks) return 0;
    }
    if (rule.key_lengths && j >= (*rule.key_lengths)[b].item<int64_t>()) return 0;
    if (rule.query_documents &&
        (*rule.query_documents)[b][i].item<int64_t>() != (*rule.key_documents)[b][j].item<int64_t>())
      return 0;
    if (rule.row_start && j < row(*rule.row_start)) return 0;
    if (rule.row_end && j >= row(*rule.row_end)) return 0;
    return 1;
  };
}

Problem make_problem(const Shape& s, Plan plan, test::Visible visible, uint64_t seed = 1) {
  return {random_tensor({s.batch, s.heads, s.queries, s.dim}, seed),
          random_tensor({s.batch, s.kv_heads, s.keys, s.dim}, seed + 1),
          random_tensor({s.batch, s.kv_heads, s.keys, s.value_dim}, seed + 2),
          std::move(plan),
          {},
          std::move(visible)};
}

Problem rule_problem(const Shape& s, const Rule& rule) { return make_problem(s, rule, visible_by(rule, s)); }

// Block lists with another list for every head of `plan_heads`, some empty, some in the full set.
Problem block_problem(const Shape& s, int64_t plan_heads, int64_t query_block, int64_t key_block, const Rule& rule) {
  const int64_t rows = (s.queries + query_block - 1) / query_block, columns = (s.keys + key_block - 1) / key_block;
  Random random(17);
  std::vector<int64_t> kind(size_t(s.batch * plan_heads * rows * columns));  // 0 none, 1 partial, 2 full
  for (int64_t& k : kind) k = int64_t(random.below(3));
  BlockPlan plan{query_block,
                 key_block,
                 at::zeros({s.batch, plan_heads, rows}, at::kInt),
                 at::full({s.batch, plan_heads, rows, columns}, 7, at::kInt),
                 {},
                 {},
                 rule};
  plan.full_count = plan.count.clone(), plan.full_index = plan.index.clone();
  for (int64_t list = 0; list < s.batch * plan_heads * rows; ++list)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t k = kind[size_t(list * columns + c)];
      if (k == 0) continue;
      int32_t* count = (k == 1 ? plan.count : *plan.full_count).mutable_data_ptr<int32_t>() + list;
      (k == 1 ? plan.index : *plan.full_index).mutable_data_ptr<int32_t>()[list * columns + (*count)++] = int32_t(c);
    }
  const auto by_rule = visible_by(rule, s);
  return make_problem(s, plan, [=](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    const int64_t plan_head = h * plan_heads / s.heads;
    const int64_t k = kind[size_t(((b * plan_heads + plan_head) * rows + i / query_block) * columns + j / key_block)];
    return k == 2 ? 1 : k == 1 ? by_rule(b, h, i, j) : 0;
  });
}

// Token lists with repeats and empty entries.
Problem token_problem(const Shape& s, int64_t plan_heads, int64_t query_block, const Rule& rule) {
  constexpr int64_t kCapacity = 11;
  const int64_t rows = (s.queries + query_block - 1) / query_block;
  Random random(23);
  TokenPlan plan{query_block, at::zeros({s.batch, plan_heads, rows, kCapacity}, at::kInt), rule};
  int32_t* index = plan.index.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < plan.index.numel(); ++i)
    index[i] = random.below(4) == 0 ? -1 : int32_t(random.below(uint64_t(s.keys)));
  const Tensor lists = plan.index;
  const auto by_rule = visible_by(rule, s);
  return make_problem(s, plan, [=](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    const int32_t* list = lists.const_data_ptr<int32_t>() +
                          ((b * plan_heads + h * plan_heads / s.heads) * rows + i / query_block) * kCapacity;
    return by_rule(b, h, i, j) * int(std::count(list, list + kCapacity, int32_t(j)));
  });
}

test::OracleScore oracle_score(const Problem& p) {
  test::OracleScore score{.scale = p.score.scale.value_or(1 / std::sqrt(double(p.q.size(3)))),
                          .soft_cap = p.score.soft_cap,
                          .bias = {},
                          .sink = {}};
  if (p.score.bias) score.bias = to_array(*p.score.bias);
  if (p.score.sink) score.sink = to_array(p.score.sink->view({1, 1, 1, -1})).data;
  return score;
}

// Forward and all gradients, through out and lse, at `type`.
void expect_oracle(Problem p, at::ScalarType type, Bound bound) {
  const auto leaf = [&](const Tensor& t) { return t.detach().to(type).clone().requires_grad_(); };
  p.q = leaf(p.q), p.k = leaf(p.k), p.v = leaf(p.v);
  if (p.score.bias) p.score.bias = leaf(*p.score.bias);
  if (p.score.sink) p.score.sink = leaf(*p.score.sink);
  const Attended got = attend(p.q, p.k, p.v, p.plan, p.score);
  const Tensor d_out = random_tensor(got.out.sizes(), 91, type),
               d_lse = random_tensor(got.lse.sizes(), 92, got.lse.scalar_type());
  const Array q = to_array(p.q), k = to_array(p.k), v = to_array(p.v);
  const test::OracleResult want = test::oracle_attention(q, k, v, p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), bound));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), bound));
  const Tensor seen = got.lse.detach().isfinite();
  ((got.out * d_out).to(got.lse.scalar_type()).sum() + (got.lse.masked_fill(seen.logical_not(), 0) * d_lse).sum())
      .backward();
  const Tensor lse_gradient = d_lse.masked_fill(seen.logical_not(), 0);
  const auto wanted =
      test::oracle_backward(q, k, v, p.visible, oracle_score(p), to_array(d_out), to_array(lse_gradient));
  EXPECT_TRUE(same(p.q.grad(), to_tensor(wanted.q), bound)) << "dq";
  EXPECT_TRUE(same(p.k.grad(), to_tensor(wanted.k), bound)) << "dk";
  EXPECT_TRUE(same(p.v.grad(), to_tensor(wanted.v), bound)) << "dv";
  if (p.score.bias) {
    EXPECT_TRUE(same(p.score.bias->grad(), to_tensor(wanted.bias), bound)) << "dbias";
  }
  if (p.score.sink) {
    EXPECT_TRUE(same(p.score.sink->grad(), at::tensor(wanted.sink, at::kDouble), bound)) << "dsink";
  }
}

constexpr Bound kDouble{1e-12, 1e-12}, kSingle{3e-5, 3e-5};

void expect_oracle_in_both(const Problem& p) {
  expect_oracle(p, at::kDouble, kDouble);
  expect_oracle(p, at::kFloat, kSingle);
}

std::vector<Rule> rules(const Shape& s) {
  std::vector<Rule> all = {Rule{},
                           Rule::full(),
                           Rule{.window_left = 4},
                           Rule{.window_left = 3, .window_right = 2},
                           Rule{.query_start = 0},
                           Rule{.query_start = 5, .window_left = 6, .sinks = 2},
                           Rule{.query_start = -4}};
  std::vector<int64_t> windows, documents, key_documents, starts, ends;
  for (int64_t h = 0; h < s.heads; ++h) windows.push_back(h == 1 ? -1 : h * 3);
  all.push_back({.sinks = 1, .head_window = longs(windows, {s.heads})});
  all.push_back({.window_right = std::nullopt, .key_lengths = longs({s.keys - 9, 0}, {s.batch})});
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t j = 0; j < s.keys; ++j) key_documents.push_back((j + 3 * b) / 10);
    for (int64_t i = 0; i < s.queries; ++i) documents.push_back((s.keys - s.queries + i + 3 * b) / 10);
  }
  all.push_back({.query_documents = longs(documents, {s.batch, s.queries}),
                 .key_documents = longs(key_documents, {s.batch, s.keys})});
  for (int64_t n = 0; n < s.heads * s.queries; ++n) starts.push_back(n % 7), ends.push_back(5 + n % 23);
  all.push_back({.window_right = std::nullopt,
                 .row_start = longs(starts, {1, s.heads, s.queries}),
                 .row_end = longs(ends, {1, s.heads, s.queries})});
  return all;
}

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
  const auto want = test::oracle_attention(to_array(p.q), to_array(p.k), to_array(p.v), p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), kSingle));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), kSingle));
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
  const auto want = test::oracle_attention(to_array(p.q), to_array(p.k), to_array(p.v), p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), kSingle));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), kSingle));
  got.out.sum().backward();
  EXPECT_TRUE(p.q.grad().isfinite().all().item<bool>());
  EXPECT_EQ(p.k.grad().select(2, 3).abs().max().item<float>(), 0);
  EXPECT_EQ(p.q.grad().select(2, 5).abs().max().item<float>(), 0);
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

TEST_P(AttendAtLevel, one_query_no_query_one_key_no_key) {
  for (const int64_t queries : {0, 1, 2})
    for (const int64_t keys : {0, 1, 5})
      expect_oracle_in_both(
          rule_problem({.queries = queries, .keys = keys}, Rule{.query_start = 0, .window_right = std::nullopt}));
}

TEST_P(AttendAtLevel, low_precision_is_as_close_as_its_inputs_allow) {
  const Shape shape{.batch = 1, .heads = 4, .kv_heads = 2, .queries = 40, .keys = 77, .dim = 32, .value_dim = 16};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const double unit = type == at::kHalf ? 1e-3 : 8e-3;  // one rounding of the result; sums run in fp32
    for (const Problem& p : {rule_problem(shape, {.window_left = 20, .sinks = 2}), token_problem(shape, 2, 8, {})}) {
      const Tensor q = p.q.to(type), k = p.k.to(type), v = p.v.to(type);
      const Attended got = attend(q, k, v, p.plan);
      const auto want = test::oracle_attention(to_array(q), to_array(k), to_array(v), p.visible, oracle_score(p));
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
  for (const Rule& rule : rules(shape)) problems.push_back(rule_problem(shape, rule));
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
