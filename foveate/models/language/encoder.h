// A bidirectional encoder of the BERT family (Devlin et al., 1810.04805) and what it is mostly used for: one vector a
// text (Reimers and Gurevych, Sentence-BERT, 1908.10084).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "foveate/attention/mechanism.h"
#include "foveate/io/tokenizer.h"
#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"
#include "foveate/models/language/weights.h"

namespace foveate::models {

struct EncoderConfig {
  std::string name;
  int64_t width = 0, heads = 0, layers = 0, feed_forward = 0, vocabulary = 0;
  int64_t context = 0;  // tokens for which positions were learned
  int64_t types = 0;    // segments that a token may belong to; all tokens are of the first one here
  double norm_epsilon = 0;
  Activation activation = Activation::gelu;
  bool pools_means = true;  // how the file wants vectors of texts made; else from the first token or otherwise
};

struct EncoderLayer {
  Affine query, key, value, output, output_norm, up, down, down_norm;
};

class Encoder {
 public:
  // A Hugging Face folder of model_type bert, or a GGUF file of architecture bert.  dtype: fp32 or bf16, of matrices;
  // norms and the residual stream are fp32.  Throws Error: another kind of model, a missing or contradictory key or
  // tensor (with file and name).
  static Encoder load(const std::string& path, at::ScalarType dtype);

  const EncoderConfig& config() const { return config_; }

  using Attend = std::function<attention::Attended(const attention::Inputs&)>;
  // tokens [B, L] int64, lengths [B] int64 (1 .. L; what stands behind is padding) -> hidden [B, L, width] fp32, of
  // padding rows undefined.  `attend` as in Decoder; unset: dense.  Differentiable.  Throws Error: L over the context,
  // a token outside the vocabulary.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& lengths, const Attend& attend = {}) const;

 private:
  Encoder(EncoderConfig config, const Parameters& parameters, at::ScalarType dtype);
  at::Tensor attention_branch(const EncoderLayer& w, int64_t layer, const at::Tensor& x, const at::Tensor& lengths,
                              const Attend& attend) const;
  at::Tensor norm(const at::Tensor& x, const Affine& w) const;

  EncoderConfig config_;
  at::Tensor embedding_, positions_, type_;  // [vocabulary, width], [context, width], [width], fp32
  Affine embedding_norm_;
  std::vector<EncoderLayer> layers_;
};

struct EmbedOptions {
  int64_t most_tokens = 0;  // longer texts are cut, keeping their end token; 0: the model's context
  int64_t batch = 32;       // texts at a time
  bool normalize = true;    // to length 1
};

// [texts, width] fp32: the mean of each text's token states, special tokens included.  Not differentiable.
// Throws Error: options out of range, a text without any token, a model whose vectors are no means.
at::Tensor embed(const Encoder& encoder, const io::Tokenizer& tokenizer, std::span<const std::string> texts,
                 const EmbedOptions& options = {});

}  // namespace foveate::models
