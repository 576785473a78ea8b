#include "foveate/ops/linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

class Trial {
 public:
  explicit Trial(at::ScalarType type) : x_(at::ones({256, 576}, type)), weight_(at::ones({1536, 576}, type)) {}
  void run() {
    const Timer timer;
    at::linear(x_, weight_);
    best_ = std::min(best_, timer.seconds());
  }
  double best() const { return best_; }

 private:
  at::Tensor x_, weight_;
  double best_ = std::numeric_limits<double>::infinity();
};

// Takes turns, and the best of many: other work on the machine must not decide.
bool bf16_is_faster() {
  const at::NoGradGuard no_grad;
  Trial bf16(at::kBFloat16), fp32(at::kFloat);
  for (int repeat = 0; repeat < 12; ++repeat) bf16.run(), fp32.run();
  return bf16.best() <= fp32.best();
}

bool measure() {
  const char* forced = std::getenv("FOVEATE_PRODUCTS");
  if (!forced) return bf16_is_faster();
  const std::string_view wanted = forced;
  require(wanted == "bf16" || wanted == "fp32", "FOVEATE_PRODUCTS: must be bf16 or fp32, got '{}'", wanted);
  return wanted == "bf16";
}

}  // namespace

bool prefers_bf16_products() {
  static const bool prefers = measure();
  return prefers;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr int64_t kManyRows = 32;  // below, reading the weight is what counts
  if (weight.scalar_type() != at::kBFloat16 || x.numel() < kManyRows * x.size(-1) || prefers_bf16_products())
    return at::linear(x, weight, bias);
  const at::Tensor wide = bias.defined() ? bias.to(at::kFloat) : bias;
  return at::linear(x.to(at::kFloat), weight.to(at::kFloat), wide).to(x.scalar_type());
}

namespace {

// Packed weights have no form in plain ATen: where that is forced, the portable kernels read them.
const kernels::Table& packed_table() {
  const kernels::Table* table = kernel_table();
  return table ? *table : *kernels::levels().front();
}

void widen(const uint16_t* bf16, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(uint32_t{bf16[i]} << 16);
}

constexpr int64_t kTileElements = int64_t{1} << 23;  // bounds what is dequantised at a time

at::Tensor multiply_tiles(const at::Tensor& x, const PackedAffine& w) {
  const int64_t in = w.weight->in(), out = w.weight->out();
  const int64_t tile = std::min(out, std::max<int64_t>(kTileElements / in / 16 * 16, 16));
  const auto part = [&](int64_t first, int64_t count) {
    const at::Tensor rows = at::empty({count, in}, x.options());
    kernels::dequantize_rows(packed_table(), *w.weight, first, count, dtype_of(x), rows.mutable_data_ptr(), in,
                             torch_pool());
    return foveate::ops::linear(x, rows, w.bias.defined() ? w.bias.narrow(0, first, count) : w.bias);
  };
  if (tile == out) return part(0, out);
  const at::Tensor y = at::empty({x.size(0), out}, x.options());
  for (int64_t first = 0; first < out; first += tile) {
    const int64_t count = std::min(tile, out - first);
    y.narrow(1, first, count).copy_(part(first, count));
  }
  return y;
}

// Small weights without a bias are one product of all their rows, which reads x once; results are parts of its rows.
std::vector<at::Tensor> multiply_many(const at::Tensor& x, std::span<const PackedAffine> weights) {
  int64_t all = 0;
  bool has_bias = false;
  for (const PackedAffine& w : weights) all += w.weight->out(), has_bias = has_bias || w.bias.defined();
  std::vector<at::Tensor> results;
  const int64_t in = x.size(1);
  if (weights.size() == 1 || has_bias || all * in > kTileElements) {
    for (const PackedAffine& w : weights) results.push_back(multiply_tiles(x, w));
    return results;
  }
  const at::Tensor dense = at::empty({all, in}, x.options());
  int64_t first = 0;
  for (const PackedAffine& w : weights) {
    kernels::dequantize_rows(packed_table(), *w.weight, 0, w.weight->out(), dtype_of(x),
                             dense.narrow(0, first, w.weight->out()).mutable_data_ptr(), in, torch_pool());
    first += w.weight->out();
  }
  const at::Tensor y = foveate::ops::linear(x, dense);
  first = 0;
  for (const PackedAffine& w : weights) {
    results.push_back(y.narrow(1, first, w.weight->out()));
    first += w.weight->out();
  }
  return results;
}

// x [rows, in].  bf16 is widened and rounded here: a few operators of torch would cost one row as much as its product.
std::vector<at::Tensor> multiply_few(const at::Tensor& x, std::span<const PackedAffine> weights) {
  const kernels::Table& table = packed_table();
  const int64_t rows = x.size(0), in = x.size(1);
  const bool is_wide = x.scalar_type() == at::kFloat;
  int64_t all = 0;
  for (const PackedAffine& w : weights) all += w.weight->out();
  constexpr int64_t kPadding = 16;  // scale_row reads whole vectors
  kernels::Floats64 floats(is_wide ? 0 : rows * (in + all) + kPadding);
  const at::Tensor held = x.contiguous();
  if (!is_wide) widen(static_cast<const uint16_t*>(held.const_data_ptr()), rows * in, floats.data());
  std::vector<at::Tensor> results;
  std::vector<kernels::PackedProduct> products;
  for (int64_t at = rows * in; const PackedAffine& w : weights) {
    const int64_t out = w.weight->out();
    results.push_back(at::empty({rows, out}, x.options()));
    products.push_back({w.weight, is_wide ? results.back().mutable_data_ptr<float>() : floats.data() + at, out});
    at += rows * out;
  }
  kernels::multiply(table, is_wide ? held.const_data_ptr<float>() : floats.data(), in, rows, products, is_wide ? 2 : 1,
                    torch_pool());
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t out = products[i].y_stride;
    const at::Tensor bias = weights[i].bias.defined() ? weights[i].bias.to(at::kFloat).contiguous() : at::Tensor();
    for (int64_t row = 0; row < rows; ++row) {
      float* y = products[i].y + row * out;
      if (bias.defined()) table.add_row(bias.const_data_ptr<float>(), int(out), y);
      if (!is_wide)
        table.scale_row(y, int(out), 1, kernels::DType::bf16,
                        static_cast<uint16_t*>(results[i].mutable_data_ptr()) + row * out);
    }
  }
  return results;
}

}  // namespace

