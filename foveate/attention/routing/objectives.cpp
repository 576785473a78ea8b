#include "foveate/attention/routing/objectives.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::attention {
namespace {

constexpr double kTemperature = 2.0 / 3, kLow = -0.1, kHigh = 1.1;  // of hard-concrete gates, as released

}  // namespace

at::Tensor duo_penalty(const at::Tensor& alpha, double weight) { return alpha.abs().sum() * weight; }

at::Tensor distillation(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& mask) {
  require(student.sizes() == teacher.sizes() && mask.sizes() == student.sizes().slice(0, student.dim() - 1),
          "distillation: student and teacher [.., width] and mask [..] must agree, got [{}], [{}] and [{}]",
          fmt::join(student.sizes().begin(), student.sizes().end(), ", "),
          fmt::join(teacher.sizes().begin(), teacher.sizes().end(), ", "),
          fmt::join(mask.sizes().begin(), mask.sizes().end(), ", "));
  const auto type = at::promote_types(student.scalar_type(), at::kFloat);
  const at::Tensor weight = mask.to(type), tokens = weight.sum();
  require(tokens.item<double>() > 0, "distillation: the mask must have a token, got none");
  const at::Tensor squares = (student.to(type) - teacher.detach().to(type)).square().mean(-1);
  return squares.mul(weight).sum() / tokens;
}

at::Tensor hard_concrete(const at::Tensor& log_alpha, const at::Tensor& u) {
  const at::Tensor logit = (u.log() - (1 - u).log()).to(log_alpha.scalar_type());
  return (((logit + log_alpha) / kTemperature).sigmoid() * (kHigh - kLow) + kLow).clamp(0, 1);
}

at::Tensor hard_concrete_open(const at::Tensor& log_alpha) {
  return (log_alpha - kTemperature * std::log(-kLow / kHigh)).sigmoid();
}

at::Tensor prulong_penalty(const at::Tensor& sparsity, double target, const at::Tensor& lambda1,
                           const at::Tensor& lambda2) {
  const at::Tensor off = sparsity - target;
  return lambda1 * off + lambda2 * off.square();
}

at::Tensor flux_penalty(const at::Tensor& decisions, const at::Tensor& targets, const at::Tensor& tasks,
                        const at::Tensor& lambda1, const at::Tensor& lambda2) {
  const int64_t samples = decisions.dim() == 2 ? decisions.size(0) : -1;
  require(samples > 0 && targets.numel() == samples && tasks.numel() == samples && lambda1.sizes() == lambda2.sizes(),
          "flux_penalty: decisions [samples, layers], targets and tasks [samples] must agree, got {}, {} and {}",
          samples, targets.numel(), tasks.numel());
  require(tasks.min().item<int64_t>() >= 0 && tasks.max().item<int64_t>() < lambda1.numel(),
          "flux_penalty: tasks must be 0 .. {}, got {} .. {}", lambda1.numel() - 1, tasks.min().item<int64_t>(),
          tasks.max().item<int64_t>());
  const at::Tensor off = 1 - decisions.mean(1) - targets;
  const at::Tensor each = lambda1.index_select(0, tasks) * off.abs() + lambda2.index_select(0, tasks) * off.square();
  const at::Tensor sums = at::zeros({lambda1.numel()}, each.options()).index_add(0, tasks, each);
  const at::Tensor counts = at::zeros({lambda1.numel()}, each.options()).index_add(0, tasks, each.detach() * 0 + 1);
  return (sums / counts.clamp_min(1)).sum() / counts.gt(0).sum();
}

double flux_temperature(int64_t step, int64_t steps) {
  const double end = std::ceil(0.6 * double(steps));
  return double(step) < end ? 1 + 0.25 * (1 + std::cos(std::numbers::pi * double(step) / end)) : 1;
}

double warmed_target(double target, int64_t step, int64_t steps, double warm_up) {
  const double over = warm_up * double(steps);
  return double(step) < over ? target * double(step) / over : target;
}

at::Tensor gumbel(const at::Tensor& u) { return -(-(u + 1e-8).log() + 1e-8).log(); }

at::Tensor uniform(at::IntArrayRef shape, uint64_t seed, uint64_t stream) {
  const at::Tensor numbers = at::empty(shape, at::kDouble);
  Random random(seed, stream);
  double* data = numbers.mutable_data_ptr<double>();
  for (int64_t i = 0; i < numbers.numel(); ++i) data[i] = random.uniform();
  return numbers;
}

}  // namespace foveate::attention
