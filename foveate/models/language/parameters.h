// Where a model's parameters come from: a GGUF file, or a Hugging Face folder read by the same names.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "foveate/io/gguf.h"

namespace foveate::models {

// Names are those of GGUF files: "blk.3.attn_q.weight".  Matrices are [out, in].
class Parameters {
 public:
  virtual ~Parameters() = default;
  virtual bool has(const std::string& name) const = 0;
  // fp32.  Throws Error: missing, another shape (names file, tensor, both shapes), a type that is no number.
  virtual at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const = 0;
};

class GgufParameters final : public Parameters {
 public:
  explicit GgufParameters(io::Gguf file) : file_(std::move(file)) {}
  bool has(const std::string& name) const override { return file_.find(name) != nullptr; }
  at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const override;

 private:
  io::Gguf file_;
};

}  // namespace foveate::models
