// DHSA v2 against its specification as plain loops, block by block.
#include "foveate/attention/sparse/dhsa_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using Mask = DhsaBlocks::Mask;
using test::Array;
using test::random_tensor;
using test::rule_shows;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr Mask kMasks[] = {Mask::topk, Mask::a, Mask::vs, Mask::vsb};

// The `count` best places, higher scores first, then lower places; scores are compared in fp32, as everywhere.
std::set<int64_t> best(const std::vector<double>& scores, const std::set<int64_t>& places, int64_t count) {
  std::vector<std::pair<float, int64_t>> order;
  for (const int64_t place : places) order.emplace_back(-float(scores[size_t(place)]), place);
  std::sort(order.begin(), order.end());
  std::set<int64_t> taken;
  for (const auto& [score, place] : order)
    if (std::ssize(taken) < count) taken.insert(place);
  return taken;
}

// One query head of one sample.
struct HeadOracle {
  const DhsaBlocks& o;
  const Inputs& in;
  const Array &q, &k;
  int64_t b, h, kv = h * k.shape[1] / q.shape[1];
  int64_t queries = q.shape[2], keys = k.shape[2], start = keys - queries;
  int64_t rows = (queries + o.query_block - 1) / o.query_block, blocks = (keys + o.key_block - 1) / o.key_block;
  int64_t budget = std::max<int64_t>(1, int64_t(std::floor(o.density* double(blocks))));
  int64_t asking = std::min(o.query_block, queries);  // the last queries, which vs and vsb read
  std::vector<double> column = {}, diagonal = {};     // attention of the last queries
  std::set<int64_t> kept_columns = {}, kept_distances = {};

  int64_t row_end(int64_t r) const { return std::min((r + 1) * o.query_block, queries); }
  std::set<int64_t> seen_blocks(int64_t first, int64_t last) const {
    std::set<int64_t> blocks_seen;
    for (int64_t c = 0; c < blocks; ++c) {
      bool any = false;
      for (int64_t j = c * o.key_block; j < std::min((c + 1) * o.key_block, keys) && !any; ++j)
        for (int64_t i = first; i < last && !any; ++i) any = rule_shows(in, i, j);
      if (any) blocks_seen.insert(c);
    }
    return blocks_seen;
  }
  std::vector<double> mean(const Array& x, int64_t head, int64_t first, int64_t last) const {
    std::vector<double> sum(size_t(x.shape[3]));
    for (int64_t d = 0; d < x.shape[3]; ++d)
      for (int64_t i = first; i < last; ++i) sum[size_t(d)] += x.at(b, head, i, d) / double(last - first);
    return sum;
  }
  double product_of_means(int64_t first, int64_t last, int64_t block) const {
    const auto query = mean(q, h, first, last);
    const auto key = mean(k, kv, block * o.key_block, std::min((block + 1) * o.key_block, keys));
    double sum = 0;
    for (size_t d = 0; d < key.size(); ++d) sum += query[d] * key[d];
    return sum;
  }

  void find_lines() {
    column.assign(size_t(keys), 0), diagonal.assign(size_t(keys), 0);
    for (int64_t i = queries - asking; i < queries; ++i) {
      std::vector<double> weight(size_t(keys), 0);
      double sum = 0;
      for (int64_t j = 0; j < keys; ++j) {
        if (!rule_shows(in, i, j)) continue;
        double logit = 0;
        for (int64_t d = 0; d < q.shape[3]; ++d) logit += q.at(b, h, i, d) * k.at(b, kv, j, d);
        logit *= in.score.scale.value_or(1 / std::sqrt(double(q.shape[3])));
        if (const auto cap = in.score.soft_cap) logit = *cap * std::tanh(logit / *cap);
        sum += weight[size_t(j)] = std::exp(logit);
      }
      for (int64_t j = 0; j < keys; ++j) {
        column[size_t(j)] += weight[size_t(j)] / sum;
        if (start + i - j >= 0 && start + i - j < keys) diagonal[size_t(start + i - j)] += weight[size_t(j)] / sum;
      }
    }
    const int64_t lines = std::min(keys, budget * o.key_block);
    const int64_t columns = int64_t(double(lines) * o.vertical_slash_ratio);
    kept_columns = best(column, range(0, keys), columns);
    kept_distances = best(diagonal, range(0, keys), lines - columns);
  }

