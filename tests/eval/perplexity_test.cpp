#include "foveate/eval/perplexity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

TEST(SlidingWindows, score_every_token_but_the_first_exactly_once_with_the_context_the_stride_promises) {
  for (const int64_t tokens : {2, 3, 512, 513, 767, 768, 1000, 4096})
    for (const int64_t window : {2, 7, 512})
      for (const int64_t stride : {int64_t{1}, window / 2, window - 1}) {
        std::vector<int> scored(size_t(tokens), 0);
        for (const Window& w : sliding_windows(tokens, window, stride)) {
          EXPECT_LE(w.end - w.begin, window);
          EXPECT_LE(w.end, tokens);
          for (int64_t t = w.score_from; t < w.end; ++t) ++scored[size_t(t)];
          if (w.begin > 0) {
            EXPECT_GE(w.score_from - w.begin, window - stride);
          }
        }
        EXPECT_EQ(scored[0], 0);
        EXPECT_EQ(std::count(scored.begin() + 1, scored.end(), 1), tokens - 1);
      }
}

TEST(SlidingWindows, of_a_small_case_are_as_written_by_hand) {
  EXPECT_EQ(sliding_windows(10, 4, 2), (std::vector<Window>{{0, 4, 1}, {2, 6, 4}, {4, 8, 6}, {6, 10, 8}}));
  EXPECT_EQ(sliding_windows(9, 4, 2), (std::vector<Window>{{0, 4, 1}, {2, 6, 4}, {4, 8, 6}, {6, 9, 8}}));
  EXPECT_EQ(sliding_windows(3, 100, 10), (std::vector<Window>{{0, 3, 1}}));
}

TEST(SlidingWindows, equal_blocks_when_the_stride_is_the_window) {
  for (const int64_t tokens : {2, 511, 512, 513, 514, 2000})
    EXPECT_EQ(sliding_windows(tokens, 512, 512), block_windows(tokens, 512));
}

TEST(BlockWindows, leave_the_first_token_of_each_block_unscored_unless_a_bos_goes_before_it) {
  EXPECT_EQ(block_windows(9, 4), (std::vector<Window>{{0, 4, 1}, {4, 8, 5}}));
  EXPECT_EQ(block_windows(9, 4, BlockStart::kAfterBos), (std::vector<Window>{{0, 4, 0}, {4, 8, 4}, {8, 9, 8}}));
}

TEST(Windows, refuse_what_leaves_nothing_to_score) {
  EXPECT_THROW(sliding_windows(1, 4, 2), Error);
  EXPECT_THROW(sliding_windows(0, 4, 2), Error);
  EXPECT_THROW(sliding_windows(10, 1, 1), Error);
  EXPECT_THROW(sliding_windows(10, 4, 0), Error);
  EXPECT_THROW(sliding_windows(10, 4, 5), Error);
  EXPECT_THROW(block_windows(1, 4), Error);
  EXPECT_THROW(block_windows(0, 4, BlockStart::kAfterBos), Error);
  EXPECT_THROW(block_windows(10, 1), Error);
}

TEST(NllSum, weighs_tokens_where_the_compatible_mean_weighs_windows) {
  NllSum sum;
  for (int i = 0; i < 512; ++i) sum.add(i, 3.0);
  for (int i = 0; i < 512; ++i) sum.add(256 + i % 256, 2.0);
  EXPECT_EQ(sum.count(), 1024);
  EXPECT_NEAR(sum.perplexity(), 12.18, 0.005);
  EXPECT_DOUBLE_EQ(sum.perplexity(), std::exp(2.5));
  EXPECT_NEAR(perplexity_of_window_means(std::vector{3.0, 2.0, 2.0}), 10.31, 0.005);
  EXPECT_THROW(perplexity_of_window_means({}), Error);
}

