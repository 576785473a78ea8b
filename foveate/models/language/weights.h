// The parameters of a decoder.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"

namespace foveate::models {

// A matrix [out, in] and its bias [out] in the compute dtype, or a norm's [width] in fp32; undefined where the
// architecture has none.
struct Affine {
  at::Tensor weight, bias;
  bool defined() const { return weight.defined(); }
};

// Reads parameters in the types that a model computes in.
class ParameterReader {
 public:
  ParameterReader(const Parameters& parameters, at::ScalarType dtype) : parameters_(parameters), dtype_(dtype) {}
  at::Tensor matrix(const std::string& name, int64_t out, int64_t in) const;
  Affine linear(const std::string& name, int64_t out, int64_t in, bool has_bias) const;  // name.weight, name.bias
  Affine norm(const std::string& name, int64_t width, NormKind kind) const;

 private:
  const Parameters& parameters_;
  at::ScalarType dtype_;
};

struct LayerWeights {
  Affine attention_norm, query, key, value, output, query_norm, key_norm, post_attention_norm;
  Affine feed_forward_norm, gate, up, down, post_feed_forward_norm;
};

struct DecoderWeights {
  at::Tensor embedding;  // [vocabulary, width] compute dtype
  at::Tensor head;       // [vocabulary, width] fp32: bf16 products would round a logit of 20 to steps of 1/8
  at::Tensor positions;  // [context, width] fp32, where they are learned
  Affine output_norm;
  std::vector<LayerWeights> layers;

  // Every parameter once, by its GGUF name; the head only where it is not the embedding itself.
  std::vector<std::pair<std::string, at::Tensor>> named() const;
};

// Reads every matrix as `dtype` (fp32 or bf16) and un-permutes query and key rows for rotate-half.
// Throws Error: a tensor missing or of a shape that contradicts the config (names file, tensor, both shapes).
DecoderWeights load_weights(const Parameters& parameters, const DecoderConfig& config, at::ScalarType dtype);

}  // namespace foveate::models
