// Neighborhood attention along a text against plain loops, and against the operator of grids.
#include "foveate/attention/local/neighborhood.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/ops/neighborhood/neighborhood.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/messages.h"
#include "tests/support/neighborhood_oracle.h"

namespace foveate::attention {
namespace {

using test::same;
using test::to_array;
using test::to_tensor;

// text: key index at which every query's text begins.
test::OracleResult oracle(const NeighborhoodWindow& o, const Inputs& in, int64_t text) {
  const int64_t start = in.k.size(2) - in.q.size(2);
  const int64_t left = in.rule.window_left.value_or(1 << 30);
  const test::GridAxis axis{in.k.size(2), o.kernel, o.stride, o.dilation, true};
  return test::oracle_attention(to_array(in.q), to_array(in.k), to_array(in.v),
                                [&](int64_t, int64_t, int64_t i, int64_t j) {
                                  if (start + i < text || start + i - j > left) return 0;
                                  int found = 0;
                                  for (const auto& key : test::window_keys(axis, start + i - text, false))
                                    found += key.position + text == j;
                                  return found;
                                },
                                {.scale = 1 / std::sqrt(6.0)});
}

TEST(NeighborhoodWindow, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const NeighborhoodWindow& o :
       {NeighborhoodWindow{.kernel = 5}, NeighborhoodWindow{.kernel = 4, .dilation = 3},
        NeighborhoodWindow{.kernel = 6, .dilation = 2, .stride = 4}, NeighborhoodWindow{.kernel = 3, .dilation = 50},
        NeighborhoodWindow{.kernel = 1}, NeighborhoodWindow{.kernel = 7, .stride = 7}})
    for (const auto& [queries, keys] :
         std::vector<std::pair<int64_t, int64_t>>{{40, 40}, {13, 40}, {1, 40}, {1, 1}, {300, 301}})
      for (const std::optional<int64_t> window : {std::optional<int64_t>{}, std::optional<int64_t>{6}})
        for (const int64_t text : {0, 7}) {
          if (text > 0 && keys != 40) continue;
          Inputs in = test::random_call(queries, keys, {.dim = 6});
          in.rule.window_left = window;
          if (text > 0) in.rule.row_start = at::full({1, 1, queries}, text, at::kLong);
          const Attended got = o.attend(in);
          const auto want = oracle(o, in, text);
          EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10}))
              << to_spec(o).text() << " " << queries << " " << text;
          EXPECT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
        }
}

TEST(NeighborhoodWindow, is_the_operator_on_one_causal_axis_of_streaming_windows) {
  const Inputs in = test::random_call(70, 70, {.dim = 6, .type = at::kFloat});
  const NeighborhoodWindow o{.kernel = 6, .dilation = 3, .stride = 2};
  const Neighborhood line{{{70, 6, 2, 3, true, false}}};
  EXPECT_TRUE(same(o.attend(in).out, ops::attend_neighborhood(in.q, in.k, in.v, line).out, {1e-5, 1e-5}));
}

TEST(NeighborhoodWindow, gradients_are_right) {
  const Inputs in = test::random_call(21, 21, {.batch = 1, .heads = 2, .kv_heads = 1});
  const NeighborhoodWindow o{.kernel = 4, .dilation = 3, .stride = 2};
  test::expect_gradients([&] { return o.attend(in).out.square().sum(); }, {in.q, in.k, in.v}, 1e-6, 12);
}

TEST(NeighborhoodWindow, says_what_does_not_fit) {
  const Inputs in = test::random_call(4, 4);
  const auto message = [&](const NeighborhoodWindow& o) { return test::message_of([&] { o.attend(in); }); };
  EXPECT_EQ(message({.kernel = 0}), "neighborhood: kernel must be >= 1, got 0");
  EXPECT_EQ(message({.kernel = 3, .stride = 4}), "neighborhood: stride must be <= kernel, got 4 > 3");
}

}  // namespace
}  // namespace foveate::attention