  static std::set<int64_t> range(int64_t first, int64_t last) {
    std::set<int64_t> all;
    for (int64_t i = first; i < last; ++i) all.insert(all.end(), i);
    return all;
  }

  double score_by_lines(int64_t r, int64_t c) const {
    double score = 0;
    for (const int64_t j : kept_columns)
      if (j / o.key_block == c) score += column[size_t(j)];
    for (const int64_t d : kept_distances) {
      bool touched = false;  // by one of the keys at this distance from the rows
      for (int64_t i = r * o.query_block; i < row_end(r); ++i) {
        const int64_t key = start + i - d;
        touched |= key >= 0 && key / o.key_block == c;
      }
      if (touched) score += diagonal[size_t(d)];
    }
    return score;
  }

  void find_block_lines() {
    const auto allowed = seen_blocks(queries - asking, queries);
    column.assign(size_t(blocks), 0);
    for (const int64_t block : allowed) column[size_t(block)] = product_of_means(queries - asking, queries, block);
    const int64_t columns = int64_t(double(budget) * o.vertical_slash_ratio);
    kept_columns = best(column, allowed, columns);
    for (const int64_t block : best(column, allowed, budget - columns)) kept_distances.insert(blocks - 1 - block);
  }

  double score_by_block_lines(int64_t r, int64_t c) const {
    const int64_t first = (start + r * o.query_block) / o.key_block, last = (start + row_end(r) - 1) / o.key_block;
    double score = kept_columns.count(c) ? column[size_t(c)] : 0;
    for (const int64_t d : kept_distances)
      if (first - d <= c && c <= last - d) score += column[size_t(blocks - 1 - d)];
    return score;
  }

  std::set<int64_t> kept(int64_t r) {
    const int64_t first = r * o.query_block, last = row_end(r);
    const auto seen = seen_blocks(first, last);
    const bool lines = o.mask == Mask::vs || o.mask == Mask::vsb;
    const int64_t covered = std::min(keys, budget * o.key_block);
    const int64_t dense_until = (covered + o.query_block - 1) / o.query_block * o.query_block;
    if (std::ssize(seen) <= budget) return seen;
    if (lines && (start + first < dense_until || r == rows - 1)) return seen;
    std::set<int64_t> forced;
    if (o.mask != Mask::topk) forced.insert(0);
    if (o.mask == Mask::a || o.mask == Mask::vs) forced.insert(*seen.rbegin());
    if (o.mask == Mask::vsb || o.own_blocks)
      for (int64_t i = first; i < last; ++i) forced.insert((start + i) / o.key_block);
    std::set<int64_t> chosen, rest;
    for (const int64_t c : seen) (forced.count(c) ? chosen : rest).insert(c);
    if (o.mask == Mask::vs && column.empty()) find_lines();
    if (o.mask == Mask::vsb && column.empty()) find_block_lines();
    std::vector<double> scores(size_t(blocks), 0);
    for (const int64_t c : rest)
      scores[size_t(c)] = o.mask == Mask::vs    ? score_by_lines(r, c)
                          : o.mask == Mask::vsb ? score_by_block_lines(r, c)
                                                : product_of_means(first, last, c);
    chosen.merge(best(scores, rest, budget - std::ssize(chosen)));
    return chosen;
  }
};

// [b, h, block of queries] -> blocks of keys
std::vector<std::set<int64_t>> oracle_blocks(const DhsaBlocks& o, const Inputs& in) {
  const Array q = to_array(in.q), k = to_array(in.k);
  std::vector<std::set<int64_t>> all;
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h) {
      HeadOracle head{o, in, q, k, b, h};
      for (int64_t r = 0; r < head.rows; ++r) all.push_back(head.kept(r));
    }
  return all;
}

