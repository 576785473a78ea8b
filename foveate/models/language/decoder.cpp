#include "foveate/models/language/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/hash.h"
#include "foveate/ops/linear.h"

namespace foveate::models {

using at::Tensor;

Decoder Decoder::load(const Checkpoint& checkpoint, at::ScalarType dtype, WeightForm form) {
  return Decoder(checkpoint.config, load_weights(*checkpoint.parameters, checkpoint.config, dtype, form));
}

Decoder::Decoder(DecoderConfig config, DecoderWeights weights)
    : config_(std::move(config)), weights_(std::move(weights)) {
  if (config_.rope_dim == 0) return;
  for (const LayerConfig& layer : config_.layers) {
    const ops::Rotary rotary(config_.rope_dim, layer.rope_base, layer.rope_factor, config_.rope_divisors);
    const auto same = std::find(rotaries_.begin(), rotaries_.end(), rotary);
    rotary_of_.push_back(size_t(same - rotaries_.begin()));
    if (same == rotaries_.end()) rotaries_.push_back(rotary);
  }
}

int64_t Decoder::parameter_count() const {
  int64_t sum = weights_.packed_count();
  for (const auto& [name, tensor] : weights_.named())  // a tied head may be a copy in another dtype
    if (name != "output.weight" || !config_.is_tied) sum += tensor.numel();
  return sum;
}

std::string Decoder::fingerprint() const {
  Hash hash;
  for (const int64_t size : {config_.width, config_.heads, config_.kv_heads, config_.head_dim, config_.value_dim,
                             config_.feed_forward, config_.vocabulary, layers()})
    hash.add(&size, sizeof size);
  for (const auto& [name, tensor] : weights_.named()) {
    if (tensor.dim() != 1) continue;  // norms and biases: small, and no two models have the same
    const Tensor values = tensor.to(at::kFloat).contiguous();
    hash.add(values.const_data_ptr(), values.nbytes());
  }
  return fmt::format("{}-{:016x}", config_.architecture, hash.value());
}

Rule Decoder::rule_of(int64_t layer) const {
  Rule rule;
  if (const auto window = config_.layers[layer].window) rule.window_left = *window - 1;
  return rule;
}

Tensor Decoder::attention_branch(int64_t layer, const Tensor& h, const ops::Rotation* rotation,
                                 const Attend& attend) const {
  const LayerWeights& w = weights_.layers[layer];
  const auto rotated = [&](const Tensor& rows, int64_t heads, const Affine& norm_weight) {
    if (config_.query_norm != QueryNorm::by_width)
      return rotated_heads(rows, heads, norm_weight, norm_rule(), rotation);
    return rotated_heads(norm(rows.to(at::kFloat), norm_weight, norm_rule()), heads, {}, norm_rule(), rotation)
        .to(h.scalar_type());
  };
  attention::Inputs in;
  const std::vector<Tensor> parts = linear(h, {&w.query, &w.key, &w.value});
  in.q = rotated(parts[0], config_.heads, w.query_norm);
  in.k = rotated(parts[1], config_.kv_heads, w.key_norm);
  in.v = parts[2].unflatten(2, {config_.kv_heads, parts[2].size(2) / config_.kv_heads}).transpose(1, 2);
  in.rule = rule_of(layer);
  in.score = {.scale = config_.attention_scale, .soft_cap = config_.attention_soft_cap};
  in.layer = layer;
  in.hidden = h;
  in.rotary = rotation ? &rotaries_[rotary_of_[size_t(layer)]] : nullptr;
  return linear(attend(in).out.transpose(1, 2).flatten(2), w.output);
}

Tensor Decoder::feed_forward_branch(int64_t layer, const Tensor& h) const {
  const LayerWeights& w = weights_.layers[layer];
  const auto rows = [&](const Tensor& part) {
    if (!config_.gated) return linear(gated(linear(part, w.up), {}, config_.activation), w.down);
    const std::vector<Tensor> both = linear(part, {&w.gate, &w.up});
    return linear(gated(both[0], both[1], config_.activation), w.down);
  };
  constexpr int64_t kRows = 2048;  // bounds the feed_forward-wide activations of long segments
  if (at::GradMode::is_enabled() || h.size(1) <= kRows) return rows(h);
  std::vector<Tensor> parts;
  for (const Tensor& part : h.split(kRows, 1)) parts.push_back(rows(part));
  return at::cat(parts, 1);
}

Tensor Decoder::forward(const Tensor& tokens, int64_t first_position, const Attend& attend) const {
  require(tokens.dim() == 2 && tokens.scalar_type() == at::kLong, "decoder: tokens must be int64 [batch, length]");
  if (tokens.numel() > 0)
    require(tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < config_.vocabulary,
            "decoder: tokens must be 0 .. {}, got {} .. {}", config_.vocabulary - 1, tokens.min().item<int64_t>(),
            tokens.max().item<int64_t>());
  const Tensor positions = at::arange(first_position, first_position + tokens.size(1), at::kLong);
  const Tensor embedded = weights_.packed_embedding ? ops::packed_rows(*weights_.packed_embedding, tokens)
                                                    : at::embedding(weights_.embedding, tokens).to(at::kFloat);
  Tensor x = embedded * config_.embedding_scale;
  if (weights_.positions.defined()) {
    require(first_position + tokens.size(1) <= config_.context,
            "decoder: a text must be <= {} tokens, for which positions were learned, got {}", config_.context,
            first_position + tokens.size(1));
    x = x + at::embedding(weights_.positions, positions);
  }
  std::vector<ops::Rotation> rotations;
  for (const ops::Rotary& rotary : rotaries_) rotations.push_back(rotary.rotation(positions, at::kFloat));
  const auto takes_in = [&](const Tensor& branch, const Affine& branch_norm, const Affine& next, at::ScalarType type) {
    return take_in(x, branch, branch_norm, next, norm_rule(), type);
  };
  attention::Shared shared;
  const Attend attend_sharing = [&](const attention::Inputs& in) {
    attention::Inputs given = in;
    given.shared = &shared;
    return attend(given);
  };
  const Affine none;
  Tensor h = takes_in({}, none, weights_.layers.front().attention_norm, weights_.dtype);  // what matrices read
  for (int64_t layer = 0; layer < layers(); ++layer) {
    const LayerWeights& w = weights_.layers[size_t(layer)];
    const ops::Rotation* rotation = rotations.empty() ? nullptr : &rotations[rotary_of_[size_t(layer)]];
    const Tensor mixed = attention_branch(layer, h, rotation, attend_sharing);
    if (config_.parallel) {  // both branches read the same stream
      h = takes_in({}, none, w.feed_forward_norm, weights_.dtype);
      takes_in(mixed, w.post_attention_norm, none, weights_.dtype);
    } else {
      h = takes_in(mixed, w.post_attention_norm, w.feed_forward_norm, weights_.dtype);
    }
    const bool is_last = layer + 1 == layers();
    h = takes_in(feed_forward_branch(layer, h), w.post_feed_forward_norm,
                 is_last ? weights_.output_norm : weights_.layers[size_t(layer + 1)].attention_norm,
                 is_last ? at::kFloat : weights_.dtype);
  }
  return h;
}

Tensor Decoder::forward(const Tensor& tokens, const std::vector<attention::Mechanism>& mechanisms) const {
  require(std::ssize(mechanisms) == layers(), "decoder: one mechanism per layer, got {} for {} layers",
          mechanisms.size(), layers());
  return forward(tokens, 0, [&](const attention::Inputs& in) { return mechanisms[in.layer].attend(in); });
}

Tensor Decoder::logits(const Tensor& hidden) const {
  const Tensor logits =
      weights_.packed_head ? ops::linear(hidden, *weights_.packed_head) : at::linear(hidden, weights_.head);
  if (!config_.logit_soft_cap) return logits;
  return (logits / *config_.logit_soft_cap).tanh() * *config_.logit_soft_cap;
}

}  // namespace foveate::models
