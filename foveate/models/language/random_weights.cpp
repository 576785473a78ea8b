#include "foveate/models/language/random_weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "foveate/base/random.h"

namespace foveate::models {
namespace {

class Maker {
 public:
  Maker(const DecoderConfig& config, uint64_t seed) : config_(config), seed_(seed) {}

  at::Tensor normal(int64_t out, int64_t in, double variance) {
    Random random(seed_, stream_++);  // of its own for each matrix
    const at::Tensor numbers = at::empty({out, in}, at::kFloat);
    float* data = numbers.mutable_data_ptr<float>();
    for (int64_t i = 0; i < numbers.numel(); ++i) data[i] = float(std::sqrt(variance) * random.normal());
    return numbers;
  }
  Affine matrix(int64_t out, int64_t in, bool has_bias, bool writes_to_stream = false) {
    const double share = writes_to_stream ? 2.0 * double(config_.layers.size()) : 1;
    return {normal(out, in, 1 / (share * double(in))), has_bias ? at::zeros({out}) : at::Tensor()};
  }
  Affine norm(int64_t width) const {
    return {at::ones({width}), config_.norm == NormKind::layer ? at::zeros({width}) : at::Tensor()};
  }

 private:
  const DecoderConfig& config_;
  uint64_t seed_, stream_ = 0;
};

LayerWeights make_layer(const DecoderConfig& c, Maker& make) {
  const bool biased = c.has_biases, query_biased = c.has_biases || c.has_query_biases;
  const int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim, values = c.kv_heads * c.value_dim;
  LayerWeights w;
  w.query = make.matrix(queries, c.width, query_biased);
  w.key = make.matrix(keys, c.width, query_biased);
  w.value = make.matrix(values, c.width, query_biased);
  w.output = make.matrix(c.width, c.heads * c.value_dim, biased, true);
  if (c.gated) w.gate = make.matrix(c.feed_forward, c.width, biased);
  w.up = make.matrix(c.feed_forward, c.width, biased);
  w.down = make.matrix(c.width, c.feed_forward, biased, true);
  if (c.norms_inputs) w.attention_norm = make.norm(c.width), w.feed_forward_norm = make.norm(c.width);
  if (c.norms_branches) w.post_attention_norm = make.norm(c.width), w.post_feed_forward_norm = make.norm(c.width);
  if (c.query_norm == QueryNorm::none) return w;
  const bool by_head = c.query_norm == QueryNorm::by_head;
  w.query_norm = make.norm(by_head ? c.head_dim : queries), w.key_norm = make.norm(by_head ? c.head_dim : keys);
  return w;
}

}  // namespace

DecoderWeights random_weights(const DecoderConfig& c, uint64_t seed) {
  Maker make(c, seed);
  DecoderWeights w;
  w.embedding = make.normal(c.vocabulary, c.width, 1 / double(c.width));
  w.head = c.is_tied ? w.embedding : make.normal(c.vocabulary, c.width, 1 / double(c.width));
  if (c.rope_dim == 0) w.positions = make.normal(c.context, c.width, 1 / double(c.width));
  w.output_norm = make.norm(c.width);
  for (size_t i = 0; i < c.layers.size(); ++i) w.layers.push_back(make_layer(c, make));
  return w;
}

}  // namespace foveate::models
