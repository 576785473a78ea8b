// Where a model's parameters come from: a GGUF file, or a Hugging Face folder read by the same names.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "foveate/io/gguf.h"
#include "foveate/kernels/packed.h"

namespace foveate::models {

using Packed = std::shared_ptr<const kernels::PackedMatrix>;

// Names are those of GGUF files: "blk.3.attn_q.weight".  Matrices are [out, in].
class Parameters {
 public:
  virtual ~Parameters() = default;
  // fp32.  Throws Error: missing, another shape (names file, tensor, both shapes), a type that is no number.
  virtual at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const = 0;
  // Rows row_of(0) .. row_of(count - 1) of a matrix of this shape, packed as they are; null where the file does not
  // hold it in blocks that can stay packed.  Throws Error: missing, another shape.
  virtual Packed read_packed(const std::string& /*name*/, const std::vector<int64_t>& /*shape*/, int64_t /*count*/,
                             const std::function<int64_t(int64_t)>& /*row_of*/, kernels::PackedMemory&) const {
    return nullptr;
  }
};

class GgufParameters final : public Parameters {
 public:
  explicit GgufParameters(io::Gguf file) : file_(std::move(file)) {}
  at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const override;
  Packed read_packed(const std::string& name, const std::vector<int64_t>& shape, int64_t count,
                     const std::function<int64_t(int64_t)>& row_of, kernels::PackedMemory& memory) const override;

 private:
  const io::GgufTensor& find(const std::string& name, const std::vector<int64_t>& shape) const;

  io::Gguf file_;
};

}  // namespace foveate::models
