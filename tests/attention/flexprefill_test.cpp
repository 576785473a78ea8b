// FlexPrefill against its definition as plain loops.
#include "foveate/attention/sparse/flexprefill.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "foveate/attention/dense.h"
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

using Numbers = std::vector<double>;

// Places from the best on, values compared in fp32, equal ones by place.
std::vector<int64_t> ordered(const Numbers& values) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return float(values[size_t(a)]) > float(values[size_t(b)]); });
  return order;
}

int64_t fewest_that_hold(const Numbers& values, double share) {
  const double all = std::accumulate(values.begin(), values.end(), 0.0);
  double held = 0;
  int64_t count = 0;
  for (const int64_t place : ordered(values)) {
    if (held >= share * all) break;
    held += values[size_t(place)], ++count;
  }
  return count;
}

std::set<int64_t> best(Numbers values, int64_t count) {
  values[0] = 1e9;
  const auto order = ordered(values);
  return {order.begin(), order.begin() + std::min<int64_t>(count, std::ssize(order))};
}

void softmax(Numbers& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& x : logits) sum += x = std::exp(x - top);
  for (double& x : logits) x /= sum;
}

struct HeadOracle {
  const FlexPrefill& o;
  const Inputs& in;
  const Array &q, &k;
  int64_t b, h, kv = h * k.shape[1] / q.shape[1], dim = q.shape[3];
  int64_t queries = q.shape[2], keys = k.shape[2], start = keys - queries;
  int64_t rows = (queries + o.block - 1) / o.block, blocks = (keys + o.block - 1) / o.block;
  int64_t asking = std::min(o.block, queries);
  bool aware = false;

  double logit(const Numbers& query, const Numbers& key) const {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += query[size_t(d)] * key[size_t(d)];
    sum *= in.score.scale.value_or(1 / std::sqrt(double(dim)));
    return in.score.soft_cap ? *in.score.soft_cap * std::tanh(sum / *in.score.soft_cap) : sum;
  }
  Numbers mean(const Array& x, int64_t head, int64_t first, int64_t last) const {
    Numbers sum(size_t(dim), 0);
    for (int64_t d = 0; d < dim; ++d)
      for (int64_t i = first; i < last; ++i) sum[size_t(d)] += x.at(b, head, i, d) / double(last - first);
    return sum;
  }
  Numbers mean_key(int64_t c) const { return mean(k, kv, c * o.block, std::min((c + 1) * o.block, keys)); }
  bool seen(int64_t first, int64_t last, int64_t c) const {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = c * o.block; j < std::min((c + 1) * o.block, keys); ++j)
        if (rule_shows(in, i, j)) return true;
    return false;
  }
  // softmax of mean query . mean key over the blocks that the queries see
  Numbers estimate(int64_t first, int64_t last) const {
    Numbers logits;
    for (int64_t c = 0; c < blocks; ++c)
      logits.push_back(seen(first, last, c) ? logit(mean(q, h, first, last), mean_key(c)) : -INFINITY);
    softmax(logits);
    return logits;
  }

  std::vector<std::set<int64_t>> kept() {
    Numbers column(size_t(keys), 0), distance(size_t(keys), 0), columns(size_t(blocks), 0), distances = columns;
    for (int64_t i = queries - asking; i < queries; ++i) {
      Numbers weight;
      for (int64_t j = 0; j < keys; ++j)
        weight.push_back(rule_shows(in, i, j) ? logit(mean(q, h, i, i + 1), mean(k, kv, j, j + 1)) : -INFINITY);
      softmax(weight);
      for (int64_t j = 0; j <= start + i; ++j) {
        const double p = weight[size_t(j)] / double(asking);
        column[size_t(j)] += p, columns[size_t(j / o.block)] += p;
        distance[size_t(start + i - j)] += p, distances[size_t((start + i - j) / o.block)] += p;
      }
    }
    const Numbers guess = estimate(queries - asking, queries);
    double divergence = 0;
    for (int64_t c = 0; c < blocks; ++c) {
      const double x = guess[size_t(c)], y = columns[size_t(c)], middle = (x + y) / 2;
      if (x > 0) divergence += x * std::log(x / middle) / 2;
      if (y > 0) divergence += y * std::log(y / middle) / 2;
    }
    aware = std::sqrt(std::max(divergence, 0.0)) < o.tau;
    const int64_t least = (o.min_budget + o.block - 1) / o.block, limit = (o.max_budget + o.block - 1) / o.block;
    const auto clamp = [&](int64_t count) {
      count = std::max(count, least);
      return std::min(count, o.max_budget > 0 ? std::min(limit, blocks) : blocks);
    };
    const int64_t verticals = clamp(aware ? least : fewest_that_hold(column, o.gamma) / o.block + 1);
    const int64_t slashes = clamp(aware ? least : fewest_that_hold(distance, o.gamma) / o.block + 1);
    std::vector<std::set<int64_t>> lists(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t begin = start + r * o.block, end = std::min(begin + o.block, start + queries);
      for (const int64_t c : best(columns, verticals))
        if (c * o.block < end) lists[size_t(r)].insert(c);
      for (const int64_t s : best(distances, slashes))
        for (const int64_t own : {begin / o.block, (end - 1) / o.block})
          if (own - s >= 0) lists[size_t(r)].insert(own - s);
    }
    if (!aware) return lists;
    Numbers map;
    for (int64_t r = 0; r < rows; ++r)
      for (const double p : estimate(r * o.block, std::min((r + 1) * o.block, queries))) map.push_back(p);
    double held = 0;
    for (const int64_t place : ordered(map)) {
      held += map[size_t(place)];
      if (held > o.gamma * double(rows)) break;
      lists[size_t(place / blocks)].insert(place % blocks);
    }
    return lists;
  }
};

