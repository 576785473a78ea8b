// A trained network whose feature maps others build on: it is read from a file and changes no more.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <string_view>

#include "foveate/io/safetensors.h"

namespace foveate::train {

struct Backbone {
  int64_t channels = 0;  // of the features
  int64_t patch = 1;     // pixels of a cell's side
  std::string identity;  // tells weights apart
  // images [B, 3, patch h, patch w] fp32, -1 .. 1 -> [B, channels, h, w] fp32, without gradients
  std::function<at::Tensor(const at::Tensor& images)> features;
};

// A nat or dinat of `foveate train image-classifier`; its features are what the classifier averages.  Throws Error: a
// file without the text that says which model its weights are of, another kind, weights of another shape, whatever else
// is wrong with the file.
Backbone load_backbone(const std::string& path);

// What weights that `foveate train COMMAND` wrote say of themselves under a key.  Throws Error: nothing.
std::string text_of(const io::Safetensors& weights, const std::string& key, std::string_view command);

}  // namespace foveate::train
