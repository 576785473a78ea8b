// A tiny decoder with random weights, and a tokenizer of single bytes for it.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>

#include "foveate/io/tokenizer.h"
#include "foveate/models/language/decoder.h"
#include "tests/support/compare.h"

namespace foveate::test {

// Layer 1 has a window of its own; Gemma's extra norms where `gemma`.
inline models::Decoder tiny_decoder(bool gemma = false, int64_t vocabulary = 258) {
  models::DecoderConfig c;
  c.architecture = gemma ? "gemma3" : "llama", c.name = "tiny";
  c.width = 24, c.heads = 4, c.kv_heads = 2, c.head_dim = c.value_dim = c.rope_dim = 8, c.feed_forward = 40;
  c.vocabulary = vocabulary, c.context = 512, c.norm_epsilon = 1e-5, c.attention_scale = 1 / std::sqrt(8.0);
  c.query_norm = gemma ? models::QueryNorm::by_head : models::QueryNorm::none, c.norms_branches = gemma;
  c.activation = gemma ? models::Activation::gelu_tanh : models::Activation::silu;
  c.layers.resize(3);
  c.layers[1].window = 9;
  uint64_t seed = 100;
  const auto matrix = [&](int64_t out, int64_t in) {
    return models::Affine{random_tensor({out, in}, ++seed) / std::sqrt(double(in)), {}};
  };
  const auto norm = [](int64_t width) { return models::Affine{at::ones({width}), {}}; };
  models::DecoderWeights w;
  w.embedding = w.head = random_tensor({c.vocabulary, c.width}, 7);
  w.output_norm = {at::ones({c.width}), {}};
  for (size_t i = 0; i < c.layers.size(); ++i) {
    models::LayerWeights layer;
    layer.attention_norm = norm(c.width), layer.feed_forward_norm = norm(c.width);
    layer.query = matrix(32, 24), layer.key = matrix(16, 24), layer.value = matrix(16, 24),
    layer.output = matrix(24, 32);
    layer.gate = matrix(40, 24), layer.up = matrix(40, 24), layer.down = matrix(24, 40);
    if (gemma) {
      layer.query_norm = norm(8), layer.key_norm = norm(8);
      layer.post_attention_norm = norm(24), layer.post_feed_forward_norm = norm(24);
    }
    w.layers.push_back(layer);
  }
  return models::Decoder(c, w);
}

// Ids 0 .. 255 are bytes, 256 is <s>, 257 is </s>.
inline std::unique_ptr<io::Tokenizer> byte_tokenizer() {
  io::Vocabulary v;
  v.model = "llama";
  for (int i = 0; i < 256; ++i) {
    v.tokens.push_back(fmt::format("<0x{:02X}>", i));
    v.types.push_back(int32_t(io::TokenType::byte));
  }
  for (const char* special : {"<s>", "</s>"}) {
    v.tokens.push_back(special);
    v.types.push_back(int32_t(io::TokenType::control));
  }
  v.scores.assign(v.tokens.size(), 0);
  v.bos = 256, v.eos = 257, v.unknown = 0;
  v.ends = {257};
  return io::make_tokenizer(v);
}

}  // namespace foveate::test
