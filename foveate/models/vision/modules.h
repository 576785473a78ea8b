// What modules of several model families are built with.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>

namespace foveate::models {

// A module without a class of its own: it gives its parts a prefix.
inline std::shared_ptr<torch::nn::Module> add_folder(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>());
}

}  // namespace foveate::models
