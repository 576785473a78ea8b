#include "foveate/ops/resize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "foveate/base/error.h"

namespace foveate::ops {
namespace {

// Cubic convolution, a = -0.5.
double cubic(double x) {
  x = std::abs(x);
  if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// One of the old samples that every new one is a sum of.
struct Tap {
  at::Tensor index, weight;  // [to] int64, fp64
};

std::vector<Tap> make_taps(int64_t from, int64_t to) {
  const double scale = double(to) / double(from), shrink = std::min(scale, 1.0), reach = 2 / shrink;
  const auto count = size_t(std::ceil(2 * reach)) + 1;
  std::vector<Tap> taps(count);
  for (Tap& tap : taps) tap = {at::empty({to}, at::kLong), at::empty({to}, at::kDouble)};
  std::vector<double> weights(count);
  std::vector<bool> counts(count);
  for (int64_t i = 0; i < to; ++i) {
    const double center = (double(i) + 0.5) / scale - 0.5;
    const auto first = int64_t(std::ceil(center - reach));
    double sum = 0;
    for (size_t k = 0; k < count; ++k) sum += weights[k] = cubic(shrink * (center - double(first + int64_t(k))));
    for (size_t k = 0; k < count; ++k) {
      const int64_t turn = 2 * from, at = ((first + int64_t(k)) % turn + turn) % turn;
      taps[k].index.mutable_data_ptr<int64_t>()[i] = std::min(at, turn - 1 - at);
      taps[k].weight.mutable_data_ptr<double>()[i] = weights[k] / sum;
      counts[k] = counts[k] || weights[k] != 0;
    }
  }
  std::vector<Tap> used;
  for (size_t k = 0; k < count; ++k)
    if (counts[k]) used.push_back(taps[k]);
  return used;
}

// Of [B, C, H, W] the axis H: whole rows are read, in a third of the time of reading single numbers.
at::Tensor resize_rows(const at::Tensor& x, int64_t to) {
  if (x.size(2) == to) return x;
  const at::Tensor rows = x.contiguous();
  at::Tensor out;
  for (const Tap& tap : make_taps(x.size(2), to)) {
    const at::Tensor weight = tap.weight.to(x.scalar_type()).unsqueeze(1), part = rows.index_select(2, tap.index);
    out = out.defined() ? out.addcmul_(part, weight) : part * weight;
  }
  return out;
}

at::Tensor resize_columns(const at::Tensor& x, int64_t to) {
  return resize_rows(x.transpose(2, 3), to).transpose(2, 3);
}

}  // namespace

at::Tensor resize_bicubic(const at::Tensor& x, int64_t height, int64_t width) {
  require(x.dim() == 4 && x.is_floating_point() && x.size(2) > 0 && x.size(3) > 0,
          "resize_bicubic: x must be [B, C, H, W] of floats, H and W >= 1, got {} [{}]", c10::toString(x.scalar_type()),
          fmt::join(x.sizes(), ", "));
  require(height >= 1 && width >= 1, "resize_bicubic: height and width must be >= 1, got {} and {}", height, width);
  const at::Tensor wide = x.element_size() < 4 ? x.to(at::kFloat) : x;
  // the axis that shrinks more comes first
  const bool is_height_first = height * x.size(3) <= width * x.size(2);
  const at::Tensor out = is_height_first ? resize_columns(resize_rows(wide, height), width)
                                         : resize_rows(resize_columns(wide, width), height);
  return out.to(x.scalar_type()).contiguous();
}

}  // namespace foveate::ops