TEST(NllSum, of_a_uniform_model_has_the_vocabulary_as_perplexity) {
  NllSum sum;
  for (int i = 0; i < 1000; ++i) sum.add(i, std::log(49152.0));
  EXPECT_NEAR(sum.perplexity(), 49152.0, 1e-6);
  EXPECT_NEAR(sum.bits_per_byte(4000), std::log2(49152.0) / 4, 1e-12);
  EXPECT_THROW(sum.bits_per_byte(0), Error);
}

TEST(NllSum, keeps_one_mean_per_bucket_of_positions) {
  NllSum sum(bucket_edges(8, 4));
  sum.add(1, std::vector<float>{1, 2, 4, 5, 6, 7});  // positions 1 to 6
  sum.add(0, 3.0);
  sum.add(99, 100.0);  // outside: in the total only
  const std::vector<double> means = sum.bucket_means();
  ASSERT_EQ(means.size(), 4u);
  EXPECT_EQ(means[0], 2.0);
  EXPECT_EQ(means[1], 3.0);
  EXPECT_EQ(means[2], 5.5);
  EXPECT_EQ(means[3], 7.0);
  EXPECT_EQ(sum.bucket_counts(), (std::vector<int64_t>{2, 2, 2, 1}));
  EXPECT_EQ(sum.sum(), 128.0);
}

TEST(NllSum, that_is_empty_is_not_a_number) {
  EXPECT_TRUE(std::isnan(NllSum().mean()));
  EXPECT_TRUE(std::isnan(NllSum().perplexity()));
  EXPECT_TRUE(std::isnan(NllSum(bucket_edges(4, 2)).bucket_means()[1]));
}

TEST(NllSum, merged_equals_one_sum_over_everything) {
  NllSum all(bucket_edges(10, 3)), left(bucket_edges(10, 3)), right(bucket_edges(10, 3));
  for (int i = 0; i < 10; ++i) {
    all.add(i, i * 0.5);
    (i < 4 ? left : right).add(i, i * 0.5);
  }
  left.merge(right);
  EXPECT_EQ(left.sum(), all.sum());
  EXPECT_EQ(left.bucket_means(), all.bucket_means());
  EXPECT_THROW(left.merge(NllSum()), Error);
}

TEST(BucketEdges, divide_any_length_evenly) {
  EXPECT_EQ(bucket_edges(4096, 4), (std::vector<int64_t>{0, 1024, 2048, 3072, 4096}));
  EXPECT_EQ(bucket_edges(10, 3), (std::vector<int64_t>{0, 3, 6, 10}));
  EXPECT_THROW(bucket_edges(3, 4), Error);
  EXPECT_THROW(bucket_edges(3, 0), Error);
}

TEST(DocumentInterval, resamples_documents_and_weighs_them_by_tokens) {
  std::vector<NllSum> documents(50);
  for (int d = 0; d < 50; ++d)
    for (int t = 0; t < (d % 2 == 0 ? 30 : 10); ++t) documents[size_t(d)].add(t, d % 2 == 0 ? 2.0 : 4.0);
  const std::optional<Interval> interval = document_interval(documents, 1);
  ASSERT_TRUE(interval);
  EXPECT_DOUBLE_EQ(interval->mean, 2.5);
  EXPECT_LT(interval->low, 2.5);
  EXPECT_GT(interval->high, 2.5);
  EXPECT_NEAR(interval->high - interval->low, 2 * 1.96 * 0.1061, 0.06);  // delta method: standard error 0.106
}

TEST(DocumentInterval, of_equal_documents_is_a_point_and_of_one_document_unknown) {
  std::vector<NllSum> documents(3);
  for (NllSum& document : documents) document.add(1, 2.0);
  const std::optional<Interval> point = document_interval(documents, 1);
  ASSERT_TRUE(point);
  EXPECT_EQ(point->low, 2.0);
  EXPECT_EQ(point->high, 2.0);
  EXPECT_FALSE(document_interval(std::span(documents).first(1), 1));
  EXPECT_FALSE(document_interval({}, 1));
}

}  // namespace
}  // namespace foveate::eval
