#include "foveate/models/language/weights.h"

#include <ATen/ops/empty.h>

#include "foveate/base/error.h"
#include "foveate/io/dequantize.h"

namespace foveate::models {
namespace {

// A member of LayerWeights, its GGUF name and its place in the architecture.
struct LayerField {
  at::Tensor LayerWeights::*member;
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

class Loader {
 public:
  Loader(const io::Gguf& file, at::ScalarType dtype) : file_(file), dtype_(dtype) {}

  at::Tensor read(const std::string& name, const std::vector<int64_t>& shape) const {
    const io::GgufTensor& stored = file_.tensor(name);
    require(stored.shape == shape, "{}: tensor '{}' must be [{}], got [{}]", file_.path(), name, fmt::join(shape, ", "),
            fmt::join(stored.shape, ", "));
    const at::Tensor values = at::empty(shape, at::kFloat);
    io::dequantize(stored.type, stored.bytes, {values.mutable_data_ptr<float>(), size_t(values.numel())});
    return values;
  }
  at::Tensor vector(const std::string& name, int64_t length) const { return read(name, {length}); }
  at::Tensor matrix(const std::string& name, int64_t out, int64_t in) const { return read(name, {out, in}).to(dtype_); }

  // Rows (pair, half) of each head become (half, pair): rotation of adjacent pairs becomes rotate-half.
  at::Tensor unpermuted(const std::string& name, int64_t heads, int64_t head_dim, int64_t in) const {
    const at::Tensor rows = read(name, {heads * head_dim, in}).view({heads, head_dim / 2, 2, in});
    return rows.transpose(1, 2).reshape({heads * head_dim, in}).to(dtype_);
  }

 private:
  const io::Gguf& file_;
  at::ScalarType dtype_;
};

LayerWeights load_layer(const Loader& loader, const DecoderConfig& c, const std::string& prefix) {
  const auto name = [&](std::string_view field) { return fmt::format("{}{}.weight", prefix, field); };
  const auto rotated = [&](std::string_view field, int64_t heads) {
    return c.rotates_pairs ? loader.unpermuted(name(field), heads, c.head_dim, c.width)
                           : loader.matrix(name(field), heads * c.head_dim, c.width);
  };
  LayerWeights w;
  w.attention_norm = loader.vector(name("attn_norm"), c.width);
  w.query = rotated("attn_q", c.heads);
  w.key = rotated("attn_k", c.kv_heads);
  w.value = loader.matrix(name("attn_v"), c.kv_heads * c.value_dim, c.width);
  w.output = loader.matrix(name("attn_output"), c.width, c.heads * c.value_dim);
  w.feed_forward_norm = loader.vector(name("ffn_norm"), c.width);
  w.gate = loader.matrix(name("ffn_gate"), c.feed_forward, c.width);
  w.up = loader.matrix(name("ffn_up"), c.feed_forward, c.width);
  w.down = loader.matrix(name("ffn_down"), c.width, c.feed_forward);
  if (c.norms_queries) {
    w.query_norm = loader.vector(name("attn_q_norm"), c.head_dim);
    w.key_norm = loader.vector(name("attn_k_norm"), c.head_dim);
  }
  if (c.norms_branches) {
    w.post_attention_norm = loader.vector(name("post_attention_norm"), c.width);
    w.post_feed_forward_norm = loader.vector(name("post_ffw_norm"), c.width);
  }
  return w;
}

}  // namespace

std::vector<std::pair<std::string, at::Tensor>> DecoderWeights::named() const {
  std::vector<std::pair<std::string, at::Tensor>> all = {{"token_embd.weight", embedding},
                                                         {"output_norm.weight", output_norm}};
  if (!head.is_same(embedding)) all.emplace_back("output.weight", head);
  for (size_t i = 0; i < layers.size(); ++i)
    for (const LayerField& field : kLayerFields)
      if (const at::Tensor& tensor = layers[i].*field.member; tensor.defined())
        all.emplace_back(fmt::format("blk.{}.{}.weight", i, field.name), tensor);
  return all;
}

DecoderWeights load_weights(const io::Gguf& file, const DecoderConfig& c, at::ScalarType dtype) {
  require(dtype == at::kFloat || dtype == at::kBFloat16, "decoder: dtype must be fp32 or bf16, got {}",
          c10::toString(dtype));
  const Loader loader(file, dtype);
  DecoderWeights w;
  const bool is_tied = file.find("output.weight") == nullptr;
  w.head = loader.read(is_tied ? "token_embd.weight" : "output.weight", {c.vocabulary, c.width});
  w.embedding = is_tied ? w.head.to(dtype) : loader.matrix("token_embd.weight", c.vocabulary, c.width);
  w.output_norm = loader.vector("output_norm.weight", c.width);
  for (size_t i = 0; i < c.layers.size(); ++i) w.layers.push_back(load_layer(loader, c, fmt::format("blk.{}.", i)));
  return w;
}

}  // namespace foveate::models
