#include "foveate/models/language/config.h"

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/io/dequantize.h"
#include "foveate/models/language/gguf_fields.h"

namespace foveate::models {
namespace {

// The rotation of every layer: base and scaling.
void read_rope(const GgufFields& keys, DecoderConfig& c) {
  const std::string scaling = keys.text_or("rope.scaling.type", "none");
  require(scaling == "none" || scaling == "linear", "{}: rope.scaling.type must be one of: none linear; got {}",
          keys.path(), io::printable(scaling));
  for (LayerConfig& layer : c.layers) {
    layer.rope_base = keys.number_or("rope.freq_base", 10000);
    if (scaling == "linear") layer.rope_factor = keys.number("rope.scaling.factor");
  }
}

void read_llama(const GgufFields& keys, DecoderConfig& c) {
  c.rotates_pairs = true;
  read_rope(keys, c);
}

void read_qwen2(const GgufFields& keys, DecoderConfig& c) {
  c.has_query_biases = true;
  read_rope(keys, c);
}

void read_qwen3(const GgufFields& keys, DecoderConfig& c) {
  c.query_norm = QueryNorm::by_head;
  read_rope(keys, c);
}

void read_olmo2(const GgufFields& keys, DecoderConfig& c) {
  c.query_norm = QueryNorm::by_width;
  c.norms_inputs = false, c.norms_branches = true;
  read_rope(keys, c);
}

void read_phi3(const GgufFields& keys, DecoderConfig& c) {
  c.fuses_query = c.fuses_gate = true;
  read_rope(keys, c);
  if (const auto window = keys.count_or("attention.sliding_window", 0))
    for (LayerConfig& layer : c.layers) layer.window = window;
}

void read_gpt2(const GgufFields&, DecoderConfig& c) {
  c.norm = NormKind::layer;
  c.activation = Activation::gelu_tanh;
  c.gated = false, c.has_biases = c.fuses_query = true;
  c.rope_dim = 0;
}

void read_gptneox(const GgufFields& keys, DecoderConfig& c) {
  c.norm = NormKind::layer;
  c.activation = Activation::gelu;
  c.gated = false, c.has_biases = c.fuses_query = true;
  c.parallel = keys.truth_or("use_parallel_residual", true);
  read_rope(keys, c);
}

// Windows and full attention take turns.
void read_gemma2(const GgufFields& keys, DecoderConfig& c) {
  c.activation = Activation::gelu_tanh;
  c.norms_branches = true;
  c.embedding_scale = std::sqrt(double(c.width));
  c.attention_soft_cap = keys.number_or("attn_logit_softcapping", 50);
  c.logit_soft_cap = keys.number_or("final_logit_softcapping", 30);
  // The file does not say it: the largest model of the family, of 46 layers, scales by width / heads.
  if (c.layers.size() == 46) c.attention_scale = 1 / std::sqrt(double(c.width) / double(c.heads));
  read_rope(keys, c);
  const int64_t window = keys.count_or("attention.sliding_window", 4096);
  for (size_t i = 0; i < c.layers.size(); i += 2) c.layers[i].window = window;
}

// Layers alternate between a window with its own rotation base and full attention (every 6th).
void read_gemma3(const GgufFields& keys, DecoderConfig& c) {
  c.activation = Activation::gelu_tanh;
  c.query_norm = QueryNorm::by_head;
  c.norms_branches = true;
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

struct Architecture {
  std::string_view name;
  void (*read)(const GgufFields&, DecoderConfig&);
};
constexpr Architecture kArchitectures[] = {
    {"llama", read_llama}, {"gemma2", read_gemma2},   {"gemma3", read_gemma3},
    {"gpt2", read_gpt2},   {"gptneox", read_gptneox}, {"olmo2", read_olmo2},
    {"phi3", read_phi3},   {"qwen2", read_qwen2},     {"qwen3", read_qwen3},
};

const Architecture& find_architecture(const std::string& name, const std::string& path) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return architecture;
    known += fmt::format(" {}", architecture.name);
  }
  fail("{}: unsupported architecture {}, supported:{}", path, io::printable(name), known);
}

// Llama 3 files carry what divides each rotation frequency as a tensor.
std::vector<double> read_rope_divisors(const io::Gguf& file, int64_t pairs) {
  for (const std::string_view name : {"rope_factors_long.weight", "rope_factors_short.weight"})
    require(!file.find(name), "{}: tensor '{}' (long rope) is not supported", file.path(), name);
  const io::GgufTensor* stored = file.find("rope_freqs.weight");
  if (!stored) return {};
  require(stored->shape == std::vector<int64_t>{pairs}, "{}: tensor 'rope_freqs.weight' must be [{}], got [{}]",
          file.path(), pairs, fmt::join(stored->shape, ", "));
  std::vector<float> values(static_cast<size_t>(pairs));
  io::dequantize(stored->type, stored->bytes, values);
  return {values.begin(), values.end()};
}

}  // namespace

