// The offline search on heads whose pattern is known.
#include "foveate/attention/sparse/head_search.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/attention/dense.h"
#include "foveate/ops/sums/sums.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::random_tensor;
using test::same;

constexpr int64_t kLength = 256;

// Keys are unit vectors, one for each position.  Head 0 looks at columns 3, 23, .. 203, head 1 at distances 40, 90, 140
// and 190, head 2 at both.
Inputs constructed() {
  Inputs in;
  in.k = at::zeros({1, 1, kLength, kLength}, at::kDouble);
  in.q = at::zeros({1, 3, kLength, kLength}, at::kDouble);
  in.v = random_tensor({1, 1, kLength, 6}, 4, at::kDouble);
  in.score.scale = 1;
  constexpr double kLogit = 12;
  for (int64_t i = 0; i < kLength; ++i) {
    in.k[0][0][i][i] = 1;
    for (int64_t j = 3; j <= 203; j += 20) in.q[0][0][i][j] = in.q[0][2][i][j] = kLogit;
    for (int64_t d = 40; d <= 190; d += 50)
      if (i >= d) in.q[0][1][i][i - d] = in.q[0][2][i][i - d] = kLogit;
  }
  return in;
}

HeadSearch search() {
  HeadSearch s;
  s.options = {.last_queries = 16, .first_columns = 1, .first_distances = 1, .block = 16};
  s.candidates = {{30, 1}, {3, 10}};
  s.first_row = 100;
  return s;
}

TEST(HeadSearch, a_column_head_takes_columns_and_a_diagonal_head_distances) {
  const at::NoGradGuard no_grad;
  const Inputs in = constructed();
  for (const auto by : {HeadSearch::By::output_error, HeadSearch::By::kept_mass})
    for (const auto& density : {std::optional<double>(), std::optional(0.6)}) {
      HeadSearch s = search();
      s.by = by, s.density = density;
      const LayerPatterns found = search_heads(s, in);
      ASSERT_EQ(found.size(), 3u);
      EXPECT_GT(found.at(0).vertical, 2 * found.at(0).slash);
      EXPECT_GT(found.at(1).slash, 2 * found.at(1).vertical);
    }
}

TEST(HeadSearch, scores_are_those_of_the_mechanism) {
  const at::NoGradGuard no_grad;
  const Inputs in = constructed();
  HeadSearch s = search();
  s.candidates = {{16, 16}};
  const Attended dense = Dense{}.attend(in);
  VerticalSlash o = s.options;
  o.vertical = o.slash = 16;
  const Attended got = o.attend(in);
  const LayerPatterns by_error = search_heads(s, in);
  s.by = HeadSearch::By::kept_mass;
  const LayerPatterns by_mass = search_heads(s, in);
  const at::Tensor mass =
      ops::attention_sums(in.q, in.k, *dense.lse, got.plans[0].plan, in.score, {.by = ops::SumBy::row});
  for (int64_t head = 0; head < 3; ++head) {
    double errors = 0, sum = 0;
    for (int64_t i = 0; i < kLength; ++i) {
      for (int64_t d = 0; d < 6; ++d)
        errors += std::abs((got.out[0][head][i][d] - dense.out[0][head][i][d]).item<double>()) > 5e-3;
      if (i >= 100) sum += mass[0][head][i].item<double>();
    }
    EXPECT_EQ(by_error.at(head).score, errors);
    EXPECT_NEAR(by_mass.at(head).score, sum / 156, 1e-9);
  }
}

TEST(HeadSearch, equal_cost_is_used_up_and_not_exceeded) {
  const at::NoGradGuard no_grad;
  const Inputs in = constructed();
  for (const double density : {0.3, 0.6}) {
    HeadSearch s = search();
    s.density = density;
    const LayerPatterns found = search_heads(s, in);
    std::vector<HeadPattern> heads;
    for (const auto& [head, pattern] : found) heads.push_back(pattern);
    const Attended got = attend_lines(in, heads, s.options);
    const auto& plan = std::get<RunPlan>(got.plans[0].plan);
    for (int64_t head = 0; head < 3; ++head) {
      double listed = 0, all = 0;
      for (int64_t m = 0; m < 16; ++m) {
        all += double((m + 1) * 16);
        for (int64_t n = 0; n < plan.start.size(3); ++n)
          listed += double(std::min<int64_t>(plan.end[0][head][m][n].item<int64_t>(), (m + 1) * 16) -
                           plan.start[0][head][m][n].item<int64_t>());
      }
      EXPECT_LE(listed / all, density) << head;
      EXPECT_GE(listed / all, density - 0.1) << head;
    }
  }
  HeadSearch s = search();
  s.density = 0.01;
  EXPECT_THROW(search_heads(s, in), Error);
}

TEST(HeadSearch, candidates_must_keep_something) {
  for (const HeadPattern& none : {HeadPattern{0, 0}, HeadPattern{0, 3}, HeadPattern{3, 0}, HeadPattern{-1, 3}}) {
    HeadSearch s = search();
    s.density = 0.5;
    s.candidates.push_back(none);
    EXPECT_EQ(test::message_of([&] { search_heads(s, constructed()); }),
              fmt::format("head search: candidates must have counts >= 1, got {} and {}", none.vertical, none.slash));
  }
}

TEST(HeadSearch, what_it_writes_the_mechanism_reads) {
  const at::NoGradGuard no_grad;
  Inputs in = constructed();
  HeadSearch s = search();
  s.density = 0.35;
  const LayerPatterns found = search_heads(s, in);
  const test::TemporaryFile file("search.json", head_patterns_as_json({{}, found}));
  std::vector<HeadPattern> heads;
  for (const auto& [head, pattern] : found) heads.push_back(pattern);
  VerticalSlash o = s.options;
  o.heads = file.path(), in.layer = 1;
  EXPECT_TRUE(o.attend(in).out.equal(attend_lines(in, heads, s.options).out));
}

TEST(HeadSearch, refuses_what_it_cannot_do) {
  const Inputs in = constructed();
  const auto message = [&](auto change) {
    HeadSearch s = search();
    change(s);
    return test::message_of([&] { search_heads(s, in); });
  };
  EXPECT_EQ(message([](HeadSearch& s) { s.candidates.clear(); }), "head search: there must be candidates, got none");
  EXPECT_EQ(message([](HeadSearch& s) { s.density = 0; }), "head search: density must be in (0, 1], got 0");
  EXPECT_EQ(message([](HeadSearch& s) { s.by = HeadSearch::By::kept_mass, s.first_row = 256; }),
            "head search: first_row must be a row of the sample, got 256 of 256");
  EXPECT_EQ(message([](HeadSearch& s) { s.options.block = 0; }), "vertical_slash: block must be >= 1, got 0");
}

}  // namespace
}  // namespace foveate::attention