struct Oracle {
  test::OracleResult result;
  int64_t aware = 0, heads = 0;
};

Oracle oracle(const FlexPrefill& o, const Inputs& in) {
  const Array q = to_array(in.q), k = to_array(in.k);
  std::vector<std::vector<std::set<int64_t>>> kept;
  Oracle oracle;
  const bool dense =
      q.shape[2] == 0 || k.shape[2] <= 2 * o.block || k.shape[2] <= (o.min_budget + o.block - 1) / o.block * o.block;
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h, ++oracle.heads) {
      HeadOracle head{o, in, q, k, b, h};
      kept.push_back(head.kept());
      oracle.aware += head.aware;
    }
  oracle.result = test::oracle_attention(
      q, k, to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        const bool listed = kept[size_t(b * q.shape[1] + h)][size_t(i / o.block)].count(j / o.block) > 0;
        return int(rule_shows(in, i, j) && (dense || listed));
      },
      {.scale = in.score.scale.value_or(1 / std::sqrt(double(q.shape[3]))), .soft_cap = in.score.soft_cap});
  return oracle;
}

Inputs make_inputs(int64_t queries, int64_t keys, double sharpness = 1, uint64_t seed = 1) {
  Inputs in = test::random_call(queries, keys, {.seed = seed});
  in.q = in.q * sharpness;
  return in;
}

int64_t expect_oracle(const FlexPrefill& o, const Inputs& in) {
  const Attended got = o.attend_prompt(in);  // a single row too
  const Oracle want = oracle(o, in);
  EXPECT_TRUE(same(got.out, to_tensor(want.result.out), {1e-10, 1e-10}))
      << to_spec(o).text() << " " << in.q.size(2) << " of " << in.k.size(2);
  EXPECT_TRUE(same(*got.lse, to_tensor(want.result.lse).squeeze(3), {1e-10, 1e-10})) << to_spec(o).text();
  return want.aware;
}

std::vector<FlexPrefill> variants() {
  std::vector<FlexPrefill> all;
  for (const double gamma : {0.3, 0.9})
    for (const double tau : {0.0, 0.25, 1.0})
      for (const int64_t most : {0, 33})
        all.push_back({.gamma = gamma, .tau = tau, .min_budget = 17, .max_budget = most, .block = 16});
  return all;
}

TEST(FlexPrefill, golden_divergence) {
  const at::Tensor p = at::tensor({.5, .3, .2}), q = at::tensor({.4, .4, .2});
  EXPECT_NEAR(root_of_js_divergence(p, q).item<double>(), .0797947, 5e-8);
  EXPECT_EQ(root_of_js_divergence(p, p).item<double>(), 0);
  const at::Tensor apart = root_of_js_divergence(at::tensor({1., 0., 0.}), at::tensor({0., 1., 0.}));
  EXPECT_NEAR(apart.item<double>(), std::sqrt(std::log(2.)), 1e-12);
}

TEST(FlexPrefill, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  int64_t aware = 0, heads = 0;
  for (const FlexPrefill& o : variants())
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
             {128, 128}, {131, 131}, {48, 112}, {37, 101}, {1, 70}, {32, 32}, {1, 1}}) {
      aware += expect_oracle(o, make_inputs(queries, keys, o.tau == 0.25 ? 0.7 : 2));
      heads += 8;
    }
  EXPECT_GT(aware, 0);
  EXPECT_LT(aware, heads);
}

TEST(FlexPrefill, counts_what_the_model_shows) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(120, 120);
  in.score = {.scale = 0.6, .soft_cap = 1.5};
  for (const int64_t window : {20, 60})
    for (const FlexPrefill& o : variants()) {
      in.rule.window_left = window, in.rule.sinks = 3;
      expect_oracle(o, in);
    }
}

TEST(FlexPrefill, dense_where_all_attention_is_asked_for) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(150, 150);
  const at::Tensor want = Dense{}.attend(in).out;
  for (const double tau : {0.0, 1.0}) {
    const FlexPrefill all{.gamma = 1, .tau = tau, .min_budget = 16, .block = 16};
    const FlexPrefill budget{.gamma = 0.1, .tau = tau, .min_budget = 150, .block = 16};
    EXPECT_TRUE(same(all.attend(in).out, want, {1e-12, 1e-12})) << tau;
    EXPECT_TRUE(budget.attend(in).out.equal(want)) << tau;
  }
}

