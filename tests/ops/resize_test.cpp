// Bicubic resizing against its definition as loops in double, torch's own inside of the borders, and MATLAB's rule.
#include "foveate/ops/resize.h"

#include <ATen/ops/_upsample_bicubic2d_aa.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::ops {
namespace {

using test::message_of;
using test::random_tensor;
using test::same;

double keys(double x) {
  const double a = -0.5, t = std::fabs(x);
  if (t <= 1) return (a + 2) * t * t * t - (a + 3) * t * t + 1;
  if (t < 2) return a * t * t * t - 5 * a * t * t + 8 * a * t - 4 * a;
  return 0;
}

// The weight of every old sample in a new one, with the line mirrored at both ends as often as needed.
std::vector<double> weights_of(int64_t place, int64_t from, int64_t to) {
  const double scale = double(to) / double(from), wide = scale < 1 ? scale : 1;
  const double center = (double(place) + 0.5) * double(from) / double(to) - 0.5;
  std::vector<double> weights(size_t(from), 0.0);
  double sum = 0;
  for (int64_t j = -20 * from - 50; j < 21 * from + 50; ++j) {
    int64_t inside = j;
    while (inside < 0 || inside >= from) inside = inside < 0 ? -1 - inside : 2 * from - 1 - inside;
    const double weight = keys(wide * (center - double(j)));
    weights[size_t(inside)] += weight, sum += weight;
  }
  for (double& w : weights) w /= sum;
  return weights;
}

at::Tensor oracle(const at::Tensor& x, int64_t height, int64_t width) {
  const at::Tensor out = at::empty({x.size(0), x.size(1), height, width}, at::kDouble);
  const auto a = x.accessor<double, 4>();
  auto o = out.accessor<double, 4>();
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < width; ++j) {
      const auto rows = weights_of(i, x.size(2), height), columns = weights_of(j, x.size(3), width);
      for (int64_t b = 0; b < x.size(0); ++b)
        for (int64_t c = 0; c < x.size(1); ++c) {
          double sum = 0;
          for (int64_t y = 0; y < x.size(2); ++y)
            for (int64_t z = 0; z < x.size(3); ++z) sum += rows[size_t(y)] * columns[size_t(z)] * a[b][c][y][z];
          o[b][c][i][j] = sum;
        }
    }
  return out;
}

TEST(ResizeBicubic, is_its_definition_at_any_size) {
  const at::Tensor x = random_tensor({2, 3, 12, 9}, 1, at::kDouble);
  for (const auto& [h, w] : std::vector<std::pair<int64_t, int64_t>>{
           {6, 9}, {24, 18}, {4, 3}, {36, 27}, {3, 20}, {12, 9}, {1, 1}, {13, 8}, {5, 7}, {48, 2}})
    EXPECT_TRUE(same(resize_bicubic(x, h, w), oracle(x, h, w), {1e-12, 0})) << h << " x " << w;
  for (const int64_t n : {1, 2, 3}) {  // mirrored more than once
    const at::Tensor small = random_tensor({1, 1, n, n}, 2, at::kDouble);
    for (const int64_t to : {1, 2, 7})
      EXPECT_TRUE(same(resize_bicubic(small, to, to), oracle(small, to, to), {1e-12, 0}));
  }
}

TEST(ResizeBicubic, gives_the_numbers_of_matlabs_rule) {
  // squares 0 .. 81, by MATLAB's `contributions` in numpy
  const at::Tensor x = at::arange(10, at::kDouble).square().view({1, 1, 1, 10});
  const auto row = [](const std::vector<double>& v) { return at::tensor(v, at::kDouble).view({1, 1, 1, -1}); };
  EXPECT_TRUE(
      same(resize_bicubic(x, 1, 5), row({0.30078125, 6.26171875, 20.25, 42.47265625, 73.21484375}), {1e-12, 0}));
  EXPECT_TRUE(same(resize_bicubic(x, 1, 3), row({1.46547357757893, 20.53611433709212, 63.51021441836905}), {1e-12, 0}));
  EXPECT_TRUE(same(resize_bicubic(x.slice(3, 0, 4), 1, 8),
                   row({-0.09375, 0.1328125, 0.5859375, 1.5625, 3.0625, 5.2265625, 8.0546875, 9.46875}), {1e-12, 0}));
  EXPECT_TRUE(same(resize_bicubic(x.slice(3, 0, 4), 1, 12),
                   row({-0.11111111111111, 0.0, 0.18518518518518, 0.48148148148148, 1.0, 1.77777777777778,
                        2.77777777777778, 4.0, 5.7037037037037, 7.62962962962964, 9.0, 9.55555555555556}),
                   {1e-12, 0}));
}

