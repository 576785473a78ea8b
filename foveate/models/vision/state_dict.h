// Parameters and buffers of vision models by the names of their reference checkpoints.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "foveate/io/stored_tensor.h"

namespace foveate::models {

// What a module calls the tensor that a file calls `name`; "" leaves it out.
using Rename = std::function<std::string(const std::string& name)>;

// Sets every parameter and buffer of the module to the tensor of its name, converted to its dtype.
// Throws Error, before anything is set: tensors that are missing, unexpected or of another shape, or two of one name,
// all of them by name (the first ten of each kind); `file` stands in front of the message.
void load_state_dict(torch::nn::Module& module, std::span<const io::StoredTensor> tensors, const std::string& file,
                     const Rename& rename = {});

// The same from a file of safetensors, or of torch.save (.pt, .pth, .bin, .ckpt).
// Throws Error: also whatever is wrong with the file.
void load_state_dict(torch::nn::Module& module, const std::string& path, const Rename& rename = {});

// Calls use(tensors, metadata) while such a file is open; the metadata are those of safetensors, else empty.
// Throws Error: whatever is wrong with the file.
using Metadata = std::map<std::string, std::string>;
void with_tensors(const std::string& path,
                  const std::function<void(std::span<const io::StoredTensor>, const Metadata&)>& use);

// All tensors of a file of safetensors, or of torch.save (.pt, .pth, .bin, .ckpt), by name, for families whose tensors
// are put together before they are loaded.
std::vector<std::pair<std::string, at::Tensor>> read_tensors(const std::string& path);

// Writes all parameters and buffers, and metadata, as safetensors, whole or not at all.  Throws Error: a path that is
// not writable.
void save_state_dict(const torch::nn::Module& module, const std::string& path, const Metadata& metadata = {});

int64_t count_parameters(const torch::nn::Module& module);

}  // namespace foveate::models