test::OracleResult oracle(const DhsaBlocks& o, const Inputs& in) {
  const Array q = to_array(in.q), k = to_array(in.k);
  const int64_t rows = (q.shape[2] + o.query_block - 1) / o.query_block;
  const auto kept = oracle_blocks(o, in);
  return test::oracle_attention(
      q, k, to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        return int(rule_shows(in, i, j) &&
                   kept[size_t((b * q.shape[1] + h) * rows + i / o.query_block)].count(j / o.key_block));
      },
      {.scale = in.score.scale.value_or(1 / std::sqrt(double(q.shape[3]))), .soft_cap = in.score.soft_cap});
}

Inputs make_inputs(int64_t queries, int64_t keys, uint64_t seed = 1) {
  return test::random_call(queries, keys, {.seed = seed});
}

std::vector<DhsaBlocks> variants() {
  std::vector<DhsaBlocks> all;
  for (const Mask mask : kMasks)
    for (const bool own_blocks : {true, false})
      for (const auto& [query_block, key_block] :
           std::vector<std::pair<int64_t, int64_t>>{{16, 16}, {48, 16}, {16, 32}})
        for (const double density : {0.05, 0.45})
          all.push_back({.density = density,
                         .vertical_slash_ratio = density,
                         .query_block = query_block,
                         .key_block = key_block,
                         .mask = mask,
                         .own_blocks = own_blocks});
  return all;
}

void expect_oracle(const DhsaBlocks& o, const Inputs& in) {
  const Attended got = o.attend_prompt(in);
  const auto want = oracle(o, in);
  EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10}))
      << to_spec(o).text() << " " << in.q.size(2) << " of " << in.k.size(2);
  EXPECT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10})) << to_spec(o).text();
}

// Kept blocks of a planned call, [b, h, block of queries]; asks that lists ascend and that full blocks are full.
std::vector<std::set<int64_t>> planned_blocks(const DhsaBlocks& o, const Inputs& in) {
  const Attended got = o.attend_prompt(in);
  const int64_t start = in.k.size(2) - in.q.size(2), heads = in.q.size(1);
  const int64_t rows = (in.q.size(2) + o.query_block - 1) / o.query_block;
  std::vector<std::set<int64_t>> all(size_t(in.q.size(0) * heads * rows));
  for (const PlannedRows& part : got.plans) {
    const int64_t first = part.first_row / o.query_block, count = (part.rows + o.query_block - 1) / o.query_block;
    EXPECT_EQ(part.first_row % o.query_block, 0);
    const auto* plan = std::get_if<BlockPlan>(&part.plan);
    for (int64_t b = 0; b < in.q.size(0); ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t r = 0; r < count; ++r) {
          std::set<int64_t>& kept = all[size_t((b * heads + h) * rows + first + r)];
          const int64_t position = start + (first + r) * o.query_block;
          if (!plan) {
            const int64_t last = std::min(position + o.query_block, start + in.q.size(2)) - 1;
            for (int64_t c = 0; c <= last / o.key_block; ++c) kept.insert(c);
            continue;
          }
          const auto take = [&](const at::Tensor& counts, const at::Tensor& index, bool is_full) {
            for (int64_t n = 0, before = -1; n < counts[b][h][r].item<int64_t>(); ++n) {
              const int64_t c = index[b][h][r][n].item<int64_t>();
              EXPECT_GT(c, before);
              EXPECT_TRUE(kept.insert(c).second) << "listed twice: " << c;
              EXPECT_TRUE(!plan->full_index || is_full == ((c + 1) * o.key_block - 1 <= position)) << c;
              before = c;
            }
          };
          take(plan->count, plan->index, false);
          if (plan->full_index) take(*plan->full_count, *plan->full_index, true);
        }
  }
  return all;
}

TEST(DhsaBlocks, every_rule_equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const DhsaBlocks& o : variants())
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
             {208, 208}, {221, 221}, {96, 208}, {70, 173}, {1, 100}, {5, 5}, {1, 1}})
      expect_oracle(o, make_inputs(queries, keys));
}

