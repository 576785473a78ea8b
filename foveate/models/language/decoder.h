// A decoder-only language model with a mechanism of its choice in every layer.  Architectures: config.h.
#pragma once

#include <functional>
#include <string>

#include "foveate/attention/registry.h"
#include "foveate/models/language/checkpoint.h"
#include "foveate/models/language/config.h"
#include "foveate/models/language/weights.h"

namespace foveate::models {

class Decoder {
 public:
  // dtype: fp32 or bf16, of matrices and of queries, keys and values; the residual stream and norms are fp32.
  static Decoder load(const Checkpoint& checkpoint, at::ScalarType dtype, WeightForm form = WeightForm::dense);
  Decoder(DecoderConfig config, DecoderWeights weights);

  const DecoderConfig& config() const { return config_; }
  const DecoderWeights& weights() const { return weights_; }
  int64_t layers() const { return std::ssize(config_.layers); }
  int64_t parameter_count() const;  // numbers in all parameters; a tied head counts once

  // Tells models apart: of the architecture, its sizes and all its norms.
  std::string fingerprint() const;

  // How a layer's queries, keys and values become its attention output.
  using Attend = std::function<attention::Attended(const attention::Inputs&)>;

  // tokens [B, L] int64 at positions first_position ... -> the normed last hidden state [B, L, width] fp32.  Layer by
  // layer over the whole segment.  `attend` is called once per layer, in order, with the model's own rule and score;
  // Inputs::layer tells which.  Differentiable.  Throws Error: a token outside the vocabulary,
  // a position that was not learned.
  at::Tensor forward(const at::Tensor& tokens, int64_t first_position, const Attend& attend) const;

  // Training and scoring of whole texts: one mechanism per layer, no state.
  at::Tensor forward(const at::Tensor& tokens, const std::vector<attention::Mechanism>& mechanisms) const;

  // hidden [..., width] -> logits [..., vocabulary] fp32.
  at::Tensor logits(const at::Tensor& hidden) const;

  // The rule that a layer itself demands: causal, with its own window.
  Rule rule_of(int64_t layer) const;

 private:
  at::Tensor attention_branch(int64_t layer, const at::Tensor& h, const ops::Rotation* rotation,
                              const Attend& attend) const;
  at::Tensor feed_forward_branch(int64_t layer, const at::Tensor& h) const;
  NormRule norm_rule() const { return {config_.norm, config_.norm_epsilon}; }

  DecoderConfig config_;
  DecoderWeights weights_;
  std::vector<ops::Rotary> rotaries_;  // all different; none where positions are learned
  std::vector<size_t> rotary_of_;      // which one a layer has
};

}  // namespace foveate::models
