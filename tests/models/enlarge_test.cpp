// Large images in tiles, and the mean over the eight ways in which an image lies.
#include "foveate/models/vision/enlarge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using at::Tensor;
using test::message_of;
using test::random_tensor;
using test::same;

// A convolution that reaches `radius` pixels and takes what is behind the border for black.
ImageModel convolution(int64_t scale, int64_t radius) {
  const int64_t side = 2 * radius + 1;
  const Tensor weight = random_tensor({3 * scale * scale, 3, side, side}, 1);
  return [=](const Tensor& x) { return at::pixel_shuffle(at::conv2d(x, weight, {}, {1, 1}, {radius, radius}), scale); };
}

ImageModel repeated(int64_t scale) {
  return [=](const Tensor& x) { return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3); };
}

TEST(Tiles, give_what_the_whole_image_gives_where_a_quarter_of_the_overlap_is_all_that_counts) {
  for (const int64_t scale : {1, 2, 3})
    for (const auto& [height, width] : std::vector<std::pair<int64_t, int64_t>>{{50, 37}, {16, 90}, {12, 12}, {17, 16}})
      for (const Tiling& tiling : {Tiling{16, 8}, Tiling{24, 12}, Tiling{200, 8}, Tiling{0, 8}}) {
        const Tensor image = random_tensor({2, 3, height, width}, 2);
        const ImageModel model = convolution(scale, 2);
        EXPECT_TRUE(same(enlarge_in_tiles(model, image, scale, tiling), model(image), {1e-4, 1e-5}))
            << scale << " " << height << " " << width << " " << tiling.tile;
      }
  const Tensor image = random_tensor({1, 3, 40, 40}, 3);
  const ImageModel model = convolution(2, 3);  // further than a quarter of 8
  EXPECT_FALSE(same(enlarge_in_tiles(model, image, 2, {16, 8}), model(image), {1e-4, 1e-5}));
}

TEST(Tiles, a_constant_image_gives_a_constant) {
  for (const Tiling& tiling : {Tiling{16, 0}, Tiling{16, 1}, Tiling{17, 5}, Tiling{16, 8}})
    for (const int64_t side : {31, 32, 33, 47})
      EXPECT_TRUE(same(enlarge_in_tiles(repeated(2), at::full({1, 3, side, 70}, 0.375), 2, tiling),
                       at::full({1, 3, 2 * side, 140}, 0.375), {1e-6, 0}));
}

// Each tile is a number of its own, so that the result shows how they fade: by the rule in double.
TEST(Tiles, fade_into_each_other_over_the_middle_half_of_their_overlap) {
  constexpr int64_t kWidth = 45, kTile = 16, kOverlap = 4, kScale = 2;
  double number = 0;
  const ImageModel counting = [&](const Tensor& x) {
    EXPECT_EQ(x.size(3), kTile);
    return at::full({1, 1, kScale * x.size(2), kScale * x.size(3)}, number++);
  };
  const Tensor got = enlarge_in_tiles(counting, at::zeros({1, 1, 3, kWidth}), kScale, {kTile, kOverlap});
  const std::vector<int64_t> starts = {0, 9, 19, 29};
  for (int64_t p = 0; p < kScale * kWidth; ++p) {
    double sum = 0, weights = 0;
    for (size_t t = 0; t < starts.size(); ++t) {
      const double place = double(p - kScale * starts[t]) + 0.5, size = kScale * kTile, overlap = kScale * kOverlap;
      if (place < 0 || place > size) continue;
      double weight = 1;
      if (t > 0) weight *= std::clamp((place - overlap / 4) / (overlap / 2), 0.0, 1.0);
      if (t + 1 < starts.size()) weight *= std::clamp((size - place - overlap / 4) / (overlap / 2), 0.0, 1.0);
      sum += weight * double(t), weights += weight;
    }
    ASSERT_GT(weights, 0) << p;
    for (int64_t row = 0; row < kScale * 3; ++row)
      EXPECT_NEAR(got[0][0][row][p].item<double>(), sum / weights, 1e-5) << p;
  }
}

TEST(Tiles, say_how_far_they_are_and_can_be_stopped) {
  std::vector<std::pair<int64_t, int64_t>> seen;
  const auto observe = [&](int64_t done, int64_t all) { seen.emplace_back(done, all); };
  enlarge_in_tiles(repeated(2), at::zeros({1, 3, 20, 30}), 2, {16, 4}, observe);
  EXPECT_EQ(seen, (std::vector<std::pair<int64_t, int64_t>>{{1, 6}, {2, 6}, {3, 6}, {4, 6}, {5, 6}, {6, 6}}));
  struct Stop {};
  const auto stop = [](int64_t, int64_t) { throw Stop(); };
  EXPECT_THROW(enlarge_in_tiles(repeated(2), at::zeros({1, 3, 20, 30}), 2, {16, 4}, stop), Stop);
}

TEST(Tiles, refuse_what_does_not_fit) {
  const auto refusal = [](const Tensor& image, int64_t scale, const Tiling& tiling) {
    return message_of([&] { enlarge_in_tiles(repeated(2), image, scale, tiling); });
  };
  EXPECT_EQ(refusal(at::zeros({1, 3, 20, 20}), 2, {16, 9}),
            "tiles: overlap must be at most half of a tile of 16 pixels, got 9");
  EXPECT_EQ(refusal(at::zeros({1, 3, 20, 20}), 2, {-1, 0}), "tiles: tile must be 0 .. 1048576, got -1");
  EXPECT_EQ(refusal(at::zeros({3, 20, 20}), 2, {}),
            "tiles: the image must be [B, C, H, W] and scale >= 1, got [3, 20, 20] and 2");
  EXPECT_EQ(refusal(at::zeros({1, 3, 20, 20}), 3, {}),
            "tiles: the model's output must be [1, 3, 60, 60], got [1, 3, 40, 40]");
}

// The eight by quarter turns and one mirror, brought back the other way around.
TEST(SelfEnsemble, is_the_mean_over_turns_and_mirrors) {
  for (const auto& [height, width] : std::vector<std::pair<int64_t, int64_t>>{{7, 7}, {5, 9}}) {
    const Tensor image = random_tensor({2, 3, height, width}, 4);
    const ImageModel model = convolution(2, 1);
    Tensor want = at::zeros({2, 3, 2 * height, 2 * width}, at::kDouble);
    for (int64_t turns = 0; turns < 4; ++turns)
      for (const bool mirrors : {false, true}) {
        const Tensor x = image.rot90(turns, {2, 3});
        const Tensor y = model(mirrors ? x.flip({3}) : x);
        want += (mirrors ? y.flip({3}) : y).rot90(-turns, {2, 3}).to(at::kDouble) / 8;
      }
    EXPECT_TRUE(same(self_ensemble(model)(image), want, {1e-4, 1e-5}));
    EXPECT_FALSE(same(model(image), want, {1e-2, 1e-2}));
  }
}

}  // namespace
}  // namespace foveate::models
