// PSNR, SSIM and luma against loops in double and against numbers of scikit-image.
#include "foveate/eval/image_quality.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/eval/image_tensor.h"
#include "foveate/ops/resize.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"
#include "tests/support/real_images.h"

namespace foveate::eval {
namespace {

using test::message_of;
using test::random_tensor;
using test::same;

// Numbers of 0 .. 1 that a line of Python makes as well.
at::Tensor pattern(int64_t height, int64_t width, int64_t step) {
  const at::Tensor x = at::empty({1, 1, height, width}, at::kDouble);
  for (int64_t y = 0; y < height; ++y)
    for (int64_t z = 0; z < width; ++z)
      x.mutable_data_ptr<double>()[y * width + z] = double((y * y + step * z + y * z) % 101) / 100;
  return x;
}

double ssim_by_loops(const at::Tensor& x, const at::Tensor& y) {
  const auto a = x.accessor<double, 4>(), b = y.accessor<double, 4>();
  double total = 0, windows = 0;
  for (int64_t c = 0; c < x.size(1); ++c)
    for (int64_t top = 0; top + 11 <= x.size(2); ++top)
      for (int64_t left = 0; left + 11 <= x.size(3); ++left) {
        double norm = 0, ma = 0, mb = 0, va = 0, vb = 0, vab = 0;
        for (int pass = 0; pass < 2; ++pass) {
          for (int i = 0; i < 11; ++i)
            for (int j = 0; j < 11; ++j) {
              const double w = std::exp(-((i - 5) * (i - 5) + (j - 5) * (j - 5)) / (2 * 1.5 * 1.5));
              const double p = a[0][c][top + i][left + j], q = b[0][c][top + i][left + j];
              if (pass == 0) norm += w, ma += w * p, mb += w * q;
              if (pass == 1)
                va += w * (p - ma) * (p - ma), vb += w * (q - mb) * (q - mb), vab += w * (p - ma) * (q - mb);
            }
          if (pass == 0) ma /= norm, mb /= norm;
        }
        va /= norm, vb /= norm, vab /= norm;
        total += (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4));
        ++windows;
      }
  return total / windows;
}

TEST(ImageQuality, psnr_is_that_of_the_mean_square_error) {
  const at::Tensor want = at::full({2, 3, 4, 5}, 0.5, at::kDouble), got = want.clone();
  got[1].add_(0.1);
  got[0][2][3][4] = 0.5 + std::sqrt(0.6);  // mean square 0.01
  EXPECT_TRUE(same(psnr(got, want), at::tensor({20.0, 20.0}, at::kDouble), {1e-9, 0}));
  const at::Tensor cropped = psnr(got, want, 1);
  EXPECT_TRUE(std::isinf(cropped[0].item<double>()));  // the one that differed stood at the border
  EXPECT_NEAR(cropped[1].item<double>(), 20, 1e-9);
}

TEST(ImageQuality, ssim_is_its_definition) {
  const at::Tensor x = random_tensor({1, 2, 17, 14}, 1, at::kDouble).mul_(0.2).add_(0.5);
  const at::Tensor y = x + random_tensor({1, 2, 17, 14}, 2, at::kDouble) * 0.1;
  EXPECT_NEAR(ssim(x, y).item<double>(), ssim_by_loops(x, y), 1e-12);
  EXPECT_NEAR(ssim(x, y, 1).item<double>(),
              ssim_by_loops(x.slice(2, 1, 16).slice(3, 1, 13), y.slice(2, 1, 16).slice(3, 1, 13)), 1e-12);
  EXPECT_NEAR(ssim(x, x).item<double>(), 1, 1e-12);
  const at::Tensor light = at::full({1, 1, 11, 11}, 0.75, at::kDouble),
                   dark = at::full({1, 1, 11, 11}, 0.25, at::kDouble);
  EXPECT_NEAR(ssim(light, dark).item<double>(), (2 * 0.75 * 0.25 + 1e-4) / (0.75 * 0.75 + 0.25 * 0.25 + 1e-4), 1e-12);
}

TEST(ImageQuality, agrees_with_scikit_image) {
  // structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1) and
  // peak_signal_noise_ratio(a, b, data_range=1), version 0.26
  EXPECT_NEAR(ssim(pattern(40, 33, 3), pattern(40, 33, 5)).item<double>(), -0.204813723, 1e-7);
  EXPECT_NEAR(psnr(pattern(40, 33, 3), pattern(40, 33, 5)).item<double>(), 7.316165356, 1e-7);
}

TEST(ImageQuality, luma_is_that_of_video) {
  const auto of = [](double r, double g, double b) {
    return luma(at::tensor({r, g, b}, at::kDouble).view({1, 3, 1, 1})).item<double>() * 255;
  };
  EXPECT_NEAR(of(0, 0, 0), 16, 1e-9);
  EXPECT_NEAR(of(1, 1, 1), 235, 1e-9);
  EXPECT_NEAR(of(1, 0, 0), 81.481, 1e-9);
  EXPECT_NEAR(of(0, 1, 0), 144.553, 1e-9);
  EXPECT_NEAR(of(0, 0, 1), 40.966, 1e-9);
}

TEST(ImageQuality, refuses_what_can_not_be_compared) {
  const at::Tensor x = at::full({1, 3, 12, 12}, 0.5, at::kFloat);
  EXPECT_EQ(message_of([&] { psnr(x, x.slice(3, 0, 5)); }),
            "psnr: both must be [B, C, H, W], got [1, 3, 12, 12] and [1, 3, 12, 5]");
  EXPECT_EQ(message_of([&] { psnr(x, x, 6); }),
            "psnr: 1 x 1 pixels or more must be left, got [1, 3, 12, 12] without 6 at every border");
  EXPECT_EQ(message_of([&] { ssim(x, x, 1); }),
            "ssim: 11 x 11 pixels or more must be left, got [1, 3, 12, 12] without 1 at every border");
  EXPECT_EQ(message_of([&] { luma(x.slice(1, 0, 2)); }), "luma: RGB must be [B, 3, H, W], got [1, 2, 12, 12]");
}

TEST(ImageTensor, images_come_back_from_tensors) {
  io::Image image{3, 2, 3, {}};
  for (int i = 0; i < 18; ++i) image.pixels.push_back(uint8_t(i * 15));
  const at::Tensor x = to_tensor(image);
  EXPECT_EQ(x.sizes(), (at::IntArrayRef{1, 3, 2, 3}));
  EXPECT_FLOAT_EQ(x[0][1][1][2].item<float>(), float(image.pixels[3 * 5 + 1]) / 255);
  EXPECT_EQ(to_image(x).pixels, image.pixels);
  EXPECT_EQ(to_image(x[0]).pixels, image.pixels);
  EXPECT_EQ(to_image(x.to(at::kBFloat16).to(at::kFloat)).width, 3);
}

TEST(ImageTensor, numbers_are_clamped_and_rounded) {
  const at::Tensor x = at::tensor({-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0, 7.0}, at::kDouble);
  EXPECT_EQ(to_image(x.view({1, 1, 7})).pixels, (std::vector<uint8_t>{0, 0, 0, 1, 255, 255, 255}));
  EXPECT_TRUE(same(round_to_8_bits(x), at::tensor({0.0, 0.0, 0.0, 1.0 / 255, 1.0, 1.0, 1.0}, at::kDouble), {1e-7, 0}));
  EXPECT_EQ(message_of([&] { to_image((x / 0).view({1, 1, 7})); }), "image: pixels must be numbers, got NaN");
  EXPECT_EQ(message_of([&] {
              to_image(x.view({7, 1, 1}));
            }),
            "image: must be [1, C, H, W] or [C, H, W] of floats, C 1 or 3, got Double [7, 1, 1]");
}

struct Photo {
  const char* name;
  int64_t scale;
  ImageQuality want;
};

// What bicubic enlargement loses, on photographs; the numbers are those of the same rule in numpy.
TEST(ImageQuality, bicubic_loses_what_it_should_on_photographs) {
  for (const auto& [name, scale, want] :
       {Photo{"astronaut.png", 2, {31.7127, 0.94582}}, Photo{"chelsea.png", 3, {32.8912, 0.85423}},
        Photo{"coffee.png", 4, {27.2921, 0.76494}}}) {
    const auto path = test::real_image("test-photos", name);
    if (!path) GTEST_SKIP() << test::no_image("test-photos", name);
    const at::Tensor whole = to_tensor(io::read_image(*path));
    const int64_t h = whole.size(2) / scale * scale, w = whole.size(3) / scale * scale;
    const at::Tensor photo = whole.slice(2, 0, h).slice(3, 0, w);
    const at::Tensor low = round_to_8_bits(ops::resize_bicubic(photo, h / scale, w / scale));
    const ImageQuality quality = luma_quality(ops::resize_bicubic(low, h, w), photo, scale);
    EXPECT_NEAR(quality.psnr, want.psnr, 5e-4) << name << " x" << scale;
    EXPECT_NEAR(quality.ssim, want.ssim, 5e-5) << name << " x" << scale;
  }
}

}  // namespace
}  // namespace foveate::eval
