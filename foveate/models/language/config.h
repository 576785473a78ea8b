// The shape of a decoder-only language model, read from a GGUF file's metadata.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "foveate/io/gguf.h"

namespace foveate::models {

enum class Activation { silu, gelu, gelu_tanh };
enum class NormKind { rms, layer };
enum class QueryNorm { none, by_head, by_width };  // before rotation: every head for itself, or all of a token

struct LayerConfig {
  std::optional<int64_t> window;  // keys seen, the query's own included; unset: all before
  double rope_base = 10000;
  double rope_factor = 1;  // positions are divided by it (linear scaling)
};

struct DecoderConfig {
  std::string architecture, name;
  int64_t width = 0, heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0, feed_forward = 0, vocabulary = 0;
  int64_t context = 0;                // tokens the model was trained for
  int64_t rope_dim = 0;               // rotated channels of a head; 0: none, positions are learned
  std::vector<double> rope_divisors;  // [rope_dim / 2] of the angles (Llama 3 scaling); empty: 1
  double norm_epsilon = 0;
  double embedding_scale = 1;
  double attention_scale = 0;
  std::optional<double> attention_soft_cap, logit_soft_cap;
  Activation activation = Activation::silu;
  NormKind norm = NormKind::rms;
  QueryNorm query_norm = QueryNorm::none;  // of queries and keys
  bool norms_inputs = true;                // what attention and MLP read
  bool norms_branches = false;             // what attention and MLP add to the residual stream
  bool gated = true;                       // MLP: down(act(gate x) * up x), else down(act(up x))
  bool parallel = false;                   // attention and MLP read the same residual stream
  bool has_biases = false;                 // every matrix has one
  bool has_query_biases = false;           // those of queries, keys and values do
  bool fuses_query = false;                // the file holds queries, keys and values in one matrix
  bool fuses_gate = false;                 // gate and up in one
  bool is_tied = false;                    // the head is the embedding
  bool rotates_pairs = false;              // the file's query and key rows are permuted for rotation of adjacent pairs
  std::vector<LayerConfig> layers;
};

// What every file must keep.  Throws Error: query heads that are no multiple of the key heads, sizes that no model has,
// an epsilon < 0, a scale or soft cap that is not > 0.
void check_config(const DecoderConfig& config, const std::string& path);

// Throws Error: unsupported architecture (names the supported ones), a missing or contradictory key (names it).
DecoderConfig read_config(const io::Gguf& file);

}  // namespace foveate::models
