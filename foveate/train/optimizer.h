// AdamW over named parameters, and how its learning rate runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "foveate/base/options.h"

namespace foveate::train {

struct Parameter {
  at::Tensor value;      // fp32, contiguous, a leaf that records gradients; changed in place
  double rate = 1;       // its learning rate over that of the others
  bool decays = true;    // weight decay counts
  bool ascends = false;  // the loss is to grow with it: multipliers of a penalty
};
using ParameterMap = std::map<std::string, Parameter>;
using TensorMap = std::map<std::string, at::Tensor>;

// How a run learns; the same options, parameters and losses give the same numbers.
struct TrainOptions {
  static constexpr std::string_view name = "train";

  int64_t steps = 1000, warmup = 50, seed = 0;
  double lr = 1e-3, weight_decay = 0.01, clip = 1, beta1 = 0.9, beta2 = 0.95;

  static void fields(auto& self, auto&& visit) {
    visit("steps", self.steps, at_least(1), "updates of the parameters");
    visit("lr", self.lr, between(0, 10), "learning rate after warming up; falls to 0 at the end as half a cosine");
    visit("warmup", self.warmup, at_least(0), "steps over which the learning rate grows from 0");
    visit("weight_decay", self.weight_decay, between(0, 10),
          "share of itself, times lr, that a matrix loses each step");
    visit("clip", self.clip, at_least(0), "gradients are scaled down to this norm over all parameters; 0: never");
    visit("beta1", self.beta1, between(0, 0.999999), "memory of the mean of gradients");
    visit("beta2", self.beta2, between(0, 0.999999), "memory of the mean of their squares");
    visit("seed", self.seed, at_least(0), "of initial parameters and of what is drawn");
  }
};

// Of step 0 .. steps - 1: grows linearly to lr over `warmup` steps, then lr (1 + cos) / 2 towards 0.
double learning_rate(const TrainOptions& options, int64_t step);

// Decoupled weight decay (Loshchilov & Hutter, 1711.05101), epsilon 1e-8.
class AdamW {
 public:
  // Throws Error: a value that is not fp32, contiguous and a leaf with requires_grad.
  AdamW(ParameterMap parameters, const TrainOptions& options);

  // Changes every parameter by the gradient it holds (none: 0) and drops the gradients.  Returns their norm before
  // clipping, taken in fp64.  Throws Error: a gradient that is not finite; nothing is changed then.
  double step(double learning_rate);

  int64_t steps() const { return steps_; }
  const ParameterMap& parameters() const { return parameters_; }

  // What is to be kept to go on later: "parameter.NAME", "mean.NAME", "square.NAME"; views.
  TensorMap state() const;
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  ParameterMap parameters_;
  double weight_decay_, clip_, beta1_, beta2_;
  TensorMap mean_, square_;  // of gradients
  int64_t steps_ = 0;
};

}  // namespace foveate::train
