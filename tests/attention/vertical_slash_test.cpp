// MInference's vertical-slash against its definition as plain loops.
#include "foveate/attention/sparse/vertical_slash.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/head_patterns.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::random_tensor;
using test::rule_shows;
using test::same;
using test::to_array;
using test::to_tensor;

using Numbers = std::set<int64_t>;

// Ranges and single keys of one block of rows, by the words of the specification, distance by distance.
struct Converted {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  Numbers columns;
};

Converted convert(const Numbers& columns, const Numbers& distances, int64_t end, int64_t block) {
  Converted c;
  for (auto d = distances.rbegin(); d != distances.rend(); ++d) {
    if (*d >= end) continue;
    const int64_t e = std::max(end - *d, block);
    if (c.ranges.empty() || e > c.ranges.back().second + block)
      c.ranges.push_back({e - block, e});
    else if (e > c.ranges.back().second)
      c.ranges.back().second += block;
  }
  for (const int64_t j : columns) {
    bool before_one = false, inside = false;
    for (const auto& [first, last] : c.ranges) before_one |= j < first, inside |= first <= j && j < last;
    if (before_one && !inside) c.columns.insert(j);
  }
  return c;
}

// The `count` best places, `forced` ones from `first` on before all others; sums compared in fp32, equal ones by place.
Numbers best(const std::vector<double>& sums, int64_t first, int64_t forced, int64_t count) {
  std::vector<std::tuple<bool, float, int64_t>> order;
  for (int64_t i = 0; i < std::ssize(sums); ++i) {
    const bool is_forced = first <= i && i < first + forced;
    order.emplace_back(!is_forced, is_forced ? 0.0f : -float(sums[size_t(i)]), i);
  }
  std::sort(order.begin(), order.end());
  Numbers taken;
  for (int64_t i = 0; i < std::min<int64_t>(count, std::ssize(order)); ++i) taken.insert(std::get<2>(order[size_t(i)]));
  return taken;
}

// The first key that query i would see without a window.
int64_t text_of(const Inputs& in, int64_t i) {
  Inputs open = in;
  open.rule.window_left.reset();
  int64_t j = 0;
  while (!rule_shows(open, i, j)) ++j;
  return j;
}

struct HeadLines {
  Numbers columns, distances;
};

HeadLines oracle_lines(const VerticalSlash& o, const HeadPattern& pattern, const Inputs& in, int64_t b, int64_t h) {
  const Array q = to_array(in.q), k = to_array(in.k);
  const int64_t queries = q.shape[2], keys = k.shape[2], kv = h * k.shape[1] / q.shape[1], start = keys - queries;
  std::vector<double> column(size_t(keys), 0), distance(size_t(keys), 0);
  for (int64_t i = std::max<int64_t>(queries - o.last_queries, 0); i < queries; ++i) {
    std::vector<double> weight(size_t(keys), 0);
    double sum = 0;
    for (int64_t j = 0; j < keys; ++j) {
      if (!rule_shows(in, i, j)) continue;
      double logit = 0;
      for (int64_t d = 0; d < q.shape[3]; ++d) logit += q.at(b, h, i, d) * k.at(b, kv, j, d);
      sum += weight[size_t(j)] = std::exp(logit * in.score.scale.value_or(1 / std::sqrt(double(q.shape[3]))));
    }
    for (int64_t j = 0; j <= start + i; ++j) {
      column[size_t(j)] += weight[size_t(j)] / sum;
      distance[size_t(start + i - j)] += weight[size_t(j)] / sum;
    }
  }
  if (pattern.kind == HeadPattern::Kind::stream_llm)
    std::fill(column.begin(), column.end(), 0), std::fill(distance.begin(), distance.end(), 0);
  return {best(column, text_of(in, queries - 1), o.first_columns, std::max(pattern.vertical, o.first_columns)),
          best(distance, 0, o.first_distances, std::max(pattern.slash, o.first_distances / 2))};
}

