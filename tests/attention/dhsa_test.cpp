// DHSA against its specification as plain loops, token by token, and against its golden numbers.
#include "foveate/attention/sparse/dhsa.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/ops/select/pool.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::Bound;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

// x[first .. last) of heads [h0, h1), pooled to one vector.
std::vector<double> pooled(const Array& x, int64_t b, int64_t h0, int64_t h1, int64_t first, int64_t last,
                           Dhsa::Pooling how) {
  std::vector<double> sum(size_t(x.shape[3]), how == Dhsa::Pooling::maxpool ? -INFINITY : 0);
  for (int64_t d = 0; d < x.shape[3]; ++d)
    for (int64_t i = first; i < last; ++i) {
      double mean = 0;
      for (int64_t h = h0; h < h1; ++h) mean += x.at(b, h, i, d) / double(h1 - h0);
      double& s = sum[size_t(d)];
      s = how == Dhsa::Pooling::maxpool ? std::max(s, mean) : s + mean;
    }
  const double n = double(last - first);
  for (double& s : sum) {
    if (how == Dhsa::Pooling::avgpool) s /= n;
    if (how == Dhsa::Pooling::avgpool_norm) s /= std::sqrt(n);
  }
  return sum;
}

// The keys that rows [first, last) at positions p0 + first ... select, by sorting every token's score.
std::set<int64_t> select(const Dhsa& o, const Array& q, const Array& k, int64_t b, int64_t h, int64_t first,
                         int64_t last, int64_t p0, int64_t keys, std::optional<int64_t> window) {
  const int64_t kv = k.shape[1], group = q.shape[1] / kv;
  const int64_t k0 = o.head_share ? 0 : h, k1 = o.head_share ? kv : h + 1;
  const auto query = pooled(q, b, k0 * group, k1 * group, first, last, o.pooling);
  const int64_t end = p0 + last, start = window ? std::max<int64_t>(0, p0 + first - *window) : 0;
  std::vector<std::pair<double, int64_t>> order;  // (-score, key): sorts by score, then index
  std::set<int64_t> chosen;
  const int64_t local_first = o.local_anchor == Dhsa::LocalAnchor::block_end
                                  ? end - o.local_tokens
                                  : p0 + first + 1 - std::max<int64_t>(o.local_tokens, 1);
  for (int64_t j = start; j < end; ++j) {
    if (j < start + o.global_tokens || j >= local_first) {
      chosen.insert(j);
      continue;
    }
    const int64_t c0 = j / o.chunk * o.chunk, c1 = std::min(c0 + o.chunk, keys);
    const auto mean = pooled(k, b, k0, k1, c0, c1, o.pooling);
    double score = 0;
    for (size_t d = 0; d < mean.size(); ++d) score += mean[d] * query[d];
    // One score a chunk, to the rounding of fp32: ties inside a chunk must stay ties.
    order.emplace_back(-score, j);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [score, j] : order)
    if (std::ssize(chosen) < o.budget) chosen.insert(j);
  return chosen;
}

test::OracleResult oracle(const Dhsa& o, const Inputs& in, int64_t dense_rows = 0) {
  const Array q = to_array(in.q), k = to_array(in.k);
  const int64_t queries = q.shape[2], keys = k.shape[2], p0 = keys - queries, rows = queries - dense_rows;
  const int64_t blocks = (rows + o.query_block - 1) / o.query_block, kv = k.shape[1];
  std::vector<std::set<int64_t>> chosen;  // [b, kv, block]
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < kv; ++h)
      for (int64_t block = 0; block < blocks; ++block)
        chosen.push_back(select(o, q, k, b, h, block * o.query_block, std::min((block + 1) * o.query_block, rows), p0,
                                keys, in.rule.window_left));
  return test::oracle_attention(
      q, k, to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
        if (j > p0 + i || (in.rule.window_left && j < p0 + i - *in.rule.window_left)) return 0;
        if (i >= rows) return 1;
        return int(chosen[size_t((b * kv + h * kv / q.shape[1]) * blocks + i / o.query_block)].count(j));
      },
      {.scale = 1 / std::sqrt(double(q.shape[3])), .soft_cap = in.score.soft_cap, .bias = {}, .sink = {}});
}

Inputs make_inputs(int64_t queries, int64_t keys, int64_t batch = 2) {
  return test::random_call(queries, keys, {.batch = batch});
}

