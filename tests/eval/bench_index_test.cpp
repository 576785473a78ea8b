#include "foveate/eval/bench_index.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

TEST(BenchIndex, runs_at_lengths_around_a_block) {
  for (const int64_t length : {1, 100, 127, 128, 129, 300}) {
    const IndexTiming t = bench_index(length, {.heads = 2, .dim = 16, .block = 128, .rows = 4, .repeats = 1});
    EXPECT_EQ(t.length, length);
    EXPECT_GT(t.flat, 0);
    EXPECT_GT(t.hierarchical, 0);
  }
  EXPECT_THROW(bench_index(0, {}), Error);
}

}  // namespace
}  // namespace foveate::eval