// The kept keys of every block of rows: [b, h, block].
std::vector<Numbers> oracle_keys(const VerticalSlash& o, const std::vector<HeadPattern>& patterns, const Inputs& in) {
  const int64_t queries = in.q.size(2), keys = in.k.size(2), start = keys - queries;
  std::vector<Numbers> all;
  for (int64_t b = 0; b < in.q.size(0); ++b)
    for (int64_t h = 0; h < in.q.size(1); ++h) {
      const HeadLines lines = oracle_lines(o, patterns[size_t(h)], in, b, h);
      for (int64_t first = 0; first < queries; first += o.block) {
        int64_t text = keys;  // the earliest of the block's rows
        for (int64_t i = first; i < std::min(first + o.block, queries); ++i) text = std::min(text, text_of(in, i));
        Numbers columns, kept;  // counted from the text's first key
        for (const int64_t j : lines.columns)
          if (j >= text) columns.insert(j - text);
        const Converted c = convert(columns, lines.distances, start + first + o.block - text, o.block);
        for (const int64_t j : c.columns) kept.insert(j + text);
        for (const auto& [begin, end] : c.ranges)
          for (int64_t j = begin; j < end; ++j) kept.insert(j + text);
        all.push_back(kept);
      }
    }
  return all;
}

test::OracleResult oracle(const VerticalSlash& o, const std::vector<HeadPattern>& patterns, const Inputs& in) {
  const int64_t blocks = (in.q.size(2) + o.block - 1) / o.block;
  const std::vector<Numbers> kept = oracle_keys(o, patterns, in);
  return test::oracle_attention(
      to_array(in.q), to_array(in.k), to_array(in.v),
      [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        return int(rule_shows(in, i, j) && kept[size_t((b * in.q.size(1) + h) * blocks + i / o.block)].count(j) > 0);
      },
      {.scale = in.score.scale.value_or(1 / std::sqrt(double(in.q.size(3))))});
}

Inputs make_inputs(int64_t queries, int64_t keys, uint64_t seed = 1) {
  return test::random_call(queries, keys, {.seed = seed});
}

std::vector<HeadPattern> uniform(const VerticalSlash& o) { return {4, {.vertical = o.vertical, .slash = o.slash}}; }

void expect_oracle(const VerticalSlash& o, const Inputs& in) {
  const Attended got = o.attend_prompt(in);
  const auto want = oracle(o, uniform(o), in);
  EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10}))
      << to_spec(o).text() << " " << in.q.size(2) << " of " << in.k.size(2);
  EXPECT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10})) << to_spec(o).text();
}

at::Tensor list_of(const Numbers& numbers) {
  const at::Tensor list = at::full({1, 1, std::ssize(numbers)}, -1, at::kInt);
  std::copy(numbers.begin(), numbers.end(), list.mutable_data_ptr<int32_t>());
  return list;
}

std::vector<std::pair<int64_t, int64_t>> runs_of(const RunPlan& plan, int64_t block) {
  std::vector<std::pair<int64_t, int64_t>> runs;
  for (int64_t i = 0; i < plan.start.size(3); ++i) {
    const int64_t begin = plan.start[0][0][block][i].item<int64_t>(), end = plan.end[0][0][block][i].item<int64_t>();
    if (begin < end) runs.push_back({begin, end});
  }
  return runs;
}

BlockGrid grid_of(int64_t rows, int64_t keys, int64_t block) {
  Inputs in;
  in.q = at::empty({1, 1, rows, 1}), in.k = at::empty({1, 1, keys, 1});
  return {in, block, block, "grid"};
}

std::vector<VerticalSlash> variants() {
  std::vector<VerticalSlash> all;
  for (const auto& [vertical, slash] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {20, 4}, {5, 40}, {30, 30}})
    for (const int64_t block : {16, 64, 7})
      for (const int64_t forced : {1, 12})
        all.push_back({.vertical = vertical,
                       .slash = slash,
                       .last_queries = 3 * forced,
                       .first_columns = forced,
                       .first_distances = forced,
                       .block = block});
  return all;
}

TEST(VerticalSlash, golden_conversion) {
  const Lines lines{list_of({3, 100, 200}), list_of({0, 70})};
  const RunPlan plan = line_runs(lines, grid_of(256, 256, 64));
  using Runs = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(runs_of(plan, 0), (Runs{{0, 64}}));
  EXPECT_EQ(runs_of(plan, 1), (Runs{{0, 128}}));
  EXPECT_EQ(runs_of(plan, 2), (Runs{{3, 4}, {58, 122}, {128, 192}}));
  EXPECT_EQ(runs_of(plan, 3), (Runs{{3, 4}, {100, 101}, {122, 186}, {192, 256}}));
}

