#include "foveate/ops/linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"

namespace foveate::ops {
namespace {

double best_seconds(at::ScalarType type) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::ones({256, 576}, type), weight = at::ones({1536, 576}, type);
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 6; ++repeat) {  // the first one prepares
    const Timer timer;
    at::linear(x, weight);
    best = std::min(best, timer.seconds());
  }
  return best;
}

bool measure() {
  const char* forced = std::getenv("FOVEATE_PRODUCTS");
  if (!forced) return best_seconds(at::kBFloat16) <= best_seconds(at::kFloat);
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

}  // namespace foveate::ops
