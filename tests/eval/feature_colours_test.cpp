// Colours of features against directions that are known.
#include "foveate/eval/feature_colours.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::eval {
namespace {

using at::Tensor;
using test::message_of;
using test::random_tensor;
using test::same;

TEST(FeatureColours, axes_in_the_order_of_their_spread_are_red_green_and_blue) {
  const Tensor unit = random_tensor({3, 40}, 1, at::kDouble);
  // Values that are not correlated with each other, by Gram and Schmidt; the first spreads least.
  Tensor a = unit[0] - unit[0].mean(), b = unit[1] - unit[1].mean(), c = unit[2] - unit[2].mean();
  a = a / a.norm(), b = b - a * b.dot(a), b = b / b.norm();
  c = c - a * c.dot(a) - b * c.dot(b), c = c / c.norm();
  const Tensor maps = at::stack({a, 5 * c + 2, 3 * b}).view({3, 5, 8});
  const std::array both = {maps.narrow(1, 0, 2), maps.narrow(1, 2, 3)};
  const auto pictures = colour_features(both);
  const auto scaled = [](const Tensor& x) { return (x - x.min()) / (x.max() - x.min()); };
  const Tensor want = at::stack({scaled(c), scaled(b), scaled(a)}).view({3, 5, 8});
  EXPECT_TRUE(same(pictures[0], want.narrow(1, 0, 2), {1e-5, 0}));
  EXPECT_TRUE(same(pictures[1], want.narrow(1, 2, 3), {1e-5, 0}));
}

TEST(FeatureColours, of_maps_without_differences_are_black) {
  const std::array map = {random_tensor({4, 1, 1}, 1).expand({4, 2, 2})};
  EXPECT_TRUE(same(colour_features(map)[0], at::Tensor(map[0].narrow(0, 0, 3)) * 0, {1e-3, 0}));
}

TEST(FeatureColours, say_what_does_not_fit) {
  const auto refusal = [](Tensor a, Tensor b) { return message_of([&] { colour_features(std::array{a, b}); }); };
  const Tensor map = random_tensor({4, 2, 2}, 1);
  EXPECT_EQ(refusal(map, random_tensor({3, 2, 2}, 1)),
            "colour_features: maps must be [C, h, w] of floats with the same C >= 3, got Float [3, 2, 2]");
  EXPECT_EQ(refusal(map, map[0]),
            "colour_features: maps must be [C, h, w] of floats with the same C >= 3, got Float [2, 2]");
  EXPECT_EQ(refusal(map, map * NAN), "colour_features: features must be finite, got NaN or infinity");
  EXPECT_EQ(message_of([] { colour_features({}); }), "colour_features: maps are needed, got none");
}

}  // namespace
}  // namespace foveate::eval
