// The parameters of a decoder and their names in a GGUF file.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "foveate/io/gguf.h"
#include "foveate/models/language/config.h"

namespace foveate::models {

// Matrices are [out, in] in the compute dtype, norms [width] fp32; undefined where the architecture has none.
struct LayerWeights {
  at::Tensor attention_norm, query, key, value, output, query_norm, key_norm, post_attention_norm;
  at::Tensor feed_forward_norm, gate, up, down, post_feed_forward_norm;
};

struct DecoderWeights {
  at::Tensor embedding;    // [vocabulary, width] compute dtype
  at::Tensor head;         // [vocabulary, width] fp32: bf16 products would round a logit of 20 to steps of 1/8
  at::Tensor output_norm;  // [width]
  std::vector<LayerWeights> layers;

  // Every parameter once, by its GGUF name; the head only where it is not the embedding itself.
  std::vector<std::pair<std::string, at::Tensor>> named() const;
};

// Dequantises every matrix to `dtype` (fp32 or bf16) and un-permutes query and key rows for rotate-half.
// Throws Error: a tensor missing or of a shape that contradicts the config (names file, tensor, both shapes).
DecoderWeights load_weights(const io::Gguf& file, const DecoderConfig& config, at::ScalarType dtype);

}  // namespace foveate::models