TEST(VerticalSlash, conversion_holds_every_line_and_lists_no_key_twice) {
  Random random(11);
  for (int round = 0; round < 300; ++round) {
    const int64_t keys = 1 + int64_t(random.below(400)), rows = 1 + int64_t(random.below(uint64_t(keys)));
    const int64_t block = random.below(3) ? 64 : 1 + int64_t(random.below(40)), start = keys - rows;
    Numbers columns, distances = {0};
    for (uint64_t n = random.below(30); n > 0; --n) columns.insert(int64_t(random.below(uint64_t(keys))));
    for (uint64_t n = random.below(12); n > 0; --n) {  // single ones and runs
      const int64_t first = int64_t(random.below(uint64_t(keys))), run = int64_t(random.below(2) * random.below(90));
      for (int64_t d = first; d <= std::min(first + run, keys - 1); ++d) distances.insert(d);
    }
    const RunPlan plan = line_runs({list_of(columns), list_of(distances)}, grid_of(rows, keys, block));
    for (int64_t m = 0; m * block < rows; ++m) {
      const auto runs = runs_of(plan, m);
      Numbers listed, want;
      for (const auto& [begin, end] : runs)
        for (int64_t j = begin; j < end; ++j) ASSERT_TRUE(listed.insert(j).second) << "twice: " << j;
      EXPECT_TRUE(std::is_sorted(runs.begin(), runs.end()));
      const Converted c = convert(columns, distances, start + (m + 1) * block, block);
      want = c.columns;
      for (const auto& [begin, end] : c.ranges)
        for (int64_t j = begin; j < std::min(end, keys); ++j) want.insert(j);
      ASSERT_EQ(listed, want) << "round " << round << " block " << m;
      for (int64_t i = m * block; i < std::min((m + 1) * block, rows); ++i) {
        for (const int64_t j : columns) ASSERT_TRUE(j > start + i || listed.count(j)) << "row " << i << " key " << j;
        for (const int64_t d : distances) ASSERT_TRUE(d > start + i || listed.count(start + i - d)) << i << " " << d;
      }
    }
  }
}

TEST(VerticalSlash, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const VerticalSlash& o : variants())
    for (const auto& [queries, keys] :
         std::vector<std::pair<int64_t, int64_t>>{{200, 200}, {64, 201}, {37, 130}, {1, 90}, {5, 5}, {1, 1}})
      expect_oracle(o, make_inputs(queries, keys));
}

TEST(VerticalSlash, a_layer_with_its_own_window_and_scale_counts_what_it_shows) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(150, 150);
  in.score.scale = 1.5;
  for (const int64_t window : {5, 70})
    for (const int64_t sinks : {0, 3})
      for (const VerticalSlash& o : variants()) {
        in.rule.window_left = window, in.rule.sinks = sinks;
        expect_oracle(o, in);
      }
}

TEST(VerticalSlash, the_lines_of_a_text_begin_with_its_first_key) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(150, 150);
  const at::Tensor documents =
      at::arange(150, at::kLong).div(53, "floor").expand({2, 150});  // the last one has 44 keys
  Inputs packed = in, padded = in;
  packed.rule.query_documents = packed.rule.key_documents = documents;
  padded.rule.row_start = at::arange(150, at::kLong).clamp_max(21).view({1, 1, 150});
  for (const VerticalSlash& o : variants()) {
    expect_oracle(o, packed);
    expect_oracle(o, padded);
    EXPECT_FALSE(o.attend_prompt(packed).lse->isinf().any().item<bool>()) << "a row without keys";
  }
}

