#include "foveate/eval/kept_mass.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/window.h"
#include "tests/support/compare.h"

namespace foveate::eval {
namespace {

// The definition in loops: of rows at the ends of the quarters, how much of the softmax over all earlier keys lies on
// the last `size` of them and the first one.
TEST(KeptMass, is_the_share_of_the_dense_softmax_on_visited_keys) {
  constexpr int64_t kLength = 203, kHeads = 4, kDim = 8, kSize = 20;
  attention::Inputs in;
  in.q = 2 * test::random_tensor({1, kHeads, kLength, kDim}, 1),
  in.k = 2 * test::random_tensor({1, 2, kLength, kDim}, 2);
  in.v = test::random_tensor({1, 2, kLength, kDim}, 3);
  const auto q = in.q.accessor<float, 4>(), k = in.k.accessor<float, 4>();
  double sum = 0;
  for (int64_t part = 1; part <= 4; ++part)
    for (int64_t row = kLength * part / 4 - 32; row < kLength * part / 4; ++row)
      for (int64_t head = 0; head < kHeads; ++head) {
        double kept = 0, all = 0;
        for (int64_t key = 0; key <= row; ++key) {
          double dot = 0;
          for (int64_t d = 0; d < kDim; ++d) dot += double(q[0][head][row][d]) * double(k[0][head / 2][key][d]);
          const double weight = std::exp(dot / std::sqrt(double(kDim)));
          all += weight;
          if (row - key < kSize || key == 0) kept += weight;
        }
        sum += kept / all / (4 * 32 * kHeads);
      }
  const attention::Window window{.size = kSize, .sinks = 1};
  EXPECT_NEAR(kept_mass(in, window.attend(in)).value(), sum, 1e-4);
  EXPECT_GT(sum, 0.1);
  EXPECT_LT(sum, 0.9);
  EXPECT_NEAR(kept_mass(in, attention::Dense{}.attend(in)).value(), 1, 1e-5);
  attention::Attended without = window.attend(in);
  without.lse.reset();
  EXPECT_EQ(kept_mass(in, without), std::nullopt);
}

// What goes by row must be that of the rows that are looked at.
TEST(KeptMass, of_dense_attention_is_all_whatever_goes_by_row) {
  attention::Inputs in;
  in.q = test::random_tensor({2, 4, 203, 8}, 1), in.k = test::random_tensor({2, 2, 203, 8}, 2);
  in.v = test::random_tensor({2, 2, 203, 8}, 3);
  const at::Tensor row = at::arange(203, at::kLong);
  in.rule.row_start = (row / 3).to(at::kLong).view({1, 1, 203});
  in.rule.row_end = (row + 1 - row.remainder(2)).view({1, 1, 203});
  in.rule.query_documents = in.rule.key_documents = row.div(50, "floor").expand({2, 203});
  in.score.bias = 3 * test::random_tensor({1, 1, 203, 203}, 4);
  const double mass = kept_mass(in, attention::Dense{}.attend(in)).value();
  EXPECT_NEAR(mass, 1, 1e-5);
}

}  // namespace
}  // namespace foveate::eval
