// XAttention against its specification as plain loops, and the golden numbers of the specification.
#include "foveate/attention/sparse/xattention.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "foveate/base/random.h"
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

// One query head of one sample.
struct HeadOracle {
  const XAttention& o;
  const Inputs& in;
  const Array &q, &k;
  int64_t b, h, kv = h * k.shape[1] / q.shape[1];
  int64_t queries = q.shape[2], keys = k.shape[2], start = keys - queries;
  int64_t rows = (queries + o.block - 1) / o.block, blocks = (keys + o.block - 1) / o.block;

  // Which query of a group meets key s: the antidiagonal's, shuffled by the seed where it is random.
  std::vector<int64_t> order = [&] {
    std::vector<int64_t> places;
    for (int64_t s = 0; s < o.stride; ++s)
      places.push_back(o.select == XAttention::Select::slash ? s : o.stride - 1 - s);
    if (o.select == XAttention::Select::random) Random(uint64_t(o.seed)).shuffle(std::span(places));
    return places;
  }();

  double product(int64_t i, int64_t j) const {
    if (i >= queries || j >= keys) return 0;
    double sum = 0;
    for (int64_t d = 0; d < q.shape[3]; ++d) sum += q.at(b, h, i, d) * k.at(b, kv, j, d);
    return sum;
  }
  // Mean product of query group a and key group c along their lines.
  double logit(int64_t a, int64_t c) const {
    const int64_t stride = o.stride;
    double sum = 0;
    for (int64_t s = 0; s < stride; ++s) {
      const int64_t i = a * stride + order[size_t(s)];
      const auto key = [&](int64_t off) { return product(i, c * stride + (s + off + stride) % stride); };
      switch (o.select) {
        case XAttention::Select::two_lines:
          sum += key(0) + key(1);
          break;
        case XAttention::Select::three_lines:
          sum += key(-1) + 2 * key(0) + key(1);
          break;
        default:
          sum += key(0);
      }
    }
    return sum * in.score.scale.value_or(1 / std::sqrt(double(q.shape[3]))) / double(stride);
  }
  std::vector<double> shares(int64_t r) const {
    std::vector<double> z(static_cast<size_t>(blocks), 0.0);
    const int64_t each = o.block / o.stride, left = in.rule.window_left.value_or(1 << 30);
    for (int64_t a = r * each; a < std::min((r + 1) * each, (queries + o.stride - 1) / o.stride); ++a) {
      const int64_t position = start + a * o.stride;
      std::vector<double> weight;
      double sum = 0;
      for (int64_t c = 0; c * o.stride <= position; ++c) {
        const bool inside = (c + 1) * o.stride > position - left || c * o.stride < in.rule.sinks;
        weight.push_back(inside ? std::exp(logit(a, c)) : 0);
        sum += weight.back();
      }
      for (size_t c = 0; c < weight.size(); ++c) z[c / size_t(each)] += weight[c] / sum;
    }
    return z;
  }
  std::set<int64_t> kept(int64_t r, double tau) const {
    std::set<int64_t> seen, taken;
    for (int64_t c = 0; c < blocks; ++c)
      for (int64_t i = r * o.block; i < std::min((r + 1) * o.block, queries); ++i)
        for (int64_t j = c * o.block; j < std::min((c + 1) * o.block, keys); ++j)
          if (rule_shows(in, i, j)) seen.insert(c);
    if (seen.count(0)) taken.insert(0);
    for (int64_t i = r * o.block; i < std::min((r + 1) * o.block, queries); ++i) taken.insert((start + i) / o.block);
    const auto z = shares(r);
    double total = 0, held = 0;
    std::vector<std::pair<double, int64_t>> order;
    for (const int64_t c : seen) {
      total += z[size_t(c)];
      if (taken.count(c))
        held += z[size_t(c)];
      else
        order.emplace_back(-z[size_t(c)], c);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [share, c] : order) {
      if (tau < 1 && held >= tau * total) break;
      taken.insert(c), held -= share;
    }
    return taken;
  }
};

test::OracleResult oracle(const XAttention& o, const Inputs& in, const std::vector<double>& taus) {
  const Array q = to_array(in.q), k = to_array(in.k);
  std::vector<std::set<int64_t>> kept;
  int64_t rows = 0;
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h) {
      const HeadOracle head{o, in, q, k, b, h};
      rows = head.rows;
      for (int64_t r = 0; r < head.rows; ++r) kept.push_back(head.kept(r, taus[size_t(h) % taus.size()]));
    }
  return test::oracle_attention(
      q, k, to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        return int(rule_shows(in, i, j) && kept[size_t((b * q.shape[1] + h) * rows + i / o.block)].count(j / o.block));
      },
      {.scale = in.score.scale.value_or(1 / std::sqrt(double(q.shape[3])))});
}

