#include "foveate/models/language/weights.h"

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

// A member of LayerWeights, its GGUF name and its place in the architecture.
struct LayerField {
  Affine LayerWeights::*member;
  std::string_view name;
};
constexpr LayerField kLayerFields[] = {
    {&LayerWeights::attention_norm, "attn_norm"},
    {&LayerWeights::query, "attn_q"},
    {&LayerWeights::key, "attn_k"},
    {&LayerWeights::value, "attn_v"},
    {&LayerWeights::output, "attn_output"},
    {&LayerWeights::query_norm, "attn_q_norm"},
    {&LayerWeights::key_norm, "attn_k_norm"},
    {&LayerWeights::post_attention_norm, "post_attention_norm"},
    {&LayerWeights::feed_forward_norm, "ffn_norm"},
    {&LayerWeights::gate, "ffn_gate"},
    {&LayerWeights::up, "ffn_up"},
    {&LayerWeights::down, "ffn_down"},
    {&LayerWeights::post_feed_forward_norm, "post_ffw_norm"},
};

// Rows (pair, half) of each head become (half, pair): rotation of adjacent pairs becomes rotate-half.
at::Tensor unpermuted(const at::Tensor& rows, int64_t heads) {
  return rows.unflatten(0, {heads, rows.size(0) / heads / 2, 2}).transpose(1, 2).flatten(0, 2);
}

// Rows [first, first + rows) of a fused matrix.
Affine part(const Affine& fused, int64_t first, int64_t rows) {
  const auto cut = [&](const at::Tensor& t) { return t.defined() ? t.narrow(0, first, rows).clone() : t; };
  return {cut(fused.weight), cut(fused.bias)};
}

void load_queries(const ParameterReader& loader, const DecoderConfig& c, const std::string& prefix, LayerWeights& w) {
  const bool biased = c.has_biases || c.has_query_biases;
  const int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim, values = c.kv_heads * c.value_dim;
  if (c.fuses_query) {
    const Affine all = loader.linear(prefix + "attn_qkv", queries + keys + values, c.width, biased);
    w.query = part(all, 0, queries), w.key = part(all, queries, keys), w.value = part(all, queries + keys, values);
  } else {
    w.query = loader.linear(prefix + "attn_q", queries, c.width, biased);
    w.key = loader.linear(prefix + "attn_k", keys, c.width, biased);
    w.value = loader.linear(prefix + "attn_v", values, c.width, biased);
  }
  if (c.rotates_pairs) {
    w.query.weight = unpermuted(w.query.weight, c.heads), w.key.weight = unpermuted(w.key.weight, c.kv_heads);
    if (w.query.bias.defined()) w.query.bias = unpermuted(w.query.bias, c.heads);
    if (w.key.bias.defined()) w.key.bias = unpermuted(w.key.bias, c.kv_heads);
  }
  if (c.query_norm == QueryNorm::none) return;
  const bool by_head = c.query_norm == QueryNorm::by_head;
  w.query_norm = loader.norm(prefix + "attn_q_norm", by_head ? c.head_dim : queries, c.norm);
  w.key_norm = loader.norm(prefix + "attn_k_norm", by_head ? c.head_dim : keys, c.norm);
}

LayerWeights load_layer(const ParameterReader& loader, const DecoderConfig& c, const std::string& prefix) {
  LayerWeights w;
  load_queries(loader, c, prefix, w);
  w.output = loader.linear(prefix + "attn_output", c.width, c.heads * c.value_dim, c.has_biases);
  if (c.norms_inputs) {
    w.attention_norm = loader.norm(prefix + "attn_norm", c.width, c.norm);
    w.feed_forward_norm = loader.norm(prefix + "ffn_norm", c.width, c.norm);
  }
  if (c.norms_branches) {
    w.post_attention_norm = loader.norm(prefix + "post_attention_norm", c.width, c.norm);
    w.post_feed_forward_norm = loader.norm(prefix + "post_ffw_norm", c.width, c.norm);
  }
  if (c.fuses_gate) {
    const Affine both = loader.linear(prefix + "ffn_up", 2 * c.feed_forward, c.width, c.has_biases);
    w.gate = part(both, 0, c.feed_forward), w.up = part(both, c.feed_forward, c.feed_forward);
  } else {
    if (c.gated) w.gate = loader.linear(prefix + "ffn_gate", c.feed_forward, c.width, c.has_biases);
    w.up = loader.linear(prefix + "ffn_up", c.feed_forward, c.width, c.has_biases);
  }
  w.down = loader.linear(prefix + "ffn_down", c.width, c.feed_forward, c.has_biases);
  return w;
}

}  // namespace

at::Tensor ParameterReader::matrix(const std::string& name, int64_t out, int64_t in) const {
  return parameters_.read(name, {out, in}).to(dtype_);
}

Affine ParameterReader::linear(const std::string& name, int64_t out, int64_t in, bool has_bias) const {
  return {matrix(name + ".weight", out, in),
          has_bias ? parameters_.read(name + ".bias", {out}).to(dtype_) : at::Tensor()};
}

Affine ParameterReader::norm(const std::string& name, int64_t width, NormKind kind) const {
  return {parameters_.read(name + ".weight", {width}),
          kind == NormKind::layer ? parameters_.read(name + ".bias", {width}) : at::Tensor()};
}

std::vector<std::pair<std::string, at::Tensor>> DecoderWeights::named() const {
  std::vector<std::pair<std::string, at::Tensor>> all = {{"token_embd.weight", embedding}};
  const auto add = [&](const std::string& name, const Affine& parameters) {
    if (parameters.weight.defined()) all.emplace_back(name + ".weight", parameters.weight);
    if (parameters.bias.defined()) all.emplace_back(name + ".bias", parameters.bias);
  };
  add("position_embd", {positions, {}});
  add("output_norm", output_norm);
  if (!head.is_same(embedding)) all.emplace_back("output.weight", head);
  for (size_t i = 0; i < layers.size(); ++i)
    for (const LayerField& field : kLayerFields) add(fmt::format("blk.{}.{}", i, field.name), layers[i].*field.member);
  return all;
}

DecoderWeights load_weights(const Parameters& parameters, const DecoderConfig& c, at::ScalarType dtype) {
  require(dtype == at::kFloat || dtype == at::kBFloat16, "decoder: dtype must be fp32 or bf16, got {}",
          c10::toString(dtype));
  const ParameterReader loader(parameters, dtype);
  DecoderWeights w;
  w.head = parameters.read(c.is_tied ? "token_embd.weight" : "output.weight", {c.vocabulary, c.width});
  w.embedding = c.is_tied ? w.head.to(dtype) : loader.matrix("token_embd.weight", c.vocabulary, c.width);
  if (c.rope_dim == 0) w.positions = parameters.read("position_embd.weight", {c.context, c.width});
  w.output_norm = loader.norm("output_norm", c.width, c.norm);
  for (size_t i = 0; i < c.layers.size(); ++i) w.layers.push_back(load_layer(loader, c, fmt::format("blk.{}.", i)));
  return w;
}

}  // namespace foveate::models
