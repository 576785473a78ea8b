#include "foveate/ops/linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"
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

at::Tensor multiply_tiles(const at::Tensor& x, const PackedAffine& w) {
  constexpr int64_t kTileElements = int64_t{1} << 23;  // bounds what is dequantised at a time
  const int64_t in = w.weight->in(), out = w.weight->out();
  const int64_t tile = std::min(out, std::max<int64_t>(kTileElements / in / 16 * 16, 16));
  const auto type = x.scalar_type() == at::kFloat ? kernels::DType::f32 : kernels::DType::bf16;
  const auto part = [&](int64_t first, int64_t count) {
    const at::Tensor rows = at::empty({count, in}, x.options());
    kernels::dequantize_rows(packed_table(), *w.weight, first, count, type, rows.mutable_data_ptr(), in, torch_pool());
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

// x [rows, in] fp32 and contiguous -> fp32.
std::vector<at::Tensor> multiply_rows(const at::Tensor& x, std::span<const PackedAffine> weights, int terms) {
  std::vector<at::Tensor> results;
  std::vector<kernels::PackedProduct> products;
  for (const PackedAffine& w : weights) {
    results.push_back(at::empty({x.size(0), w.weight->out()}, at::kFloat));
    products.push_back({w.weight, results.back().mutable_data_ptr<float>(), w.weight->out()});
  }
  kernels::multiply(packed_table(), x.const_data_ptr<float>(), x.size(1), x.size(0), products, terms, torch_pool());
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i].bias.defined()) results[i].add_(weights[i].bias);
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
  std::vector<at::Tensor> results;
  if (flat.size(0) <= kFewRows)
    results = multiply_rows(flat.to(at::kFloat).contiguous(), weights, x.scalar_type() == at::kFloat ? 2 : 1);
  else
    for (const PackedAffine& w : weights) results.push_back(multiply_tiles(flat, w));
  auto shape = x.sizes().vec();
  for (at::Tensor& y : results) {
    shape.back() = y.size(1);
    y = y.to(x.scalar_type()).view(shape);
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