Inputs make_inputs(int64_t queries, int64_t keys, uint64_t seed = 1) {
  Inputs in = test::random_call(queries, keys, {.dim = 6, .seed = seed});
  in.q = in.q * 2, in.k = in.k * 2;
  return in;
}

// The numbers of the specification: D 2, stride 2, block 4, 16 tokens.
Inputs golden_inputs() {
  Array q(1, 1, 16, 2), k(1, 1, 16, 2);
  for (int64_t i = 0; i < 16; ++i) {
    q.at(0, 0, i, 0) = double((7 * i) % 5 - 2) / 2, q.at(0, 0, i, 1) = double((3 * i) % 7 - 3) / 3;
    k.at(0, 0, i, 0) = double((5 * i) % 7 - 3) / 3, k.at(0, 0, i, 1) = double((4 * i) % 5 - 2) / 2;
  }
  Inputs in;
  in.q = to_tensor(q), in.k = to_tensor(k), in.v = in.k;
  return in;
}

std::vector<std::set<int64_t>> planned(const XAttention& o, const Inputs& in) {
  const Attended got = o.attend(in);
  const auto& plan = std::get<BlockPlan>(got.plans[0].plan);
  std::vector<std::set<int64_t>> rows(static_cast<size_t>(plan.count.size(2)));
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int64_t n = 0; n < plan.count[0][0][r].item<int64_t>(); ++n)
      rows[r].insert(plan.index[0][0][r][n].item<int64_t>());
    for (int64_t n = 0; n < (*plan.full_count)[0][0][r].item<int64_t>(); ++n)
      rows[r].insert((*plan.full_index)[0][0][r][n].item<int64_t>());
  }
  return rows;
}

TEST(XAttention, golden_shares_and_blocks) {
  const at::NoGradGuard no_grad;
  const Inputs in = golden_inputs();
  const XAttention half{.block = 4, .stride = 2, .tau = 0.5}, most{.block = 4, .stride = 2, .tau = 0.8};
  const at::Tensor want = at::tensor({2.0, 0.0, 0.0, 0.0, 1.309958, .690042, 0.0, 0.0, .660308, .882608, .457083, 0.0,
                                      .504007, .481607, .536229, .478156},
                                     at::kDouble);
  EXPECT_TRUE(same(half.estimate(in), want.view({1, 1, 4, 4}), {1e-6, 0}));
  EXPECT_EQ(planned(half, in), (std::vector<std::set<int64_t>>{{0}, {0, 1}, {0, 2}, {0, 2, 3}}));
  EXPECT_EQ(planned(most, in), (std::vector<std::set<int64_t>>{{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}}));
}

TEST(XAttention, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const auto select : {XAttention::Select::antidiagonal, XAttention::Select::slash, XAttention::Select::random,
                            XAttention::Select::two_lines, XAttention::Select::three_lines})
    for (const auto& [block, stride] : std::vector<std::pair<int64_t, int64_t>>{{8, 4}, {12, 2}, {8, 8}, {5, 1}})
      for (const double tau : {0.3, 0.7})
        for (const auto& [queries, keys] :
             std::vector<std::pair<int64_t, int64_t>>{{96, 96}, {53, 53}, {24, 71}, {7, 7}}) {
          const XAttention o{.block = block, .stride = stride, .tau = tau, .select = select};
          const Inputs in = make_inputs(queries, keys);
          const Attended got = o.attend(in);
          const auto want = oracle(o, in, {tau});
          ASSERT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10}))
              << to_spec(o).text() << " " << queries << " of " << keys;
          ASSERT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
        }
}

TEST(XAttention, strips_of_a_longer_prompt_equal_the_plain_loops) {
  const at::NoGradGuard no_grad;
  const XAttention o{.block = 4, .stride = 2, .tau = 0.5};
  const Inputs in = make_inputs(301, 301);  // more groups of queries than are multiplied at a time
  EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in, {0.5}).out), {1e-10, 1e-10}));
}

TEST(XAttention, stride_and_block_of_one_are_the_softmax_itself) {
  const Inputs in = make_inputs(19, 19);
  const at::Tensor logits = in.q.matmul(in.k.repeat_interleave(2, 1).transpose(2, 3)) / std::sqrt(6.0);
  const at::Tensor hidden = at::ones({19, 19}, at::kBool).triu(1);
  const at::Tensor want = logits.masked_fill(hidden, -INFINITY).softmax(-1);
  EXPECT_TRUE(same(XAttention{.block = 1, .stride = 1}.estimate(in), want, {1e-12, 1e-12}));
}

TEST(XAttention, every_head_has_its_tau) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(96, 96);
  const XAttention o{.block = 8, .stride = 4, .head_tau = "0.2/0.9/1/0.5"};
  EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in, {0.2, 0.9, 1, 0.5}).out), {1e-10, 1e-10}));
}

