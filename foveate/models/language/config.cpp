#include "foveate/models/language/config.h"

#include <cmath>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

// Reads "{architecture}.{key}" values and names file and key where one is missing or out of range.
class Keys {
 public:
  Keys(const io::Gguf& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  int64_t count(std::string_view key) const {
    const auto value = file_.integer(full(key));
    require(value.has_value(), "{}: key '{}' is missing", file_.path(), full(key));
    return checked(key, *value);
  }
  int64_t count_or(std::string_view key, int64_t otherwise) const {
    const auto value = file_.integer(full(key));
    return value ? checked(key, *value) : otherwise;
  }
  double number(std::string_view key) const {
    const auto value = file_.number(full(key));
    require(value.has_value(), "{}: key '{}' is missing", file_.path(), full(key));
    return *value;
  }
  double number_or(std::string_view key, double otherwise) const { return file_.number(full(key)).value_or(otherwise); }

 private:
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  int64_t checked(std::string_view key, int64_t value) const {
    require(value >= 1 && value <= (int64_t{1} << 32), "{}: key '{}' must be 1 .. 2^32, got {}", file_.path(),
            full(key), value);
    return value;
  }

  const io::Gguf& file_;
  std::string prefix_;
};

void read_llama(const Keys& keys, DecoderConfig& c) {
  c.activation = Activation::silu;
  c.rotates_pairs = true;
  for (LayerConfig& layer : c.layers) layer.rope_base = keys.number_or("rope.freq_base", 10000);
}

// Layers alternate between a window with its own rotation base and full attention (every 6th).
void read_gemma3(const Keys& keys, DecoderConfig& c) {
  c.activation = Activation::gelu_tanh;
  c.norms_queries = c.norms_branches = true;
  c.embedding_scale = std::sqrt(double(c.width));
  const int64_t window = keys.count("attention.sliding_window");
  const int64_t pattern = keys.count_or("attention.sliding_window_pattern", 6);
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const bool is_full = (int64_t(i) + 1) % pattern == 0;
    c.layers[i].rope_base = is_full ? keys.number_or("rope.freq_base", 1e6) : keys.number_or("rope.freq_base_swa", 1e4);
    c.layers[i].rope_factor = is_full ? keys.number_or("rope.scaling.factor", 1) : 1;
    if (!is_full) c.layers[i].window = window;
  }
}

}  // namespace

DecoderConfig read_config(const io::Gguf& file) {
  DecoderConfig c;
  const auto architecture = file.string("general.architecture");
  require(architecture.has_value(), "{}: key 'general.architecture' is missing", file.path());
  c.architecture = *architecture;
  require(c.architecture == "llama" || c.architecture == "gemma3",
          "{}: unsupported architecture '{}', supported: llama gemma3", file.path(), c.architecture);
  c.name = file.string("general.name").value_or(file.path());
  const Keys keys(file, c.architecture);
  c.width = keys.count("embedding_length");
  c.heads = keys.count("attention.head_count");
  c.kv_heads = keys.count_or("attention.head_count_kv", c.heads);
  require(c.heads % c.kv_heads == 0, "{}: head_count must be a multiple of head_count_kv, got {} and {}", file.path(),
          c.heads, c.kv_heads);
  c.head_dim = keys.count_or("attention.key_length", c.width / c.heads);
  c.value_dim = keys.count_or("attention.value_length", c.head_dim);
  c.rope_dim = keys.count_or("rope.dimension_count", c.head_dim);
  require(c.rope_dim % 2 == 0 && c.rope_dim <= c.head_dim, "{}: rope.dimension_count must be even and <= {}, got {}",
          file.path(), c.head_dim, c.rope_dim);
  c.feed_forward = keys.count("feed_forward_length");
  c.context = keys.count("context_length");
  c.norm_epsilon = keys.number("attention.layer_norm_rms_epsilon");
  c.vocabulary = file.tensor("token_embd.weight").shape.at(0);
  c.attention_scale = 1 / std::sqrt(double(c.head_dim));
  const int64_t layers = keys.count("block_count");
  require(layers <= int64_t(file.tensors().size()), "{}: block_count must be <= the file's {} tensors, got {}",
          file.path(), file.tensors().size(), layers);
  c.layers.resize(layers);
  if (c.architecture == "llama") read_llama(keys, c);
  if (c.architecture == "gemma3") read_gemma3(keys, c);
  return c;
}

}  // namespace foveate::models
