// TriangleMix's prompt rule against plain loops.
#include "foveate/attention/sparse/triangle.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/attention/dense.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

Inputs make_inputs(int64_t queries, int64_t keys) { return test::random_call(queries, keys, {.dim = 6}); }

test::OracleResult oracle(const Triangle& o, const Inputs& in, bool has_last) {
  const int64_t queries = in.q.size(2), start = in.k.size(2) - queries;
  const int64_t left = in.rule.window_left.value_or(1 << 30);
  return test::oracle_attention(to_array(in.q), to_array(in.k), to_array(in.v),
                                [&](int64_t, int64_t, int64_t i, int64_t j) {
                                  const int64_t p = start + i;
                                  const bool own = p - j < o.size || j < o.sinks,
                                             is_last = has_last && i >= queries - o.last;
                                  return int(j <= p && p - j <= left && (is_last || own));
                                },
                                {.scale = 1 / std::sqrt(6.0)});
}

TEST(Triangle, equals_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const Triangle& o : {Triangle{.size = 5, .sinks = 3, .last = 7}, Triangle{.size = 1, .sinks = 0, .last = 0},
                            Triangle{.size = 9, .sinks = 2, .last = 100}})
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{{40, 40}, {13, 40}, {1, 1}})
      for (const std::optional<int64_t> window : {std::optional<int64_t>{}, std::optional<int64_t>{6}}) {
        Inputs in = make_inputs(queries, keys);
        in.rule.window_left = window;
        const Attended got = o.attend(in);
        const auto want = oracle(o, in, true);
        EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-10, 1e-10})) << to_spec(o).text() << " " << queries;
        EXPECT_TRUE(same(*got.lse, to_tensor(want.lse).squeeze(3), {1e-10, 1e-10}));
      }
}

TEST(Triangle, only_the_end_of_a_prompt_has_dense_rows_and_generated_rows_are_dense) {
  const at::NoGradGuard no_grad;
  const Triangle o{.size = 5, .sinks = 3, .last = 7};
  Inputs chunk = make_inputs(20, 40), one = make_inputs(1, 40);
  chunk.ends_prompt = false;
  EXPECT_TRUE(same(o.attend(chunk).out, to_tensor(oracle(o, chunk, false).out), {1e-10, 1e-10}));
  EXPECT_TRUE(o.attend(one).out.equal(Dense{}.attend(one).out));
  one.ends_prompt = false;
  EXPECT_TRUE(same(o.attend_prompt(one).out, to_tensor(oracle(o, one, false).out), {1e-10, 1e-10}));
}

}  // namespace
}  // namespace foveate::attention
