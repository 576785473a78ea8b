// What mechanisms ask a call: the keys its rule shows, and where its rows stand in their texts.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "tests/attention/calls.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

std::string message_of(const Rule& rule, bool causal = true) {
  return test::message_of([&] { seen_keys(rule, 8, 8, "here", causal); });
}

TEST(SeenKeys, are_one_range_for_all_heads_or_an_error) {
  const SeenKeys seen = seen_keys({.window_left = 2, .key_lengths = at::tensor({4, 8}, at::kLong)}, 8, 8, "here");
  EXPECT_TRUE(seen.start.equal(at::tensor({0, 0, 0, 1, 2, 3, 4, 5}, at::kLong).unsqueeze(0)));
  EXPECT_TRUE(seen.end[0].equal(at::tensor({1, 2, 3, 4, 4, 4, 4, 5}, at::kLong))) << seen.end[0];
  EXPECT_TRUE(seen.end[1].equal(at::arange(1, 9, at::kLong)));
  EXPECT_EQ(message_of({.window_left = 3, .sinks = 2}),
            "here: every query must see one range of keys, got 2 sinks beside a window; use dense");
  EXPECT_EQ(message_of({.head_window = at::tensor({1, -1}, at::kLong)}),
            "here: what a query sees must be the same for all heads, got ranges of 2 heads; use dense");
  const at::Tensor in_pieces = at::arange(8, at::kLong).remainder(2).unsqueeze(0);
  EXPECT_EQ(message_of({.query_documents = in_pieces, .key_documents = in_pieces}),
            "here: every query must see one range of keys, got documents or padding in pieces; use dense");
  const Rule pieces{.query_documents = in_pieces, .key_documents = in_pieces};
  EXPECT_TRUE(shown_keys(pieces, 8, 8, "here").start.equal(at::arange(8, at::kLong).remainder(2).unsqueeze(0)));
  EXPECT_EQ(message_of({.query_order = at::arange(8, at::kLong).view({1, 1, 8})}),
            "here: ordered queries are not supported, give queries as they come");
  EXPECT_EQ(message_of(Rule::full()), "here: attention must be causal, got a rule that shows later keys; use dense");
  EXPECT_EQ(message_of(Rule::full(), false), "no error");
  Rule ranges = Rule::full();  // causal in other words
  ranges.row_end = at::arange(1, 9, at::kLong).view({1, 1, 8});
  EXPECT_EQ(message_of(ranges), "no error");
}

TEST(TextPositions, begin_where_padding_and_documents_end) {
  Inputs in = test::random_call(4, 8);
  EXPECT_TRUE(text_positions(in, "here").equal(at::tensor({4, 5, 6, 7}, at::kLong).unsqueeze(0)));
  in.first_position = 20;
  EXPECT_TRUE(text_positions(in, "here").equal(at::tensor({20, 21, 22, 23}, at::kLong).unsqueeze(0)));
  in.first_position = std::nullopt;
  in.rule.row_start = at::tensor({3, 0}, at::kLong).view({2, 1, 1}).expand({2, 1, 4});
  EXPECT_TRUE(text_positions(in, "here").equal(at::tensor({1, 2, 3, 4, 4, 5, 6, 7}, at::kLong).view({2, 4})));
  in.rule.row_start = std::nullopt;
  in.rule.window_left = 1;
  in.rule.key_documents = at::tensor({0, 0, 0, 0, 0, 0, 1, 1}, at::kLong).expand({2, 8});
  in.rule.query_documents = in.rule.key_documents->narrow(1, 4, 4);
  EXPECT_TRUE(text_positions(in, "here")[1].equal(at::tensor({4, 5, 0, 1}, at::kLong)));
}

TEST(Inputs, keys_in_sight_are_those_of_the_texts_whatever_a_window_hides) {
  Inputs in = test::random_call(4, 10);
  EXPECT_TRUE(keys_in_sight(in).is_same(in.k));
  in.rule.row_start = at::full({1, 1, 4}, 3, at::kLong);
  for (const bool has_window : {false, true}) {
    if (has_window) in.rule.window_left = 1;
    const at::Tensor got = keys_in_sight(in);
    EXPECT_TRUE(got.narrow(2, 0, 3).eq(0).all().item<bool>());
    EXPECT_TRUE(got.narrow(2, 3, 7).equal(in.k.narrow(2, 3, 7))) << has_window;
  }
}

}  // namespace
}  // namespace foveate::attention
