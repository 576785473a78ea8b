#include "foveate/eval/image_quality.h"

#include <ATen/TensorOperators.h>

#include <array>
#include <cmath>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/eval/image_tensor.h"

namespace foveate::eval {
namespace {

constexpr int64_t kWindow = 11;

// Without its borders, in fp64.
at::Tensor inside(const at::Tensor& x, int64_t crop) {
  return x.slice(2, crop, x.size(2) - crop).slice(3, crop, x.size(3) - crop).to(at::kDouble);
}

void check_pair(std::string_view name, const at::Tensor& got, const at::Tensor& want, int64_t crop, int64_t least) {
  require(got.dim() == 4 && got.sizes() == want.sizes(), "{}: both must be [B, C, H, W], got [{}] and [{}]", name,
          fmt::join(got.sizes(), ", "), fmt::join(want.sizes(), ", "));
  require(crop >= 0 && got.size(1) > 0 && got.size(2) - 2 * crop >= least && got.size(3) - 2 * crop >= least,
          "{}: {} x {} pixels or more must be left, got [{}] without {} at every border", name, least, least,
          fmt::join(got.sizes(), ", "), crop);
}

std::array<double, kWindow> gaussian() {
  std::array<double, kWindow> weights{};
  double sum = 0;
  for (int64_t i = 0; i < kWindow; ++i) {
    const double distance = double(i - kWindow / 2) / 1.5;
    sum += weights[size_t(i)] = std::exp(-distance * distance / 2);
  }
  for (double& w : weights) w /= sum;
  return weights;
}

// Weighted means over all windows that lie in x.
at::Tensor window_means(const at::Tensor& x) {
  const auto weights = gaussian();
  at::Tensor mean = x;
  for (const int64_t axis : {2, 3}) {
    const int64_t places = mean.size(axis) - kWindow + 1;
    at::Tensor sum = mean.narrow(axis, 0, places) * weights[0];
    for (int64_t i = 1; i < kWindow; ++i) sum.add_(mean.narrow(axis, i, places), weights[size_t(i)]);
    mean = sum;
  }
  return mean;
}

}  // namespace

at::Tensor luma(const at::Tensor& rgb) {
  require(rgb.dim() == 4 && rgb.size(1) == 3, "luma: RGB must be [B, 3, H, W], got [{}]", fmt::join(rgb.sizes(), ", "));
  const auto part = [&](int64_t channel, double weight) { return rgb.narrow(1, channel, 1) * (weight / 255); };
  return part(0, 65.481) + part(1, 128.553) + part(2, 24.966) + 16.0 / 255;
}

at::Tensor psnr(const at::Tensor& got, const at::Tensor& want, int64_t crop) {
  check_pair("psnr", got, want, crop, 1);
  return (inside(got, crop) - inside(want, crop)).square().mean({1, 2, 3}).log10().mul(-10);
}

at::Tensor ssim(const at::Tensor& got, const at::Tensor& want, int64_t crop) {
  check_pair("ssim", got, want, crop, kWindow);
  constexpr double kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;
  const at::Tensor x = inside(got, crop), y = inside(want, crop);
  const at::Tensor mean_x = window_means(x), mean_y = window_means(y), product = mean_x * mean_y;
  const at::Tensor squares = mean_x.square() + mean_y.square();
  const at::Tensor variances = window_means(x.square() + y.square()) - squares;
  const at::Tensor covariance = window_means(x * y) - product;
  const at::Tensor similarity = (2 * product + kC1) * (2 * covariance + kC2) / ((squares + kC1) * (variances + kC2));
  return similarity.mean({1, 2, 3});
}

ImageQuality luma_quality(const at::Tensor& got, const at::Tensor& want, int64_t crop) {
  require(got.dim() == 4 && got.size(0) == 1, "luma_quality: images must be [1, 3, H, W], got [{}]",
          fmt::join(got.sizes(), ", "));
  const at::Tensor a = luma(round_to_8_bits(got)), b = luma(round_to_8_bits(want));
  return {psnr(a, b, crop).item<double>(), ssim(a, b, crop).item<double>()};
}

}  // namespace foveate::eval