std::vector<at::Tensor> linear(const at::Tensor& x, std::span<const PackedAffine> weights) {
  require(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
          "linear: x must be fp32 or bf16 where the weight is packed, got {}", c10::toString(x.scalar_type()));
  for (const PackedAffine& w : weights)
    require(x.dim() >= 1 && x.size(-1) == w.weight->in(), "linear: x must be [.., {}], got [{}]", w.weight->in(),
            fmt::join(x.sizes(), ", "));
  require(!(at::GradMode::is_enabled() && x.requires_grad()),
          "linear: packed weights pass no gradient, load them dense to train");
  constexpr int64_t kFewRows = 16;
  const at::Tensor flat = x.reshape({-1, x.size(-1)});
  std::vector<at::Tensor> results =
      flat.size(0) <= kFewRows ? multiply_few(flat, weights) : multiply_many(flat, weights);
  auto shape = x.sizes().vec();
  for (at::Tensor& y : results) {
    shape.back() = y.size(1);
    y = y.view(shape);
  }
  return results;
}

at::Tensor linear(const at::Tensor& x, const kernels::PackedMatrix& weight, const at::Tensor& bias) {
  const PackedAffine one{&weight, bias};
  return linear(x, {&one, 1}).front();
}

at::Tensor packed_rows(const kernels::PackedMatrix& weight, const at::Tensor& ids) {
  const at::Tensor list = ids.reshape({-1}).contiguous();
  auto shape = ids.sizes().vec();
  shape.push_back(weight.in());
  const at::Tensor rows = at::empty({list.numel(), weight.in()}, at::kFloat);
  const int64_t* id = list.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < list.numel(); ++i)
    kernels::dequantize_rows(packed_table(), weight, id[i], 1, kernels::DType::f32,
                             rows.mutable_data_ptr<float>() + i * weight.in(), weight.in(), Pool{});
  return rows.view(shape);
}

}  // namespace foveate::ops