TEST(XAttention, a_layer_with_its_own_window_selects_inside_it) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(96, 96);
  for (const int64_t window : {3, 20, 50})
    for (const int64_t sinks : {0, 10}) {
      in.rule.window_left = window, in.rule.sinks = sinks;
      const XAttention o{.block = 8, .stride = 4, .tau = 0.5};
      // block 0 is kept only where a row sees it, as everything is checked by the rule
      EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, in, {0.5}).out), {1e-10, 1e-10})) << window;
    }
}

TEST(XAttention, more_tau_keeps_more) {
  const at::NoGradGuard no_grad;
  const Inputs in = golden_inputs();
  std::vector<std::set<int64_t>> before(4);
  for (const double tau : {0.01, 0.2, 0.5, 0.8, 0.99, 1.0}) {
    const auto rows = planned({.block = 4, .stride = 2, .tau = tau}, in);
    for (size_t r = 0; r < 4; ++r) {
      EXPECT_TRUE(std::includes(rows[r].begin(), rows[r].end(), before[r].begin(), before[r].end()));
      EXPECT_TRUE(rows[r].count(0) && rows[r].count(int64_t(r)));
    }
    before = rows;
  }
}

TEST(XAttention, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(200, 200);
  const XAttention base{.block = 8, .stride = 4, .tau = 0.5};
  const auto differs = [&](const char* name, auto change, XAttention from) {
    XAttention other = from;
    change(other);
    EXPECT_FALSE(other.attend(in).out.equal(from.attend(in).out)) << name;
  };
  differs(
      "block", [](XAttention& o) { o.block = 16; }, base);
  differs(
      "stride", [](XAttention& o) { o.stride = 2; }, base);
  differs(
      "tau", [](XAttention& o) { o.tau = 0.7; }, base);
  differs(
      "head_tau", [](XAttention& o) { o.head_tau = "0.1/0.9/0.5/0.5"; }, base);
  for (const auto select : {XAttention::Select::slash, XAttention::Select::random, XAttention::Select::two_lines,
                            XAttention::Select::three_lines})
    differs(
        "select", [&](XAttention& o) { o.select = select; }, base);
  XAttention random = base;
  random.select = XAttention::Select::random;
  differs(
      "seed", [](XAttention& o) { o.seed = 3; }, random);
}

TEST(XAttention, generated_rows_are_dense_with_and_without_a_state) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(60, 60);
  const XAttention o{.block = 8, .stride = 4, .tau = 0.3};
  Inputs prompt = in, row = in, one = in;
  prompt.q = in.q.narrow(2, 0, 59), prompt.k = in.k.narrow(2, 0, 59), prompt.v = in.v.narrow(2, 0, 59);
  row.q = in.q.narrow(2, 59, 1), row.k = in.k.narrow(2, 59, 1), row.v = in.v.narrow(2, 59, 1);
  one.q = row.q;
  const at::Tensor want = Dense{}.attend(one).out;
  EXPECT_TRUE(o.attend(one).out.equal(want));
  const auto state = o.make_state({}), chunks = o.make_state({});
  EXPECT_TRUE(same(state->prefill(prompt).out, to_tensor(oracle(o, prompt, {0.3}).out), {1e-10, 1e-10}));
  EXPECT_TRUE(same(state->decode(row).out, want, {1e-12, 1e-12}));
  chunks->prefill(prompt);  // as a chunk of the prompt the row goes by its blocks
  EXPECT_TRUE(same(chunks->prefill(row).out, to_tensor(oracle(o, one, {0.3}).out), {1e-10, 1e-10}));
}

std::string message_of(const std::string& spec, const Rule& rule = {}) {
  Inputs in = make_inputs(200, 200);
  in.rule = rule;
  return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(in); });
}

TEST(XAttention, refuses_what_it_cannot_do) {
  EXPECT_EQ(message_of("xattention:stride=12"), "xattention: block must be a multiple of stride, got 128 and 12");
  EXPECT_EQ(message_of("xattention:tau=0"), "xattention: tau must be > 0 .. 1, got 0");
  EXPECT_EQ(message_of("xattention:tau=1.5"), "xattention: tau must be 0 .. 1, got 1.5");
  EXPECT_EQ(message_of("xattention:head_tau=0.5/x"),
            "xattention: head_tau must be numbers > 0 .. 1 as 0.9/0.8, got '0.5/x'");
  EXPECT_EQ(message_of("xattention:head_tau=0.5/0.6"),
            "xattention: head_tau must be one for each of 4 query heads, got 2");
  EXPECT_EQ(message_of("xattention", Rule::full()),
            "xattention: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message_of("xattention"), "no error");
}

}  // namespace
}  // namespace foveate::attention
