#include "foveate/ops/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/fused.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

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

TEST(Rotary, each_row_for_each_of_its_places_in_one_pass) {
  const Rotation table = Rotary(6, 100).rotation(at::arange(9, at::kLong) * 5, at::kFloat);
  const at::Tensor places = at::arange(2 * 3 * 4 * 2, at::kLong).mul(7).remainder(9).view({2, 3, 4, 2});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({2, 3, 6, 8}, 4).to(type).narrow(2, 1, 4);
    const at::Tensor got = rotated_for_each(x, places, table), flat = places.flatten();
    const Rotation of_rows{table.cos.index_select(0, flat), table.sin.index_select(0, flat)};
    const at::Tensor copies = x.unsqueeze(3).expand({2, 3, 4, 2, 8}).reshape({1, 1, -1, 8});
    EXPECT_TRUE(same(got.flatten(), of_rows.rotate(copies).flatten(), {1e-6, type == at::kFloat ? 1e-6 : 4e-3}));
  }
  const at::Tensor x = random_tensor({2, 3, 4, 8}, 4);
  EXPECT_EQ(test::message_of([&] { rotated_for_each(x, places + 1, table); }),
            "rotated_for_each: places must be 0 .. 8, got others");
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