TEST(DhsaBlocks, lists_hold_the_blocks_of_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const DhsaBlocks& o : variants())
    for (const int64_t length : {208, 221}) {
      const Inputs in = make_inputs(length, length, 7);
      EXPECT_EQ(planned_blocks(o, in), oracle_blocks(o, in)) << to_spec(o).text() << " " << length;
    }
}

// What the released functions (DHSA_patch.py of github.com/xiongsiheng/DHSA, commit cc8e9c7) keep: bit c of a row's
// number is block c.  Equal blocks for vsb, where the release does not spend budget twice; its ties by lower index.
TEST(DhsaBlocks, golden_masks_of_the_release) {
  const at::NoGradGuard no_grad;
  constexpr int64_t kLength = 256;
  Array q(1, 1, kLength, 2), k(1, 1, kLength, 2);
  for (int64_t i = 0; i < kLength; ++i) {
    q.at(0, 0, i, 0) = double((37 * i) % 101 - 50) / 25, q.at(0, 0, i, 1) = double((53 * i) % 97 - 48) / 24;
    k.at(0, 0, i, 0) = double((29 * i) % 89 - 44) / 22, k.at(0, 0, i, 1) = double((61 * i) % 83 - 41) / 20;
  }
  Inputs in;
  in.q = to_tensor(q), in.k = to_tensor(k), in.v = in.k;
  const std::pair<DhsaBlocks, std::vector<int64_t>> goldens[] = {
      {{.query_block = 32, .mask = Mask::a}, {0x0003, 0x000f, 0x003f, 0x00b7, 0x034b, 0x0a4b, 0x2531, 0xa4a1}},
      {{.query_block = 32, .mask = Mask::vs}, {0x0003, 0x000f, 0x003f, 0x00b7, 0x023d, 0x092d, 0x21b1, 0xffff}},
      {{.query_block = 16, .mask = Mask::vsb},
       {0x0001, 0x0003, 0x0007, 0x000f, 0x001f, 0x003f, 0x005f, 0x00af, 0x014f, 0x0297, 0x0527, 0x0e43, 0x1495, 0x2d09,
        0x5611, 0xffff}}};
  for (const auto& [golden, rows] : goldens) {
    DhsaBlocks o = golden;
    o.density = 0.4, o.vertical_slash_ratio = 0.25, o.key_block = 16, o.own_blocks = false;
    const auto kept = planned_blocks(o, in);
    ASSERT_EQ(kept.size(), rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      int64_t bits = 0;
      for (const int64_t c : kept[r]) bits |= int64_t{1} << c;
      EXPECT_EQ(bits, rows[r]) << to_spec(o).text() << " row " << r;
    }
  }
}

TEST(DhsaBlocks, a_layer_with_its_own_window_selects_inside_it) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(151, 151);
  for (const int64_t window : {5, 40, 90})
    for (const int64_t sinks : {0, 20})
      for (const DhsaBlocks& o : variants()) {
        in.rule.window_left = window, in.rule.sinks = sinks;
        expect_oracle(o, in);
      }
}

TEST(DhsaBlocks, lines_are_those_of_the_models_own_logits) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(151, 151), sharp = in;
  sharp.score = {.scale = 2.0, .soft_cap = 1.5};
  const DhsaBlocks o{.density = 0.4, .query_block = 16, .key_block = 16};
  expect_oracle(o, sharp);
  EXPECT_NE(planned_blocks(o, sharp), planned_blocks(o, in));
}

TEST(DhsaBlocks, density_one_is_dense) {
  const at::NoGradGuard no_grad;
  for (DhsaBlocks o : variants())
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{{151, 151}, {70, 173}, {1, 1}}) {
      o.density = 1;
      const Inputs in = make_inputs(queries, keys);
      EXPECT_TRUE(o.attend(in).out.equal(Dense{}.attend(in).out)) << to_spec(o).text();
    }
}

