#include "foveate/models/language/random_weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::models {
namespace {

class Maker {
 public:
  explicit Maker(uint64_t seed) : seed_(seed) {}

  at::Tensor normal(int64_t out, int64_t in, double variance) {
    Random random(seed_, stream_++);  // of its own for each matrix
    const at::Tensor numbers = at::empty({out, in}, at::kFloat);
    float* data = numbers.mutable_data_ptr<float>();
    for (int64_t i = 0; i < numbers.numel(); ++i) data[i] = float(std::sqrt(variance) * random.normal());
    return numbers;
  }
  Affine matrix(int64_t out, int64_t in) { return {normal(out, in, 1 / double(in)), {}}; }
  Affine biased(int64_t out, int64_t in) { return {normal(out, in, 1 / double(in)), at::zeros({out})}; }

 private:
  uint64_t seed_, stream_ = 0;
};

Affine norm(int64_t width) { return {at::ones({width}), {}}; }

LayerWeights make_layer(const DecoderConfig& c, Maker& make) {
  const auto writes_to_stream = [&](int64_t in) {
    return Affine{make.normal(c.width, in, 1 / (2.0 * double(c.layers.size()) * double(in))), {}};
  };
  LayerWeights w;
  w.query = make.biased(c.heads * c.head_dim, c.width);
  w.key = make.biased(c.kv_heads * c.head_dim, c.width);
  w.value = make.biased(c.kv_heads * c.value_dim, c.width);
  w.output = writes_to_stream(c.heads * c.value_dim);
  w.gate = make.matrix(c.feed_forward, c.width);
  w.up = make.matrix(c.feed_forward, c.width);
  w.down = writes_to_stream(c.feed_forward);
  w.attention_norm = norm(c.width), w.feed_forward_norm = norm(c.width);
  return w;
}

}  // namespace

DecoderWeights random_weights(const DecoderConfig& c, uint64_t seed) {
  const bool is_made = c.architecture == "llama" && c.has_query_biases && !c.has_biases && !c.is_tied && c.rope_dim > 0;
  require(is_made, "random weights: the decoder must be llama's with biases of queries, keys and values, got {}",
          c.architecture);
  Maker make(seed);
  DecoderWeights w;
  w.embedding = make.normal(c.vocabulary, c.width, 1 / double(c.width));
  w.head = make.normal(c.vocabulary, c.width, 1 / double(c.width));
  w.output_norm = norm(c.width);
  for (size_t i = 0; i < c.layers.size(); ++i) w.layers.push_back(make_layer(c, make));
  return w;
}

}  // namespace foveate::models
