// Tensors to and from safetensors files.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "foveate/io/stored_tensor.h"

namespace foveate::models {

// A view of t, which must be contiguous and outlive it.  Throws Error: a dtype other than fp64, fp32, bf16, fp16, bool,
// uint8, int32, int64.
io::StoredTensor store(const std::string& name, const at::Tensor& t);

// Throws Error: such a dtype, which names the file and the tensor.
at::Tensor restore(const io::StoredTensor& t);

}  // namespace foveate::models