TEST(FlexPrefill, more_gamma_keeps_more) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(150, 150, 3);
  double before = 0;
  for (const double gamma : {0.1, 0.5, 0.9, 0.99, 1.0}) {
    const FlexPrefill o{.gamma = gamma, .tau = 0, .min_budget = 1, .block = 16};
    const double pairs = visible_pairs(o.attend(in).plans[0].plan, in.q, in.k);
    EXPECT_GE(pairs, before);
    before = pairs;
  }
  EXPECT_EQ(before, visible_pairs(Rule{}, in.q, in.k));
}

TEST(FlexPrefill, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(300, 300, 0.7);
  const FlexPrefill base{.gamma = 0.5, .tau = 0.3, .min_budget = 32, .max_budget = 0, .block = 16};
  const auto differs = [&](const char* name, auto change) {
    FlexPrefill other = base;
    change(other);
    EXPECT_FALSE(other.attend(in).out.equal(base.attend(in).out)) << name;
  };
  differs("gamma", [](FlexPrefill& o) { o.gamma = 0.8; });
  differs("tau", [](FlexPrefill& o) { o.tau = 0; });
  differs("min_budget", [](FlexPrefill& o) { o.min_budget = 64; });
  differs("block", [](FlexPrefill& o) { o.block = 32; });
  FlexPrefill lines = base, bounded = base;
  lines.tau = bounded.tau = 0, bounded.max_budget = 48;
  EXPECT_FALSE(lines.attend(in).out.equal(bounded.attend(in).out)) << "max_budget";
}

TEST(FlexPrefill, any_number_of_threads_gives_the_same_bits) {
  const at::NoGradGuard no_grad;
  const FlexPrefill o{.gamma = 0.5, .tau = 0.3, .min_budget = 32, .block = 16};
  Inputs in = make_inputs(300, 300);
  for (at::Tensor* part : {&in.q, &in.k, &in.v}) *part = part->to(at::kFloat);
  test::expect_same_bits_on_threads([&] { return o.attend(in).out; });
}

TEST(FlexPrefill, refuses_what_it_cannot_do) {
  const auto message = [](const FlexPrefill& o, const Rule& rule) {
    Inputs in = make_inputs(20, 20);
    in.rule = rule;
    return test::message_of([&] { o.attend(in); });
  };
  EXPECT_EQ(message({.gamma = 0}, {}), "flexprefill: gamma must be > 0, got 0");
  EXPECT_EQ(message({.gamma = 1.5}, {}), "flexprefill: gamma must be 0 .. 1, got 1.5");
  EXPECT_EQ(message({.tau = -1}, {}), "flexprefill: tau must be 0 .. 1, got -1");
  EXPECT_EQ(message({.min_budget = 0}, {}), "flexprefill: min_budget must be >= 1, got 0");
  EXPECT_EQ(message({.max_budget = 512}, {}), "flexprefill: max_budget must be 0 or >= min_budget, got 512 and 1024");
  EXPECT_EQ(message({}, Rule::full()),
            "flexprefill: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message({}, {}), "no error");
  const FlexPrefill sparse{.gamma = 0.3, .tau = 0, .min_budget = 1, .block = 4};
  EXPECT_EQ(message(sparse, {.query_start = 1000}),
            "flexprefill: queries must sit at keys 0 .. 19, got 20 from 1000 on");
  EXPECT_EQ(message(sparse, {.query_start = -1}), "flexprefill: queries must sit at keys 0 .. 19, got 20 from -1 on");
}

TEST(FlexPrefill, the_first_and_the_nearest_blocks_stay_where_sums_are_no_numbers) {
  const at::NoGradGuard no_grad;
  const FlexPrefill o{.gamma = 0.3, .tau = 0, .min_budget = 1, .block = 4};
  Inputs in = make_inputs(20, 20);
  in.q.select(2, 19).fill_(NAN);  // all that the last queries look at
  const BlockPlan plan = std::get<BlockPlan>(o.attend(in).plans[0].plan);
  for (int64_t row = 0; row < 5; ++row)
    for (int64_t head = 0; head < in.q.size(1); ++head) {
      std::set<int64_t> listed;
      const auto add = [&](const at::Tensor& index, const at::Tensor& count) {
        for (int64_t i = 0; i < count[0][head][row].item<int64_t>(); ++i)
          listed.insert(index[0][head][row][i].item<int64_t>());
      };
      add(plan.index, plan.count);
      if (plan.full_index) add(*plan.full_index, *plan.full_count);
      EXPECT_TRUE(listed.contains(0) && listed.contains(row)) << "row " << row << " of head " << head;
    }
}

}  // namespace
}  // namespace foveate::attention