void check_config(const DecoderConfig& c, const std::string& path) {
  require(c.heads % c.kv_heads == 0, "{}: query heads must be a multiple of key heads, got {} and {}", path, c.heads,
          c.kv_heads);
  constexpr int64_t kMost = int64_t{1} << 24;  // so that no size of a matrix overflows
  for (const auto& [what, size] :
       {std::pair("width", c.width), std::pair("heads", c.heads),
        std::pair("head dim", std::max(c.head_dim, c.value_dim)), std::pair("feed-forward width", c.feed_forward)})
    require(size <= kMost, "{}: {} must be <= 2^24, got {}", path, what, size);
  require(!c.rotates_pairs || c.head_dim % 2 == 0, "{}: head dim must be even, got {}", path, c.head_dim);
  require(c.norm_epsilon >= 0, "{}: the norms' epsilon must be >= 0, got {}", path, c.norm_epsilon);
  for (const auto& [what, number] : {std::pair("the logits' scale", std::optional(c.attention_scale)),
                                     std::pair("the attention logits' soft cap", c.attention_soft_cap),
                                     std::pair("the final logits' soft cap", c.logit_soft_cap)})
    require(!number || (*number > 0 && std::isfinite(*number)), "{}: {} must be > 0, got {}", path, what, *number);
}

DecoderConfig read_config(const io::Gguf& file) {
  DecoderConfig c;
  const auto name = file.string("general.architecture");
  require(name.has_value(), "{}: key 'general.architecture' is missing", file.path());
  c.architecture = *name;
  const Architecture& architecture = find_architecture(c.architecture, file.path());
  c.name = file.string("general.name").value_or(file.path());
  const GgufFields keys(file, c.architecture);
  c.width = keys.count("embedding_length");
  c.heads = keys.count("attention.head_count");
  c.kv_heads = keys.count_or("attention.head_count_kv", c.heads);
  c.head_dim = keys.count_or("attention.key_length", c.width / c.heads);
  c.value_dim = keys.count_or("attention.value_length", c.head_dim);
  c.rope_dim = keys.count_or("rope.dimension_count", c.head_dim);
  require(c.rope_dim % 2 == 0 && c.rope_dim <= c.head_dim, "{}: rope.dimension_count must be even and <= {}, got {}",
          file.path(), c.head_dim, c.rope_dim);
  c.feed_forward = keys.count("feed_forward_length");
  c.context = keys.count("context_length");
  c.vocabulary = file.tensor("token_embd.weight").shape.at(0);
  c.is_tied = file.find("output.weight") == nullptr;
  c.attention_scale = 1 / std::sqrt(double(c.head_dim));
  const int64_t layers = keys.count("block_count");
  require(layers <= int64_t(file.tensors().size()), "{}: block_count must be <= the file's {} tensors, got {}",
          file.path(), file.tensors().size(), layers);
  c.layers.resize(layers);
  architecture.read(keys, c);
  c.norm_epsilon =
      keys.number(c.norm == NormKind::rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon");
  check_config(c, file.path());
  if (c.rope_dim > 0) c.rope_divisors = read_rope_divisors(file, c.rope_dim / 2);
  return c;
}

}  // namespace foveate::models
