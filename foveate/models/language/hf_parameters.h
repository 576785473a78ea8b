// The parameters of a Hugging Face folder by their GGUF names and in GGUF's layout.
#pragma once

#include <string>
#include <vector>

#include "foveate/io/safetensors.h"
#include "foveate/models/language/parameters.h"

namespace foveate::models {

// What the two forms do differently: GPT-2 stores its matrices [in, out]; GPT-NeoX interleaves queries, keys and values
// by head; Gemma's norms multiply by 1 + weight; older BERT files call a norm's weight and bias gamma and beta.
class HfParameters final : public Parameters {
 public:
  HfParameters(io::Safetensors file, std::string architecture, int64_t heads);  // heads of the attention
  at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const override;

 private:
  std::string stored_name(const std::string& name) const;  // empty: the family has no such parameter

  io::Safetensors file_;
  std::string architecture_;
  int64_t heads_;
  std::string prefix_;  // of all names but the head's; some files leave it out
};

// fp32 of any floating-point tensor.  Throws Error: another shape (names file, tensor, both shapes), no such type.
at::Tensor to_tensor(const io::StoredTensor& stored, const std::vector<int64_t>& shape);

}  // namespace foveate::models