TEST(DhsaBlocks, every_row_sees_its_own_key) {
  const at::NoGradGuard no_grad;
  for (const DhsaBlocks& o : variants()) {
    if (!o.own_blocks && o.mask != Mask::vsb) continue;
    const int64_t length = 151;
    const auto kept = planned_blocks(o, make_inputs(length, length));
    const int64_t rows = (length + o.query_block - 1) / o.query_block;
    for (size_t list = 0; list < kept.size(); ++list)
      for (int64_t i = 0; i < o.query_block; ++i) {
        const int64_t row = int64_t(list) % rows * o.query_block + i;
        EXPECT_TRUE(row >= length || kept[list].count(row / o.key_block)) << to_spec(o).text() << " " << row;
      }
  }
}

TEST(DhsaBlocks, rows_that_the_released_topk_leaves_without_keys_give_zero) {
  const DhsaBlocks o{.density = 0.05, .query_block = 32, .key_block = 16, .mask = Mask::topk, .own_blocks = false};
  Inputs in = make_inputs(192, 192);
  // The latest block of keys is the best one of every block of queries: its first 16 rows lie before it.
  in.q.fill_(1);
  in.k.fill_(0);
  for (int64_t j = 0; j < 192; ++j) in.k.select(2, j).fill_(double(j));
  in.q.requires_grad_(), in.v.requires_grad_();
  const Attended got = o.attend(in);
  for (int64_t i = 0; i < 192; ++i) {
    const bool is_empty = i % 32 < 16;
    EXPECT_EQ(got.out.select(2, i).abs().max().item<double>() == 0, is_empty) << i;
    EXPECT_EQ(std::isinf(got.lse->select(2, i).max().item<double>()), is_empty) << i;
  }
  got.out.sum().backward();
  EXPECT_TRUE(in.q.grad().isfinite().all().item<bool>());
  EXPECT_TRUE(in.v.grad().isfinite().all().item<bool>());
}

TEST(DhsaBlocks, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(400, 400);
  const DhsaBlocks base{.density = 0.3, .query_block = 32, .key_block = 16};
  const auto differs = [&](const char* name, auto change) {
    DhsaBlocks other = base;
    change(other);
    EXPECT_FALSE(other.attend(in).out.equal(base.attend(in).out)) << name;
  };
  differs("density", [](DhsaBlocks& o) { o.density = 0.4; });
  differs("query_block", [](DhsaBlocks& o) { o.query_block = 48; });
  differs("key_block", [](DhsaBlocks& o) { o.key_block = 32; });
  differs("topk", [](DhsaBlocks& o) { o.mask = Mask::topk; });
  differs("a", [](DhsaBlocks& o) { o.mask = Mask::a; });
  differs("vsb", [](DhsaBlocks& o) { o.mask = Mask::vsb; });
  differs("own_blocks", [](DhsaBlocks& o) { o.own_blocks = false; });
  differs("vertical_slash_ratio", [](DhsaBlocks& o) { o.vertical_slash_ratio = 0; });
}

TEST(DhsaBlocks, means_ignore_the_scale_of_queries) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(151, 151), larger = in;
  larger.q = in.q * 8;
  for (const DhsaBlocks& o : variants()) {
    if (o.mask == Mask::vs) continue;
    EXPECT_EQ(planned_blocks(o, in), planned_blocks(o, larger)) << to_spec(o).text();
  }
}

TEST(DhsaBlocks, heads_choose_for_themselves) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(151, 151), repeated = in, turned = in;
  repeated.k = in.k.repeat_interleave(2, 1), repeated.v = in.v.repeat_interleave(2, 1);
  for (at::Tensor* part : {&turned.q, &turned.k, &turned.v}) *part = part->flip(1);  // whole groups change places
  for (const DhsaBlocks& o : variants()) {
    const at::Tensor out = o.attend(in).out;
    EXPECT_TRUE(same(o.attend(repeated).out, out, {1e-12, 1e-12})) << to_spec(o).text();
    EXPECT_TRUE(same(o.attend(turned).out.flip(1), out, {1e-12, 1e-12})) << to_spec(o).text();
  }
}

