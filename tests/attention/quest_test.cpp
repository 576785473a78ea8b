// Quest against plain loops, and its golden numbers.
#include "foveate/attention/sparse/quest.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::random_tensor;
using test::rows_of;
using test::rule_shows;
using test::same;
using test::to_array;
using test::to_tensor;

// Pages that row i of head h keeps: bounds over the keys up to its own.
std::set<int64_t> kept(const Quest& o, const Inputs& in, const Array& q, const Array& k, int64_t b, int64_t h,
                       int64_t i) {
  const int64_t group = q.shape[1] / k.shape[1], p = k.shape[2] - q.shape[2] + i;
  const bool shares = o.share == Quest::Share::group;
  std::set<int64_t> taken;
  std::vector<std::pair<float, int64_t>> order;
  for (int64_t page = 0; page * o.page <= p; ++page) {
    const int64_t first = page * o.page, last = std::min(first + o.page, p + 1);
    bool seen = false;
    for (int64_t j = first; j < last; ++j) seen |= rule_shows(in, i, j);
    if (!seen) continue;
    double score = 0;
    for (int64_t head = shares ? h / group * group : h; head < (shares ? h / group * group + group : h + 1); ++head)
      for (int64_t d = 0; d < q.shape[3]; ++d) {
        double high = -INFINITY, low = INFINITY;
        for (int64_t j = first; j < last; ++j)
          high = std::max(high, k.at(b, head / group, j, d)), low = std::min(low, k.at(b, head / group, j, d));
        score += std::max(q.at(b, head, i, d) * high, q.at(b, head, i, d) * low);
      }
    order.emplace_back(-float(score), page);
  }
  if (o.force_latest) taken.insert(p / o.page);
  std::sort(order.begin(), order.end());
  for (const auto& [score, page] : order)
    if (std::ssize(taken) < std::max(o.least_pages, o.budget / o.page)) taken.insert(page);
  return taken;
}

test::OracleResult oracle(const Quest& o, const Inputs& in) {
  const Array q = to_array(in.q), k = to_array(in.k);
  std::map<std::array<int64_t, 3>, std::set<int64_t>> lists;
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) lists[{b, h, i}] = kept(o, in, q, k, b, h, i);
  return test::oracle_attention(q, k, to_array(in.v),
                                [&](int64_t b, int64_t h, int64_t i, int64_t j) {
                                  return int(rule_shows(in, i, j) && lists[{b, h, i}].count(j / o.page));
                                },
                                {.scale = 1 / std::sqrt(double(q.shape[3]))});
}

Inputs make_inputs(int64_t queries, int64_t keys) { return test::random_call(queries, keys, {.dim = 6}); }

std::vector<Quest> variants() {
  std::vector<Quest> all;
  for (const auto share : {Quest::Share::head, Quest::Share::group})
    for (const bool force_latest : {true, false})
      for (const int64_t page : {4, 7})
        for (const int64_t least : {1, 3})
          all.push_back(
              {.page = page, .budget = 9, .least_pages = least, .share = share, .force_latest = force_latest});
  return all;
}

TEST(Quest, golden_bound) {
  Inputs in;
  in.k = at::tensor({-1.0, -1.0, 2.0 / 3, 1.0, 0.0, 0.5, -2.0 / 3, 0.0}, at::kDouble).view({1, 1, 4, 2});
  const at::Tensor q = at::tensor({1.0, -0.5}, at::kDouble), s = Quest{.page = 4}.summaries(in.k).view({4});
  EXPECT_TRUE(same(s, at::tensor({2.0 / 3, 1.0, -1.0, -1.0}, at::kDouble), {1e-12, 0}));
  const at::Tensor parts = at::cat({q.clamp_min(0), q.clamp_max(0)}, 0);
  EXPECT_NEAR(parts.dot(s).item<double>(), 1.166667, 1e-6);
  EXPECT_NEAR(in.k.view({4, 2}).mv(q).max().item<double>(), 0.166667, 1e-6);
}

TEST(Quest, decoding_equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(60, 60);
  for (const Quest& o : variants()) {
    const auto state = o.make_state({});
    EXPECT_TRUE(same(state->prefill(rows_of(in, 0, 31)).out, Dense{}.attend(rows_of(in, 0, 31)).out, {1e-12, 1e-12}));
    for (int64_t row = 31; row < 60; ++row) {
      Inputs one = rows_of(in, 0, row + 1);
      one.q = in.q.narrow(2, row, 1);
      const at::Tensor want = to_tensor(oracle(o, one).out);
      ASSERT_TRUE(same(state->decode(rows_of(in, row, 1)).out, want, {1e-10, 1e-10})) << to_spec(o).text() << row;
      ASSERT_TRUE(same(o.attend(one).out, want, {1e-10, 1e-10})) << "without a state, row " << row;
    }
  }
}

