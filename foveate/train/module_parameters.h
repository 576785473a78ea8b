// What a torch::nn module gives a Trainer.
#pragma once

#include <torch/nn/module.h>

#include "foveate/train/optimizer.h"

namespace foveate::train {

// All parameters by name; biases of positions and whatever has one axis do not decay.
ParameterMap parameters_of(const torch::nn::Module& module);

TensorMap buffers_of(const torch::nn::Module& module);

}  // namespace foveate::train
