#include "foveate/train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <numbers>

namespace foveate::train {

double learning_rate(const TrainOptions& o, int64_t step) {
  if (step < o.warmup) return o.lr * double(step + 1) / double(o.warmup);
  const double done = double(step - o.warmup) / double(std::max<int64_t>(o.steps - o.warmup, 1));
  return o.lr * 0.5 * (1 + std::cos(std::numbers::pi * done));
}

AdamW::AdamW(ParameterMap parameters, const TrainOptions& o)
    : parameters_(std::move(parameters)),
      weight_decay_(o.weight_decay),
      clip_(o.clip),
      beta1_(o.beta1),
      beta2_(o.beta2) {
  for (const auto& [name, parameter] : parameters_) {
    const at::Tensor& value = parameter.value;
    require(value.scalar_type() == at::kFloat && value.is_contiguous() && value.is_leaf() && value.requires_grad(),
            "optimizer: {} must be a contiguous fp32 leaf with a gradient, got {}", name,
            c10::toString(value.scalar_type()));
    mean_[name] = at::zeros_like(value.detach());
    square_[name] = at::zeros_like(value.detach());
  }
}

double AdamW::step(double learning_rate) {
  const at::NoGradGuard no_grad;
  double squares = 0;
  for (const auto& [name, parameter] : parameters_)
    if (const at::Tensor& gradient = parameter.value.grad(); gradient.defined())
      squares += gradient.to(at::kDouble).square().sum().item<double>();
  const double norm = std::sqrt(squares);
  require(std::isfinite(norm), "optimizer: gradients must be finite, got a norm of {} in step {}; lower lr", norm,
          steps_ + 1);
  const double share = clip_ > 0 && norm > clip_ ? clip_ / norm : 1;
  ++steps_;
  const at::Tensor count = at::full({}, double(steps_), at::kFloat);
  for (auto& [name, parameter] : parameters_) {
    at::Tensor& value = parameter.value;
    at::Tensor gradient = value.grad();
    gradient = gradient.defined() ? (share < 1 ? gradient * share : gradient).contiguous() : at::zeros_like(value);
    at::_fused_adamw_({value}, {gradient}, {mean_[name]}, {square_[name]}, {}, {count}, learning_rate * parameter.rate,
                      beta1_, beta2_, parameter.decays ? weight_decay_ : 0.0, /*eps=*/1e-8, /*amsgrad=*/false,
                      /*maximize=*/parameter.ascends);
    value.mutable_grad() = at::Tensor();
  }
  return norm;
}

TensorMap AdamW::state() const {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, parameter] : parameters_) {
    all["parameter." + name] = parameter.value.detach();
    all["mean." + name] = mean_.at(name);
    all["square." + name] = square_.at(name);
  }
  return all;
}

}  // namespace foveate::train