TEST(VerticalSlash, all_columns_or_all_distances_are_dense) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(150, 150);
  const at::Tensor want = Dense{}.attend(in).out;
  const VerticalSlash columns{.vertical = 150, .slash = 1}, distances{.vertical = 1, .slash = 150};
  EXPECT_TRUE(columns.attend(in).out.equal(want));
  EXPECT_TRUE(distances.attend(in).out.equal(want));
  // and so are the lists of heads that keep all beside one that does not
  const VerticalSlash o{.first_columns = 1, .first_distances = 1, .block = 16};
  const std::vector<HeadPattern> heads = {{.vertical = 150, .slash = 1},
                                          {.vertical = 1, .slash = 150},
                                          {.vertical = 1, .slash = 1},
                                          {.vertical = 149, .slash = 149}};
  const at::Tensor out = attend_lines(in, heads, o).out;
  for (const int64_t head : {0, 1})
    EXPECT_TRUE(same(out.select(1, head), want.select(1, head), {1e-12, 1e-12})) << head;
  EXPECT_FALSE(same(out.select(1, 2), want.select(1, 2), {1e-3, 1e-3}));
}

TEST(VerticalSlash, every_head_keeps_its_own_counts) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(180, 180);
  const VerticalSlash o{.last_queries = 10, .first_columns = 2, .first_distances = 3, .block = 16};
  const std::vector<HeadPattern> heads = {{.vertical = 40, .slash = 2},
                                          {.vertical = 2, .slash = 30},
                                          {.vertical = 5, .slash = 20, .kind = HeadPattern::Kind::stream_llm},
                                          {.vertical = 9, .slash = 9}};
  EXPECT_TRUE(same(attend_lines(in, heads, o).out, to_tensor(oracle(o, heads, in).out), {1e-10, 1e-10}));
}

TEST(VerticalSlash, reads_the_counts_of_a_layer_from_a_file) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(180, 180);
  in.layer = 1;
  const test::TemporaryFile file("patterns.json",
                                 R"([{}, {"0": ["vertical_and_slash", 40, 2, 0.5], "3": ["stream_llm", 9, 20, 12]}])");
  VerticalSlash o{
      .vertical = 7, .slash = 3, .heads = file.path(), .first_columns = 2, .first_distances = 3, .block = 16};
  const std::vector<HeadPattern> heads = {{.vertical = 40, .slash = 2},
                                          {.vertical = 7, .slash = 3},
                                          {.vertical = 7, .slash = 3},
                                          {.vertical = 9, .slash = 20, .kind = HeadPattern::Kind::stream_llm}};
  EXPECT_TRUE(o.attend(in).out.equal(attend_lines(in, heads, o).out));
  VerticalSlash without = o;
  without.heads.clear();
  EXPECT_FALSE(o.attend(in).out.equal(without.attend(in).out));
  in.layer = 2;
  EXPECT_THROW(o.attend(in), Error);
  in.layer = 1, in.q = in.q.narrow(1, 0, 2);
  EXPECT_THROW(o.attend(in), Error) << "a head that the layer has not";
  o.heads = "/nowhere/patterns.json";
  EXPECT_THROW(o.validate(), Error);
}

