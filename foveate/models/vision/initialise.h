// Random parameters as training from nothing begins: the same numbers for a seed on every platform.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <string_view>

#include "foveate/base/random.h"

namespace foveate::models {

// Calls fill(name, parameter, random) for every parameter in the module's order, each with a stream of its own.
using Fill = std::function<void(std::string_view name, const at::Tensor& parameter, Random& random)>;
void initialise(torch::nn::Module& module, uint64_t seed, const Fill& fill);

// t fp32, contiguous.
void fill_normal(const at::Tensor& t, double deviation, Random& random);
void fill_truncated_normal(const at::Tensor& t, double deviation, Random& random);  // within [-2, 2]
void fill_uniform(const at::Tensor& t, double bound, Random& random);               // within [-bound, bound]

// Inputs that one output of a linear or convolution weight [out, in, ..] sums over.
int64_t fan_in(const at::Tensor& weight);

}  // namespace foveate::models
