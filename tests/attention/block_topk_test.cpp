// Best blocks by means, against plain loops.
#include "foveate/attention/sparse/block_topk.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
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
using test::rule_shows;
using test::same;
using test::to_array;
using test::to_tensor;
using HeadShare = BlockTopk::HeadShare;

std::vector<double> mean(const Array& x, int64_t b, int64_t h, int64_t first, int64_t last) {
  std::vector<double> sum(size_t(x.shape[3]), 0.0);
  for (size_t d = 0; d < sum.size(); ++d)
    for (int64_t i = first; i < last; ++i) sum[d] += x.at(b, h, i, int64_t(d)) / double(last - first);
  return sum;
}

// Blocks that block of queries r of head h keeps.
std::set<int64_t> kept(const BlockTopk& o, const Inputs& in, const Array& q, const Array& k, int64_t b, int64_t h,
                       int64_t r) {
  const int64_t keys = k.shape[2], heads = q.shape[1], group = heads / k.shape[1], start = keys - q.shape[2];
  const int64_t first = r * o.query_block, last = std::min(first + o.query_block, q.shape[2]);
  const int64_t low = o.head_share == HeadShare::all ? 0 : o.head_share == HeadShare::group ? h / group * group : h;
  const int64_t high = o.head_share == HeadShare::all ? heads : o.head_share == HeadShare::group ? low + group : h + 1;
  std::set<int64_t> seen, taken;
  std::vector<std::pair<float, int64_t>> order;
  for (int64_t c = 0; c * o.block < keys; ++c) {
    const int64_t end = std::min((c + 1) * o.block, keys);
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = c * o.block; j < end; ++j)
        if (rule_shows(in, i, j)) seen.insert(c);
    double score = 0;
    for (int64_t head = low; head < high; ++head) {
      const auto x = mean(q, b, head, first, last), y = mean(k, b, head / group, c * o.block, end);
      for (size_t d = 0; d < x.size(); ++d) score += x[d] * y[d];
    }
    if (seen.count(c)) order.emplace_back(-float(score), c);
  }
  for (int64_t i = first; i < last; ++i) taken.insert((start + i) / o.block);
  const int64_t take = o.density > 0 ? int64_t(o.density * double(seen.size())) : o.blocks;
  std::sort(order.begin(), order.end());
  for (const auto& [score, c] : order)
    if (std::ssize(taken) < take) taken.insert(c);
  return taken;
}

test::OracleResult oracle(const BlockTopk& o, const Inputs& in) {
  const Array q = to_array(in.q), k = to_array(in.k);
  std::map<std::array<int64_t, 3>, std::set<int64_t>> lists;
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t r = 0; r * o.query_block < q.shape[2]; ++r) lists[{b, h, r}] = kept(o, in, q, k, b, h, r);
  return test::oracle_attention(
      q, k, to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        return int(rule_shows(in, i, j) && lists[{b, h, i / o.query_block}].count(j / o.block));
      },
      {.scale = 1 / std::sqrt(double(q.shape[3]))});
}

Inputs make_inputs(int64_t queries, int64_t keys) { return test::random_call(queries, keys, {.dim = 6}); }

std::vector<BlockTopk> variants() {
  std::vector<BlockTopk> all;
  for (const HeadShare share : {HeadShare::none, HeadShare::group, HeadShare::all})
    for (const auto& [query_block, block] :
         std::vector<std::pair<int64_t, int64_t>>{{8, 8}, {16, 4}, {4, 16}, {1, 8}, {5, 7}}) {
      all.push_back({.query_block = query_block, .block = block, .blocks = 3, .head_share = share});
      all.push_back({.query_block = query_block, .block = block, .density = 0.4, .head_share = share});
    }
  return all;
}

TEST(BlockTopk, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const BlockTopk& o : variants())
    for (const auto& [queries, keys] :
         std::vector<std::pair<int64_t, int64_t>>{{64, 64}, {61, 61}, {20, 75}, {1, 30}}) {
      const Inputs in = make_inputs(queries, keys);
      const Attended got = o.attend(in);
      const auto want = oracle(o, in);
      ASSERT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10})) << to_spec(o).text() << " " << queries;
      ASSERT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
    }
}

TEST(BlockTopk, a_layer_with_its_own_window_selects_inside_it) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(61, 61);
  for (const BlockTopk& o : variants())
    for (const int64_t window : {3, 30})
      for (const int64_t sinks : {0, 10}) {
        in.rule.window_left = window, in.rule.sinks = sinks;
        ASSERT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in).out), {1e-10, 1e-10})) << to_spec(o).text();
      }
}

TEST(BlockTopk, generated_rows_are_blocks_of_one) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(60, 60);
  const auto rows = [&](int64_t first, int64_t count) {
    Inputs part = in;
    part.q = in.q.narrow(2, first, count), part.k = in.k.narrow(2, first, count), part.v = in.v.narrow(2, first, count);
    return part;
  };
  for (BlockTopk o : variants()) {
    const auto state = o.make_state({});
    state->prefill(rows(0, 31));
    for (int64_t row = 31; row < 60; ++row) {
      Inputs whole = rows(0, row + 1);
      whole.q = in.q.narrow(2, row, 1);
      ASSERT_TRUE(same(state->decode(rows(row, 1)).out, to_tensor(oracle(o, whole).out), {1e-10, 1e-10}))
          << to_spec(o).text() << " row " << row;
      BlockTopk dense = o;
      dense.decode = BlockTopk::Decode::dense;
      ASSERT_TRUE(dense.attend(whole).out.equal(Dense{}.attend(whole).out));
    }
  }
}

TEST(BlockTopk, refuses_what_it_cannot_do) {
  const auto message_of = [](const std::string& spec, const Rule& rule) {
    Inputs in = make_inputs(20, 20);
    in.rule = rule;
    return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(in); });
  };
  EXPECT_EQ(message_of("block_topk:blocks=0", {}), "block_topk: blocks must be >= 1, got 0");
  EXPECT_EQ(message_of("block_topk:block=0", {}), "block_topk: block must be >= 1, got 0");
  EXPECT_EQ(message_of("block_topk", Rule::full()),
            "block_topk: attention must be causal, got a rule that shows later keys; use dense");
}

}  // namespace
}  // namespace foveate::attention
