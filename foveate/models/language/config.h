// The shape of a decoder-only language model, read from a GGUF file's metadata.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "foveate/io/gguf.h"

namespace foveate::models {

enum class Activation { silu, gelu_tanh };

struct LayerConfig {
  std::optional<int64_t> window;  // keys seen, the query's own included; unset: all before
  double rope_base = 10000;
  double rope_factor = 1;  // positions are divided by it (linear scaling)
};

struct DecoderConfig {
  std::string architecture, name;
  int64_t width = 0, heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0, feed_forward = 0, vocabulary = 0;
  int64_t context = 0;  // tokens the model was trained for
  int64_t rope_dim = 0;
  double norm_epsilon = 0;
  double embedding_scale = 1;
  double attention_scale = 0;
  std::optional<double> attention_soft_cap, logit_soft_cap;
  Activation activation = Activation::silu;
  bool norms_queries = false;   // RMS norm of every query and key head before rotation
  bool norms_branches = false;  // RMS norm of what attention and MLP add to the residual stream
  bool rotates_pairs = false;   // the file's query and key rows are permuted for rotation of adjacent pairs
  std::vector<LayerConfig> layers;
};

// Throws Error: unsupported architecture (names the supported ones), a missing or contradictory key (names it).
DecoderConfig read_config(const io::Gguf& file);

}  // namespace foveate::models
