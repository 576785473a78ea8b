#include "foveate/train/module_parameters.h"

namespace foveate::train {

ParameterMap parameters_of(const torch::nn::Module& module) {
  ParameterMap all;
  for (const auto& item : module.named_parameters()) {
    const std::string& name = item.key();
    const bool is_position = name.ends_with("rpb") || name.ends_with("_rel");
    all.emplace(name, Parameter{.value = item.value(), .decays = item.value().dim() > 1 && !is_position});
  }
  return all;
}

TensorMap buffers_of(const torch::nn::Module& module) {
  TensorMap all;
  for (const auto& item : module.named_buffers()) all.emplace(item.key(), item.value());
  return all;
}

}  // namespace foveate::train