TEST(ResizeBicubic, is_torchs_antialiased_form_inside_of_the_borders) {
  const at::Tensor x = random_tensor({1, 2, 48, 60}, 3, at::kDouble);
  for (const auto& [h, w] : std::vector<std::pair<int64_t, int64_t>>{{24, 30}, {16, 20}, {96, 120}, {12, 180}}) {
    const auto inside = [&](const at::Tensor& t) { return t.slice(2, h / 4, h - h / 4).slice(3, w / 4, w - w / 4); };
    const at::Tensor torchs = at::_upsample_bicubic2d_aa(x, {h, w}, false);
    EXPECT_TRUE(same(inside(resize_bicubic(x, h, w)), inside(torchs), {1e-12, 0})) << h << " x " << w;
  }
}

TEST(ResizeBicubic, keeps_what_is_constant_and_what_is_already_as_large) {
  const at::Tensor x = at::full({1, 3, 7, 11}, 0.3, at::kFloat);
  EXPECT_TRUE(same(resize_bicubic(x, 20, 3), at::full({1, 3, 20, 3}, 0.3, at::kFloat), {1e-6, 0}));
  const at::Tensor noise = random_tensor({2, 1, 5, 6}, 4);
  EXPECT_TRUE(resize_bicubic(noise, 5, 6).equal(noise));
}

TEST(ResizeBicubic, gives_each_image_of_a_batch_what_it_gives_it_alone) {
  const at::Tensor x = random_tensor({3, 2, 10, 14}, 5), all = resize_bicubic(x, 5, 7);
  for (int64_t b = 0; b < 3; ++b) EXPECT_TRUE(resize_bicubic(x.slice(0, b, b + 1), 5, 7).equal(all.slice(0, b, b + 1)));
  EXPECT_TRUE(resize_bicubic(x.transpose(2, 3), 7, 5).is_contiguous());
}

TEST(ResizeBicubic, sums_small_floats_in_fp32) {
  const at::Tensor x = random_tensor({1, 1, 16, 16}, 6, at::kBFloat16);
  const at::Tensor got = resize_bicubic(x, 8, 8);
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(got.equal(resize_bicubic(x.to(at::kFloat), 8, 8).to(at::kBFloat16)));
}

TEST(ResizeBicubic, has_the_gradient_of_a_linear_map) {
  const at::Tensor x = random_tensor({1, 1, 6, 5}, 7, at::kDouble).requires_grad_();
  const at::Tensor g = random_tensor({1, 1, 3, 10}, 8, at::kDouble);
  (resize_bicubic(x, 3, 10) * g).sum().backward();
  const at::Tensor want = at::empty({1, 1, 6, 5}, at::kDouble);
  for (int64_t i = 0; i < 30; ++i) {
    const at::Tensor one = at::full({30}, 0.0, at::kDouble);
    one[i] = 1;
    want.view(-1)[i] = (oracle(one.view({1, 1, 6, 5}), 3, 10) * g).sum();
  }
  EXPECT_TRUE(same(x.grad(), want, {1e-12, 0}));
}

TEST(ResizeBicubic, refuses_what_is_no_image) {
  EXPECT_EQ(message_of([] {
              resize_bicubic(at::full({3, 4, 4}, 1.0, at::kFloat), 2, 2);
            }),
            "resize_bicubic: x must be [B, C, H, W] of floats, H and W >= 1, got Float [3, 4, 4]");
  EXPECT_EQ(message_of([] {
              resize_bicubic(at::full({1, 3, 4, 0}, 1.0, at::kFloat), 2, 2);
            }),
            "resize_bicubic: x must be [B, C, H, W] of floats, H and W >= 1, got Float [1, 3, 4, 0]");
  EXPECT_EQ(message_of([] {
              resize_bicubic(at::full({1, 3, 4, 4}, 1, at::kByte), 2, 2);
            }),
            "resize_bicubic: x must be [B, C, H, W] of floats, H and W >= 1, got Byte [1, 3, 4, 4]");
  EXPECT_EQ(message_of([] {
              resize_bicubic(at::full({1, 3, 4, 4}, 1.0, at::kFloat), 2, 0);
            }),
            "resize_bicubic: height and width must be >= 1, got 2 and 0");
}

}  // namespace
}  // namespace foveate::ops
