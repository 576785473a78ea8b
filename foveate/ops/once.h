// Gradients that cannot be differentiated again say so, instead of being constants to whoever tries.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <string_view>

namespace foveate::ops {

// `gradients` as results of `inputs` whose own backward throws Error, where a graph is being made of the backward pass
// (create_graph=True).  name: of the operator.
torch::autograd::variable_list once_differentiable(std::string_view name, torch::autograd::variable_list gradients,
                                                   const torch::autograd::variable_list& inputs);

}  // namespace foveate::ops