std::vector<Dhsa> variants() {
  std::vector<Dhsa> all;
  for (const bool head_share : {true, false})
    for (const auto pooling : {Dhsa::Pooling::avgpool_norm, Dhsa::Pooling::avgpool, Dhsa::Pooling::maxpool})
      for (const auto anchor : {Dhsa::LocalAnchor::block_start, Dhsa::LocalAnchor::block_end})
        for (const int64_t chunk : {1, 4, 7})
          all.push_back({.query_block = 8,
                         .budget = 19,
                         .global_tokens = 3,
                         .local_tokens = 4,
                         .chunk = chunk,
                         .pooling = pooling,
                         .local_anchor = anchor,
                         .head_share = head_share});
  return all;
}

TEST(Dhsa, every_variant_equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const Dhsa& o : variants())
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{{61, 61}, {24, 61}, {1, 40}, {5, 5}}) {
      const Inputs in = make_inputs(queries, keys);
      const Attended got = o.attend_prompt(in);
      const auto want = oracle(o, in);
      EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10}))
          << to_spec(o).text() << " " << queries << " of " << keys;
      EXPECT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
    }
}

TEST(Dhsa, a_layer_with_its_own_window_selects_inside_it) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(61, 61);
  for (const int64_t window : {5, 20, 45}) {
    in.rule.window_left = window;
    for (const Dhsa& o : variants())
      EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in).out), {1e-10, 1e-10})) << window;
  }
}

TEST(Dhsa, instruction_rows_attend_densely_at_the_end_of_the_prompt_only) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(50, 61);
  Dhsa o = variants()[1];
  o.instruction_tokens = 13;
  EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in, 13).out), {1e-10, 1e-10}));
  in.ends_prompt = false;
  EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in).out), {1e-10, 1e-10}));
  in.ends_prompt = true;
  o.instruction_tokens = 500;
  EXPECT_TRUE(same(o.attend(in).out, Dense{}.attend(in).out, {1e-12, 1e-12}));
}

TEST(Dhsa, sparse_decode_is_a_block_of_one) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(70, 70);
  for (Dhsa o : variants()) {
    o.decode = Dhsa::Decode::sparse;
    const auto state = o.make_state({});
    const auto part = [&](int64_t first, int64_t count) {
      Inputs rows = in;
      rows.q = in.q.narrow(2, first, count), rows.k = in.k.narrow(2, first, count),
      rows.v = in.v.narrow(2, first, count);
      return rows;
    };
    state->prefill(part(0, 40));
    for (int64_t row = 40; row < 70; ++row) {
      const at::Tensor got = state->decode(part(row, 1)).out;
      if (row == 55) state->truncate(row), state->decode(part(row, 1));  // going back must not spoil the summaries
      Inputs one = in;
      one.q = in.q.narrow(2, row, 1), one.k = in.k.narrow(2, 0, row + 1), one.v = in.v.narrow(2, 0, row + 1);
      Dhsa single = o;
      single.query_block = 1;
      ASSERT_TRUE(same(got, to_tensor(oracle(single, one).out), {1e-10, 1e-10})) << to_spec(o).text() << " row " << row;
    }
  }
}

TEST(Dhsa, lists_are_sorted_unique_within_the_block_and_as_long_as_the_budget) {
  const at::NoGradGuard no_grad;
  const Dhsa o = variants()[0];
  const Attended got = o.attend(make_inputs(61, 61));
  const at::Tensor index = std::get<TokenPlan>(got.plans[0].plan).index;
  for (int64_t block = 0; block < index.size(2); ++block) {
    int64_t previous = -1, count = 0;
    for (int64_t n = 0; n < index.size(3); ++n) {
      const int64_t key = index[0][0][block][n].item<int64_t>();
      if (key < 0) continue;
      EXPECT_GT(key, previous);
      EXPECT_LT(key, (block + 1) * o.query_block);
      previous = key;
      ++count;
    }
    EXPECT_EQ(count, std::min<int64_t>({o.budget, (block + 1) * o.query_block, 61}));
  }
}

TEST(Dhsa, selection_ignores_the_scale_of_queries) {
  const at::NoGradGuard no_grad;
  const Dhsa o = variants()[2];
  Inputs in = make_inputs(61, 61), larger = in;
  larger.q = in.q * 8;
  EXPECT_TRUE(std::get<TokenPlan>(o.attend(in).plans[0].plan)
                  .index.equal(std::get<TokenPlan>(o.attend(larger).plans[0].plan).index));
}