std::string error_of(const std::string& text) {
  try {
    parse_head_patterns(text, "f");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(HeadPatterns, come_back_as_they_were_written) {
  const std::string text =
      R"([{"0":["vertical_and_slash",1000,6096,336187.0],"11":["stream_llm",100,800,0.96484375]},{}])";
  const auto layers = parse_head_patterns(text, "f");
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[0].at(11).slash, 800);
  EXPECT_EQ(layers[0].at(11).kind, HeadPattern::Kind::stream_llm);
  EXPECT_EQ(head_patterns_as_json(layers), text);
}

TEST(HeadPatterns, refuse_what_is_not_of_the_form) {
  EXPECT_EQ(error_of("{}"), "f: must be a list with an object for each layer");
  EXPECT_EQ(error_of("[]"), "f: must be a list with an object for each layer");
  EXPECT_EQ(error_of("[3]"), "f: layer 0 must be an object of heads");
  EXPECT_EQ(error_of(R"([{"x": ["stream_llm", 1, 1, 0]}])"), "f: layer 0: heads must be numbers, got 'x'");
  EXPECT_EQ(error_of(R"([{"00": ["stream_llm", 1, 1, 0]}])"), "f: layer 0: heads must be numbers, got '00'");
  EXPECT_EQ(error_of(R"([{}, {"0": ["stream_llm", 1, 1]}])"),
            "f: layer 1, head '0': must be [kind, vertical, slash, score]");
  EXPECT_EQ(error_of(R"([{"0": ["block_sparse", 10, 1, 0]}])"),
            "f: layer 0, head '0': kind must be vertical_and_slash or stream_llm, got 'block_sparse'");
  for (const char* number : {"0", "-1", "1.5", "\"1\"", "1e30", "18446744073709551615", "null"})
    EXPECT_TRUE(error_of(fmt::format(R"([{{"0": ["stream_llm", 1, {}, 0]}}])", number))
                    .starts_with("f: layer 0, head '0': slash must be a whole number >= 1, got"))
        << number << ": " << error_of(fmt::format(R"([{{"0": ["stream_llm", 1, {}, 0]}}])", number));
  EXPECT_TRUE(error_of(R"([{"0": ["stream_llm", 1, 1, 0]}, )").starts_with("f: must be valid JSON"));
}

TEST(VerticalSlash, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(300, 300);
  const VerticalSlash base{
      .vertical = 12, .slash = 12, .last_queries = 16, .first_columns = 2, .first_distances = 3, .block = 16};
  const auto differs = [&](const char* name, auto change) {
    VerticalSlash other = base;
    change(other);
    EXPECT_FALSE(other.attend(in).out.equal(base.attend(in).out)) << name;
  };
  differs("vertical", [](VerticalSlash& o) { o.vertical = 20; });
  differs("slash", [](VerticalSlash& o) { o.slash = 20; });
  differs("last_queries", [](VerticalSlash& o) { o.last_queries = 64; });
  differs("first_columns", [](VerticalSlash& o) { o.first_columns = 8; });
  differs("first_distances", [](VerticalSlash& o) { o.first_distances = 8; });
  differs("block", [](VerticalSlash& o) { o.block = 32; });
}

TEST(VerticalSlash, gradients_are_those_of_the_kept_keys) {
  const VerticalSlash o{
      .vertical = 4, .slash = 4, .last_queries = 8, .first_columns = 1, .first_distances = 2, .block = 16};
  const Inputs in = make_inputs(70, 70);
  test::expect_gradients([&] { return o.attend(in).out.pow(2).sum(); }, {in.q, in.k, in.v}, 1e-6, 8);
}

TEST(VerticalSlash, any_number_of_threads_gives_the_same_bits) {
  const at::NoGradGuard no_grad;
  const VerticalSlash o{
      .vertical = 12, .slash = 12, .last_queries = 16, .first_columns = 2, .first_distances = 3, .block = 16};
  Inputs in = make_inputs(300, 300);
  for (at::Tensor* part : {&in.q, &in.k, &in.v}) *part = part->to(at::kFloat);
  test::expect_same_bits_on_threads([&] { return o.attend(in).out; });
}

TEST(VerticalSlash, refuses_what_it_cannot_do) {
  const auto message = [](const VerticalSlash& o, const Rule& rule) {
    Inputs in = make_inputs(20, 20);
    in.rule = rule;
    return test::message_of([&] { o.attend(in); });
  };
  EXPECT_EQ(message({.vertical = 0}, {}), "vertical_slash: vertical must be >= 1, got 0");
  EXPECT_EQ(message({.first_distances = 0}, {}), "vertical_slash: first_distances must be >= 1, got 0");
  EXPECT_EQ(message({}, Rule::full()),
            "vertical_slash: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message({}, {.key_lengths = at::full({2}, 20, at::kLong)}), "no error");
  EXPECT_EQ(
      message({.vertical = 1, .slash = 1, .first_columns = 1, .first_distances = 1},
              {.key_lengths = at::full({2}, 19, at::kLong)}),
      "vertical_slash: the last row, whose attention chooses, must see its own key 19, got padding behind a text; "
      "pad in front");
  EXPECT_EQ(message({}, {}), "no error");
  EXPECT_EQ(message({.vertical = 1, .slash = 1, .first_columns = 1, .first_distances = 1}, {.query_start = -1}),
            "vertical_slash: queries must sit at keys 0 .. 19, got 20 from -1 on");
}

}  // namespace
}  // namespace foveate::attention
