// Ranges of rows against every key, one by one.
#include "foveate/plan/row_ranges.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/base/random.h"

namespace foveate {
namespace {

constexpr int64_t kBatch = 2, kHeads = 3, kQueries = 7, kKeys = 11;

int64_t number(const at::Tensor& t, int64_t b, int64_t h, int64_t i) {
  return t[t.size(0) == 1 ? 0 : b][t.size(1) == 1 ? 0 : h][i].item<int64_t>();
}

// The sentences of Rule, for one key.
bool shows(const Rule& r, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t p = r.query_start.value_or(kKeys - kQueries) + i;
  const int64_t own = r.head_window ? (*r.head_window)[h].item<int64_t>() : -1;
  const bool in_windows = (!r.window_left || p - *r.window_left <= j) && (own < 0 || p - own <= j);
  if (!in_windows && j >= r.sinks) return false;
  if (r.window_right && j > p + *r.window_right) return false;
  if (r.key_lengths && j >= (*r.key_lengths)[b].item<int64_t>()) return false;
  if (r.key_documents && (*r.query_documents)[b][i].item<int64_t>() != (*r.key_documents)[b][j].item<int64_t>())
    return false;
  if (r.row_start && j < number(*r.row_start, b, h, i)) return false;
  return !r.row_end || j < number(*r.row_end, b, h, i);
}

Rule random_rule(Random& random) {
  const auto below = [&](int64_t n) { return int64_t(random.below(uint64_t(n))); };
  const auto rows = [&](int64_t low) {
    const int64_t batch = below(2) ? kBatch : 1, heads = below(2) ? kHeads : 1;
    const at::Tensor t = at::zeros({batch, heads, kQueries}, at::kLong);
    for (int64_t n = 0; n < t.numel(); ++n) t.view({-1})[n] = low + below(kKeys);
    return t;
  };
  Rule r;
  if (below(3) == 0) r.query_start = below(kKeys + 6) - 5;
  if (below(2)) r.window_left = below(6);
  if (below(3) == 0) r.window_right = below(2) ? std::optional<int64_t>(below(4)) : std::nullopt;
  if (below(3) == 0) r.sinks = below(4);
  if (below(3) == 0) r.head_window = at::tensor({below(7) - 1, below(7) - 1, below(7) - 1}, at::kLong);
  if (below(3) == 0) r.key_lengths = at::tensor({below(kKeys + 3), below(kKeys + 3)}, at::kLong);
  if (below(3) == 0) r.row_start = rows(-3);
  if (below(3) == 0) r.row_end = rows(2);
  if (below(3) == 0) {
    const int64_t ids = 1 + below(3);
    r.query_documents = at::zeros({kBatch, kQueries}, at::kLong);
    r.key_documents = at::zeros({kBatch, kKeys}, at::kLong);
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t i = 0; i < kQueries; ++i) (*r.query_documents)[b][i] = below(ids);
      for (int64_t j = 0, id = 0; j < kKeys; ++j) {
        if (below(4) == 0) id = below(ids);
        (*r.key_documents)[b][j] = id;
      }
    }
  }
  return r;
}

TEST(RowRanges, are_what_the_rule_shows_key_by_key) {
  Random random(1);
  int64_t whole = 0, in_pieces = 0;
  for (int64_t n = 0; n < 600; ++n) {
    const Rule rule = random_rule(random);
    const RowRanges ranges = row_ranges(rule, kQueries, kKeys);
    (ranges.whole ? whole : in_pieces) += 1;
    ASSERT_TRUE(ranges.whole || rule.sinks > 0 || rule.key_documents) << "call " << n;
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t h = 0; h < kHeads; ++h)
        for (int64_t i = 0; i < kQueries; ++i) {
          const int64_t start = number(ranges.start, b, h, i), end = number(ranges.end, b, h, i);
          ASSERT_TRUE(0 <= start && start <= end && end <= kKeys) << start << " .. " << end;
          for (int64_t j = 0; j < kKeys; ++j) {
            const bool inside = start <= j && j < end, sees = shows(rule, b, h, i, j);
            ASSERT_TRUE(ranges.whole ? inside == sees : inside || !sees)
                << "call " << n << " row " << i << " key " << j;
          }
        }
  }
  EXPECT_GT(whole, 300);
  EXPECT_GT(in_pieces, 30);
}

TEST(RowRanges, documents_that_nobody_asks_for_may_lie_anywhere) {
  Rule rule = Rule::full();
  rule.key_documents = at::tensor({7, 1, 1, 7, 2, 7}, at::kLong).view({1, 6});
  rule.query_documents = at::tensor({1, 2, 3}, at::kLong).view({1, 3});
  RowRanges ranges = row_ranges(rule, 3, 6);
  EXPECT_TRUE(ranges.whole);
  EXPECT_TRUE(ranges.start.flatten().equal(at::tensor({1, 4, 0}, at::kLong)));
  EXPECT_TRUE(ranges.end.flatten().equal(at::tensor({3, 5, 0}, at::kLong)));
  rule.query_documents = at::tensor({1, 7, 3}, at::kLong).view({1, 3});
  ranges = row_ranges(rule, 3, 6);
  EXPECT_FALSE(ranges.whole);
  EXPECT_EQ(ranges.start[0][0][1].item<int64_t>(), 0);  // from the first piece to the last
  EXPECT_EQ(ranges.end[0][0][1].item<int64_t>(), 6);
}

TEST(RowRanges, of_no_rows_and_of_no_keys_are_empty) {
  EXPECT_EQ(row_ranges({}, 0, 5).start.numel(), 0);
  const RowRanges ranges = row_ranges({}, 3, 0);
  EXPECT_TRUE(ranges.start.eq(ranges.end).all().item<bool>());
}

}  // namespace
}  // namespace foveate