// The specification's worked example: ragged chunks, so it drives the pieces that attend() is made of.
struct Golden {
  at::Tensor q, k, v;
  std::vector<int64_t> cuts = {0, 3, 4, 8, 12};
  Golden() {
    Array q_(1, 1, 12, 2), k_(1, 1, 12, 2), v_(1, 1, 12, 2);
    for (int64_t i = 0; i < 12; ++i) {
      q_.at(0, 0, i, 0) = double((7 * i) % 5 - 2) / 2, q_.at(0, 0, i, 1) = double((3 * i) % 7 - 3) / 3;
      k_.at(0, 0, i, 0) = double((5 * i) % 7 - 3) / 3, k_.at(0, 0, i, 1) = double((4 * i) % 5 - 2) / 2;
      v_.at(0, 0, i, 0) = double(i), v_.at(0, 0, i, 1) = double(i % 3);
    }
    q = to_tensor(q_), k = to_tensor(k_), v = to_tensor(v_);
  }
};

TEST(Dhsa, golden_scores_lists_and_outputs) {
  const at::NoGradGuard no_grad;
  const Golden g;
  const Dhsa o{.query_block = 4,
               .budget = 6,
               .global_tokens = 1,
               .local_tokens = 2,
               .local_anchor = Dhsa::LocalAnchor::block_end};
  const at::Tensor chunks = o.pool(g.k, g.cuts), blocks = o.pool(g.q, ops::even_cuts(12, 4));
  const double chunk_golden[4][2] = {{-.19245, .288675}, {-.666667, 0}, {0, 0}, {.5, -.25}};
  const double block_golden[3][2] = {{-.25, -.166667}, {.25, -.333333}, {-.5, .666667}};
  for (int64_t c = 0; c < 4; ++c)
    for (int64_t d = 0; d < 2; ++d) EXPECT_NEAR(chunks[0][0][c][d].item<double>(), chunk_golden[c][d], 1e-6);
  for (int64_t b = 0; b < 3; ++b)
    for (int64_t d = 0; d < 2; ++d) EXPECT_NEAR(blocks[0][0][b][d].item<double>(), block_golden[b][d], 1e-6);
  const at::Tensor scores = blocks.matmul(chunks.transpose(2, 3));
  const double row1[4] = {-.144338, -.166667, 0, .208333}, row2[4] = {.288675, .333333, 0, -.416667};
  for (int64_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(scores[0][0][1][c].item<double>(), row1[c], 1e-6);
    EXPECT_NEAR(scores[0][0][2][c].item<double>(), row2[c], 1e-6);
  }
  Inputs in;
  in.q = g.q, in.k = g.k, in.v = g.v;
  const at::Tensor index = ops::select_tokens(scores, g.cuts, o.candidates(in, 4), 6);
  const int64_t lists[3][6] = {{0, 1, 2, 3, -1, -1}, {0, 1, 4, 5, 6, 7}, {0, 1, 2, 3, 10, 11}};
  for (int64_t b = 0; b < 3; ++b)
    for (int64_t n = 0; n < 6; ++n) EXPECT_EQ(index[0][0][b][n].item<int64_t>(), lists[b][n]) << b << " " << n;
  const at::Tensor out = ops::attend(g.q, g.k, g.v, TokenPlan{4, index, Rule{}}).out;
  const std::pair<int64_t, std::array<double, 2>> rows[] = {
      {4, {1.81777, .877973}}, {7, {3.751277, 1.147552}}, {8, {1.470426, .622781}}, {11, {4.614067, 1.185147}}};
  for (const auto& [row, want] : rows)
    for (int64_t d = 0; d < 2; ++d) EXPECT_NEAR(out[0][0][row][d].item<double>(), want[size_t(d)], 1e-5) << row;
}

std::string message_of(const std::string& spec) {
  return test::message_of([&] { parse_options<Dhsa>(parse_spec(spec)).validate(); });
}

TEST(Dhsa, refuses_forced_keys_over_budget) {
  EXPECT_EQ(message_of("dhsa:budget=8"), "dhsa: global_tokens + local_tokens must be <= budget, got 128 + 128 > 8");
  EXPECT_EQ(message_of("dhsa:budget=300"),
            "dhsa: global_tokens + local_tokens - 1 + query_block must be <= budget (or local_anchor=block_end), got "
            "383 > 300");
  EXPECT_EQ(message_of("dhsa:budget=300,local_anchor=block_end"), "no error");
}

}  // namespace
}  // namespace foveate::attention