// The budget is a share of the prompt's length, so all four are of class `prompt`; what tokens say is another matter.
TEST(DhsaBlocks, what_later_tokens_say_changes_no_earlier_row_of_topk_and_a) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(160, 160);
  Inputs other = in;
  for (at::Tensor* part : {&other.q, &other.k, &other.v}) {
    *part = part->clone();
    part->narrow(2, 96, 64).add_(3);
  }
  for (const DhsaBlocks& o : variants()) {
    if (o.mask != Mask::topk && o.mask != Mask::a) continue;
    EXPECT_TRUE(o.attend(in).out.narrow(2, 0, 96).equal(o.attend(other).out.narrow(2, 0, 96))) << to_spec(o).text();
  }
}

TEST(DhsaBlocks, generated_rows_are_dense_and_a_window_bounds_what_is_kept) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(150, 150);
  in.rule.window_left = 20;
  const auto rows = [&](int64_t first, int64_t count) {
    Inputs part = in;
    part.q = in.q.narrow(2, first, count), part.k = in.k.narrow(2, first, count), part.v = in.v.narrow(2, first, count);
    return part;
  };
  const DhsaBlocks o{.density = 0.2, .query_block = 16, .key_block = 16};
  const auto state = o.make_state({.rule = in.rule}), dense = Dense{}.make_state({.rule = in.rule});
  state->prefill(rows(0, 70)), dense->prefill(rows(0, 70));
  for (int64_t row = 70; row < 150; ++row)
    EXPECT_TRUE(same(state->decode(rows(row, 1)).out, dense->decode(rows(row, 1)).out, {1e-12, 1e-12})) << row;
  EXPECT_EQ(state->read_bytes(), dense->read_bytes());
}

TEST(DhsaBlocks, documents_and_row_bounds_hold_in_every_part) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(200, 200);
  const at::Tensor documents = at::arange(200, at::kLong).div(70, "floor").view({1, -1}).expand({2, -1}).contiguous();
  in.rule.query_documents = documents, in.rule.key_documents = documents;
  in.rule.row_start = at::arange(200, at::kLong).sub(90).clamp_min(0).view({1, 1, -1});
  for (DhsaBlocks o : variants()) {
    const at::Tensor out = o.attend(in).out;
    Inputs other = in;  // what rows may not see changes nothing they get, wherever their plan puts them
    other.v = in.v.clone();
    other.v.narrow(2, 0, 70).add_(5);
    EXPECT_TRUE(o.attend(other).out.narrow(2, 70, 130).equal(out.narrow(2, 70, 130))) << to_spec(o).text();
    o.density = 1;
    EXPECT_TRUE(same(o.attend(in).out, Dense{}.attend(in).out, {1e-12, 1e-12}));
  }
}

std::string message_of(const std::string& spec, const Rule& rule = {}) {
  Inputs in = make_inputs(20, 20);
  in.rule = rule;
  return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(in); });
}

TEST(DhsaBlocks, refuses_what_it_cannot_do) {
  EXPECT_EQ(message_of("dhsa_blocks:density=0"), "dhsa_blocks: density must be > 0, got 0");
  EXPECT_EQ(message_of("dhsa_blocks:density=1.5"), "dhsa_blocks: density must be 0 .. 1, got 1.5");
  EXPECT_EQ(message_of("dhsa_blocks:density=nan"), "dhsa_blocks: density must be 0 .. 1, got nan");
  EXPECT_EQ(message_of("dhsa_blocks:query_block=100"), "dhsa_blocks: query_block must be a multiple of 16, got 100");
  EXPECT_EQ(message_of("dhsa_blocks:key_block=48"), "dhsa_blocks: key_block must be 16, 32, 64 or 128, got 48");
  EXPECT_EQ(message_of("dhsa_blocks:mask=b"), "dhsa_blocks: mask must be topk | a | vs | vsb, got 'b'");
  EXPECT_EQ(message_of("dhsa_blocks", Rule::full()),
            "dhsa_blocks: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message_of("dhsa_blocks"), "no error");
}

}  // namespace
}  // namespace foveate::attention
