// The parameters of a decoder.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "foveate/models/language/affine.h"
#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"

namespace foveate::models {

// packed: matrices that the file holds in blocks stay as small as they are and cannot be trained; others are dense.
enum class WeightForm { dense, packed };

// Which rows of a stored matrix: [first, first + count) of `stored`; with heads > 0 each head's rows (pair, half)
// become (half, pair), and rotation of adjacent pairs becomes rotate-half.
struct RowChoice {
  int64_t stored, first, count, heads = 0;
  int64_t source(int64_t row) const;
};

// Reads parameters in the types that a model computes in.
class ParameterReader {
 public:
  ParameterReader(const Parameters& parameters, at::ScalarType dtype, WeightForm form = WeightForm::dense)
      : parameters_(parameters), dtype_(dtype), form_(form), memory_(std::make_unique<kernels::PackedMemory>()) {}
  // name.weight [rows.stored, in] and name.bias
  Affine linear(const std::string& name, const RowChoice& rows, int64_t in, bool has_bias) const;
  Affine linear(const std::string& name, int64_t out, int64_t in, bool has_bias) const {
    return linear(name, RowChoice{out, 0, out}, in, has_bias);
  }
  Affine norm(const std::string& name, int64_t width, NormKind kind) const;

 private:
  const Parameters& parameters_;
  at::ScalarType dtype_;
  WeightForm form_;
  std::unique_ptr<kernels::PackedMemory> memory_;
  at::Tensor read_fused(const std::string& name, const std::vector<int64_t>& shape) const;

  mutable std::string fused_name_;  // the matrix read last, of which parts are taken one after the other
  mutable at::Tensor fused_;
};

struct LayerWeights {
  Affine attention_norm, query, key, value, output, query_norm, key_norm, post_attention_norm;
  Affine feed_forward_norm, gate, up, down, post_feed_forward_norm;
};

struct DecoderWeights {
  at::ScalarType dtype = at::kFloat;  // that matrices compute in
  at::Tensor embedding;               // [vocabulary, width] compute dtype, or packed_embedding
  at::Tensor head;  // [vocabulary, width] fp32: bf16 products would round a logit of 20 to steps of 1/8; or packed_head
  Packed packed_embedding, packed_head;
  at::Tensor positions;  // [context, width] fp32, where they are learned
  Affine output_norm;
  std::vector<LayerWeights> layers;

  // Every parameter that is not packed once, by its GGUF name; the head only where it is not the embedding itself.
  std::vector<std::pair<std::string, at::Tensor>> named() const;
  int64_t packed_count() const;  // numbers in packed parameters; a shared one counts once
};

// Reads every matrix as `dtype` (fp32 or bf16) and un-permutes query and key rows for rotate-half.
// Throws Error: a tensor missing or of a shape that contradicts the config (names file, tensor, both shapes).
DecoderWeights load_weights(const Parameters& parameters, const DecoderConfig& config, at::ScalarType dtype,
                            WeightForm form = WeightForm::dense);

}  // namespace foveate::models
