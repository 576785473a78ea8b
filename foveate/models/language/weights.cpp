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

void load_queries(const ParameterReader& loader, const DecoderConfig& c, const std::string& prefix, LayerWeights& w) {
  const bool biased = c.has_biases || c.has_query_biases;
  const int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim, values = c.kv_heads * c.value_dim;
  const auto read = [&](const char* name, int64_t first, int64_t count, int64_t heads) {
    const RowChoice rows =
        c.fuses_query ? RowChoice{queries + keys + values, first, count, heads} : RowChoice{count, 0, count, heads};
    return loader.linear(prefix + (c.fuses_query ? "attn_qkv" : name), rows, c.width, biased);
  };
  w.query = read("attn_q", 0, queries, c.rotates_pairs ? c.heads : 0);
  w.key = read("attn_k", queries, keys, c.rotates_pairs ? c.kv_heads : 0);
  w.value = read("attn_v", queries + keys, values, 0);
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
    const int64_t wide = c.feed_forward;
    w.gate = loader.linear(prefix + "ffn_up", RowChoice{2 * wide, 0, wide}, c.width, c.has_biases);
    w.up = loader.linear(prefix + "ffn_up", RowChoice{2 * wide, wide, wide}, c.width, c.has_biases);
  } else {
    if (c.gated) w.gate = loader.linear(prefix + "ffn_gate", c.feed_forward, c.width, c.has_biases);
    w.up = loader.linear(prefix + "ffn_up", c.feed_forward, c.width, c.has_biases);
  }
  w.down = loader.linear(prefix + "ffn_down", c.width, c.feed_forward, c.has_biases);
  return w;
}

}  // namespace

int64_t RowChoice::source(int64_t row) const {
  if (heads == 0) return first + row;
  const int64_t head_rows = count / heads, pairs = head_rows / 2, within = row % head_rows;
  return first + row - within + within % pairs * 2 + within / pairs;
}

Affine ParameterReader::linear(const std::string& name, const RowChoice& rows, int64_t in, bool has_bias) const {
  const auto choose = [&](const at::Tensor& all) {
    const at::Tensor part = all.narrow(0, rows.first, rows.count);
    const at::Tensor chosen = (rows.heads > 0 ? unpermuted(part, rows.heads) : part).to(dtype_).contiguous();
    return rows.count < rows.stored && chosen.is_alias_of(all) ? chosen.clone() : chosen;  // a view would keep all
  };
  Affine w;
  if (has_bias) w.bias = choose(parameters_.read(name + ".bias", {rows.stored}));
  const std::vector<int64_t> shape = {rows.stored, in};
  if (form_ == WeightForm::packed)
    w.packed = parameters_.read_packed(
        name + ".weight", shape, rows.count, [&](int64_t row) { return rows.source(row); }, *memory_);
  if (!w.packed)
    w.weight = choose(rows.count == rows.stored ? parameters_.read(name + ".weight", shape)
                                                : read_fused(name + ".weight", shape));
  return w;
}

at::Tensor ParameterReader::read_fused(const std::string& name, const std::vector<int64_t>& shape) const {
  if (fused_name_ != name) fused_ = parameters_.read(name, shape), fused_name_ = name;
  return fused_;
}

Affine ParameterReader::norm(const std::string& name, int64_t width, NormKind kind) const {
  return {parameters_.read(name + ".weight", {width}),
          kind == NormKind::layer ? parameters_.read(name + ".bias", {width}) : at::Tensor()};
}

std::vector<std::pair<std::string, at::Tensor>> DecoderWeights::named() const {
  std::vector<std::pair<std::string, at::Tensor>> all;
  if (embedding.defined()) all.emplace_back("token_embd.weight", embedding);
  const auto add = [&](const std::string& name, const Affine& parameters) {
    if (parameters.weight.defined()) all.emplace_back(name + ".weight", parameters.weight);
    if (parameters.bias.defined()) all.emplace_back(name + ".bias", parameters.bias);
  };
  add("position_embd", {positions, {}});
  add("output_norm", output_norm);
  if (head.defined() && !head.is_same(embedding)) all.emplace_back("output.weight", head);
  for (size_t i = 0; i < layers.size(); ++i)
    for (const LayerField& field : kLayerFields) add(fmt::format("blk.{}.{}", i, field.name), layers[i].*field.member);
  return all;
}

int64_t DecoderWeights::packed_count() const {
  int64_t sum = 0;
  const auto add = [&](const Packed& packed) { sum += packed ? packed->out() * packed->in() : 0; };
  add(packed_embedding);
  if (packed_head != packed_embedding) add(packed_head);
  for (const LayerWeights& layer : layers)
    for (const LayerField& field : kLayerFields) add((layer.*field.member).packed);
  return sum;
}

DecoderWeights load_weights(const Parameters& parameters, const DecoderConfig& c, at::ScalarType dtype,
                            WeightForm form) {
  require(dtype == at::kFloat || dtype == at::kBFloat16, "decoder: dtype must be fp32 or bf16, got {}",
          c10::toString(dtype));
  const ParameterReader loader(parameters, dtype, form), fp32(parameters, at::kFloat, form);
  DecoderWeights w;
  w.dtype = dtype;
  const Affine head = fp32.linear(c.is_tied ? "token_embd" : "output", c.vocabulary, c.width, false);
  w.head = head.weight, w.packed_head = head.packed;
  const Affine embedding = c.is_tied ? head : loader.linear("token_embd", c.vocabulary, c.width, false);
  w.packed_embedding = embedding.packed;
  if (!embedding.packed) w.embedding = embedding.weight.to(dtype);
  if (c.rope_dim == 0) w.positions = parameters.read("position_embd.weight", {c.context, c.width});
  w.output_norm = loader.norm("output_norm", c.width, c.norm);
  for (size_t i = 0; i < c.layers.size(); ++i) w.layers.push_back(load_layer(loader, c, fmt::format("blk.{}.", i)));
  return w;
}

}  // namespace foveate::models