TEST(Quest, rows_each_equals_the_plain_loops_and_decoding) {
  const at::NoGradGuard no_grad;
  for (Quest o : variants()) {
    o.rows = Quest::Rows::each;
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{{60, 60}, {13, 50}}) {
      const Inputs in = make_inputs(queries, keys);
      const Attended got = o.attend(in);
      const auto want = oracle(o, in);
      ASSERT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10})) << to_spec(o).text();
      ASSERT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
    }
    const Inputs in = make_inputs(60, 60);
    const auto state = o.make_state({});
    ASSERT_TRUE(same(at::cat({state->prefill(rows_of(in, 0, 23)).out, state->decode(rows_of(in, 23, 37)).out}, 2),
                     o.attend(in).out, {1e-10, 1e-10}));
  }
}

TEST(Quest, pages_outside_a_window_or_a_rows_range_are_no_candidates) {
  const at::NoGradGuard no_grad;
  for (Quest o : variants()) {
    o.rows = Quest::Rows::each;
    Inputs in = make_inputs(60, 60);
    for (const int64_t window : {3, 20}) {
      in.rule.window_left = window, in.rule.sinks = window == 20 ? 5 : 0;
      ASSERT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in).out), {1e-10, 1e-10})) << to_spec(o).text();
    }
    in.rule = {.row_start = at::arange(60, at::kLong).sub(25).clamp_min(0).view({1, 1, 60})};
    ASSERT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in).out), {1e-10, 1e-10})) << to_spec(o).text();
  }
}

TEST(Quest, keys_behind_a_new_row_do_not_count) {
  const at::NoGradGuard no_grad;
  const Quest o{.page = 4, .budget = 12};
  Inputs in = make_inputs(1, 60), whole = in;
  whole.k = in.k.narrow(2, 0, 38), whole.v = in.v.narrow(2, 0, 38);
  in.rule.query_start = 37;  // a static cache: what lies behind is anything
  in.k.narrow(2, 38, 22).fill_(100);
  EXPECT_TRUE(same(o.attend(in).out, o.attend(whole).out, {1e-12, 1e-12}));
}

TEST(Quest, a_bound_is_at_least_every_product_of_its_page) {
  const Inputs in = make_inputs(1, 61);
  const Quest o{.page = 8};
  const at::Tensor s = o.summaries(in.k), q = in.q.narrow(1, 0, 1);
  const at::Tensor bound = at::cat({q.clamp_min(0), q.clamp_max(0)}, 3).matmul(s.narrow(1, 0, 1).transpose(2, 3));
  const at::Tensor products = q.matmul(in.k.narrow(1, 0, 1).transpose(2, 3));
  for (int64_t j = 0; j < 61; ++j)
    EXPECT_TRUE(bound.select(3, j / 8).ge(products.select(3, j) - 1e-12).all().item<bool>()) << j;
}

TEST(Quest, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(1, 200);
  const Quest base{.page = 8, .budget = 40};
  const auto differs = [&](const char* name, auto change) {
    Quest other = base;
    change(other);
    EXPECT_FALSE(other.attend(in).out.equal(base.attend(in).out)) << name;
  };
  differs("page", [](Quest& o) { o.page = 4; });
  differs("budget", [](Quest& o) { o.budget = 80; });
  differs("least_pages", [](Quest& o) { o.least_pages = 9; });
  differs("share", [](Quest& o) { o.share = Quest::Share::group; });
  differs("force_latest", [](Quest& o) { o.force_latest = false; });
  Inputs prompt = make_inputs(200, 200);
  Quest each = base;
  each.rows = Quest::Rows::each;
  EXPECT_FALSE(each.attend(prompt).out.equal(base.attend(prompt).out));
}

TEST(Quest, a_budget_of_the_length_is_dense_and_its_bytes_are_fewer_else) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(1, 100);
  const Quest covering{.page = 8, .budget = 104};
  EXPECT_TRUE(covering.attend(in).out.equal(Dense{}.attend(in).out));
  const auto state = Quest{.page = 8, .budget = 24}.make_state({}), dense = Dense{}.make_state({});
  state->prefill(rows_of(make_inputs(100, 100), 0, 100)), dense->prefill(rows_of(make_inputs(100, 100), 0, 100));
  state->decode(rows_of(make_inputs(1, 1), 0, 1)), dense->decode(rows_of(make_inputs(1, 1), 0, 1));
  EXPECT_LT(state->read_bytes(), dense->read_bytes() * 2 / 3);
}

TEST(Quest, refuses_what_it_cannot_do) {
  const auto message_of = [](const std::string& spec, const Rule& rule) {
    Inputs in = make_inputs(100, 100);
    in.rule = rule;
    return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(in); });
  };
  EXPECT_EQ(message_of("quest:page=0", {}), "quest: page must be >= 1, got 0");
  EXPECT_EQ(message_of("quest:rows=each,budget=16", Rule::full()),
            "quest: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message_of("quest:rows=each,budget=16", {.query_start = 3}),
            "quest: queries must sit at keys 0 .. 99, got 100 from 3 on");
}

}  // namespace
}  // namespace foveate::attention
