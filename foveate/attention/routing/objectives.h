// What routers are trained with: relaxed choices, penalties on sparsity, distillation.  All differentiable in tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace foveate::attention {

// DuoAttention (Xiao et al., 2410.10819): weight * sum |alpha| over all heads of all layers.
at::Tensor duo_penalty(const at::Tensor& alpha, double weight = 0.05);

// Mean over the tokens of `mask` [..] bool of the mean squared difference of their hidden states [.., width], in fp32
// or wider.  The teacher has no gradient.  Throws Error: no token in the mask.
at::Tensor distillation(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& mask);

// Hard-concrete gates (Louizos et al., 1712.01312; PruLong, 2506.17121): z = clamp(1.2 s - 0.1, 0, 1) with
// s = sigmoid((log u - log(1 - u) + log_alpha) / (2/3)), u uniform in (0, 1) and of log_alpha's shape.
at::Tensor hard_concrete(const at::Tensor& log_alpha, const at::Tensor& uniform);
// P(z > 0) = sigmoid(log_alpha - 2/3 log(0.1 / 1.1)): its mean is the expected share of full heads, 1 - sparsity.
at::Tensor hard_concrete_open(const at::Tensor& log_alpha);
// PruLong's penalty lambda1 (s - t) + lambda2 (s - t)^2 of a sparsity s and its target t; the lambdas ascend.
at::Tensor prulong_penalty(const at::Tensor& sparsity, double target, const at::Tensor& lambda1,
                           const at::Tensor& lambda2);

// Flux Attention: R = mean over the tasks present of the mean over their samples of lambda1 |d| + lambda2 d^2, with
// d = 1 - mean over layers of z - target.  decisions [samples, layers] (1: full), targets [samples], tasks [samples]
// int64, lambda1 and lambda2 [tasks], which ascend.  Throws Error: shapes or task numbers that do not fit.
at::Tensor flux_penalty(const at::Tensor& decisions, const at::Tensor& targets, const at::Tensor& tasks,
                        const at::Tensor& lambda1, const at::Tensor& lambda2);
// The temperature of a step: 1 + 0.25 (1 + cos(pi step / T)) before T = ceil(0.6 steps), then 1.
double flux_temperature(int64_t step, int64_t steps);
// A target that grows linearly from 0 over the first `warm_up` share of the steps.
double warmed_target(double target, int64_t step, int64_t steps, double warm_up);

// -log(-log(u + 1e-8) + 1e-8) of uniform numbers; and uniform numbers in [0, 1) fp64, the same for a seed and stream
// on every machine.
at::Tensor gumbel(const at::Tensor& uniform);
at::Tensor uniform(at::IntArrayRef shape, uint64_t seed, uint64_t stream = 0);

}  // namespace foveate::attention
