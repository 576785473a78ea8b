#include "foveate/ops/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/base/error.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;
using test::same;

TEST(Rotary, equals_the_formula) {
  const at::Tensor x = random_tensor({1, 2, 5, 8}, 1, at::kDouble);
  const at::Tensor got = Rotary(6, 100, 2).rotate(x, at::arange(3, 8, at::kLong));
  for (int64_t l = 0; l < 5; ++l)
    for (int64_t i = 0; i < 3; ++i) {
      const double angle = double(l + 3) / 2 * std::pow(100, -2.0 * double(i) / 6);
      const double a = x[0][1][l][i].item<double>(), b = x[0][1][l][i + 3].item<double>();
      EXPECT_NEAR(got[0][1][l][i].item<double>(), a * std::cos(angle) - b * std::sin(angle), 1e-12);
      EXPECT_NEAR(got[0][1][l][i + 3].item<double>(), b * std::cos(angle) + a * std::sin(angle), 1e-12);
    }
  EXPECT_TRUE(got.narrow(3, 6, 2).equal(x.narrow(3, 6, 2)));  // channels beyond dim pass
}

TEST(Rotary, rotations_add_up_also_backwards) {
  const Rotary rotary(8, 1e4);
  const at::Tensor x = random_tensor({1, 1, 4, 8}, 2, at::kDouble), p = at::arange(4, at::kLong) * 100;
  EXPECT_TRUE(same(rotary.rotate(rotary.rotate(x, p), p * -1 + 7), rotary.rotate(x, p * 0 + 7), {1e-12, 1e-12}));
}

TEST(Rotary, one_rotation_serves_many_tensors) {
  const Rotary rotary(6, 100, 2);
  const at::Tensor p = at::arange(3, 8, at::kLong);
  const Rotation rotation = rotary.rotation(p, at::kFloat);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({1, 2, 5, 8}, 1).to(type);
    EXPECT_TRUE(rotation.rotate(x).equal(rotary.rotate(x, p)));
  }
  EXPECT_THROW(rotation.rotate(random_tensor({1, 1, 4, 8}, 1)), Error);
  EXPECT_TRUE(rotary == Rotary(6, 100, 2));
  EXPECT_FALSE(rotary == Rotary(6, 100));
  EXPECT_FALSE(rotary == Rotary(8, 100, 2));
}

TEST(Rotary, refuses_odd_dims) {
  EXPECT_THROW(Rotary(5, 100), Error);
  EXPECT_THROW(Rotary(4, 0), Error);
  EXPECT_THROW(Rotary(8, 10).rotate(random_tensor({1, 1, 1, 4}, 1), at::arange(1, at::kLong)), Error);
}

}  // namespace
}  // namespace foveate::ops
