#include "foveate/models/language/hf_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

// What divides the frequency of each pair (Llama 3): long waves by the factor, short ones by 1, smoothly between.
std::vector<double> llama3_divisors(const HfFields& rope, int64_t pairs, double base) {
  const double factor = rope.number("factor"), low = rope.number("low_freq_factor"),
               high = rope.number("high_freq_factor");
  const auto length = double(rope.count("original_max_position_embeddings"));
  require(factor > 0 && 0 < low && low < high, "{}: factor must be > 0 and 0 < low_freq_factor < high_freq_factor",
          rope.place());
  std::vector<double> divisors;
  for (int64_t i = 0; i < pairs; ++i) {
    const double wave = 2 * std::numbers::pi * std::pow(base, double(i) / double(pairs));
    const double smooth = std::clamp((length / wave - low) / (high - low), 0.0, 1.0);
    divisors.push_back(1 / ((1 - smooth) / factor + smooth));
  }
  return divisors;
}

// One kind of layer's rotation, from the newer form ("rope_parameters") or the older (rope_theta and "rope_scaling").
// `base_key`, `scaled`: of the older form.
HfFields rope_fields(const HfFields& fields, const std::string& kind, const std::string& base_key, double base,
                     bool scaled) {
  const auto parameters = fields.object("rope_parameters");
  if (parameters) return parameters->object(kind).value_or(*parameters);
  const HfFields older(fields.place(), {{"rope_theta", fields.number_or(base_key, base)}});
  const auto scaling = scaled ? fields.object("rope_scaling") : std::nullopt;
  return scaling ? scaling->with_defaults(older) : older;
}

void set_rope(const HfFields& rope, DecoderConfig& c, LayerConfig& layer) {
  const std::string type = rope.text_or("rope_type", rope.text_or("type", "default"));
  layer.rope_base = rope.number_or("rope_theta", 10000);
  require(layer.rope_base > 0, "{}: rope_theta must be > 0, got {}", rope.place(), layer.rope_base);
  if (type == "linear") {
    layer.rope_factor = rope.number("factor");
    require(layer.rope_factor > 0, "{}: factor must be > 0, got {}", rope.place(), layer.rope_factor);
  } else if (type == "llama3") {
    c.rope_divisors = llama3_divisors(rope, c.rope_dim / 2, layer.rope_base);
  } else {
    require(type == "default", "{}: rope_type must be one of: default linear llama3; got {}", rope.place(),
            io::printable(type));
  }
}

void read_rope(const HfFields& fields, DecoderConfig& c, const std::string& base_key = "rope_theta") {
  const HfFields rope = rope_fields(fields, "full_attention", base_key, 10000, true);
  const double share =
      rope.number_or("partial_rotary_factor",
                     fields.number_or("partial_rotary_factor",
                                      c.architecture == "gptneox" ? fields.number_or("rotary_pct", 0.25) : 1.0));
  c.rope_dim = share > 0 && share <= 1 ? int64_t(double(c.head_dim) * share) : 0;
  require(c.rope_dim >= 2 && c.rope_dim % 2 == 0,
          "{}: partial_rotary_factor must rotate an even part of the {} channels of a head, got {}", fields.place(),
          c.head_dim, share);
  for (LayerConfig& layer : c.layers) set_rope(rope, c, layer);
}

// sliding(layer) says which layers have the window where the file has no list of layer_types.
template <class Sliding>
void read_windows(const HfFields& fields, DecoderConfig& c, std::optional<int64_t> window, const Sliding& sliding) {
  const auto types = fields.texts("layer_types");
  require(!types || types->size() == c.layers.size(), "{}: layer_types must list {} layers, got {}", fields.place(),
          c.layers.size(), types ? types->size() : 0);
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const bool is_sliding = types ? (*types)[i] == "sliding_attention" : window && sliding(int64_t(i));
    require(!types || is_sliding || (*types)[i] == "full_attention",
            "{}: layer_types must be full_attention or sliding_attention, got {}", fields.place(),
            types ? io::printable((*types)[i]) : "");
    require(!is_sliding || window, "{}: layer_types has sliding_attention, but sliding_window is missing",
            fields.place());
    if (is_sliding) c.layers[i].window = window;
  }
}

std::optional<int64_t> window_of(const HfFields& fields) {
  return fields.has("sliding_window") ? std::optional(fields.count("sliding_window")) : std::nullopt;
}

void read_llama(const HfFields& fields, DecoderConfig& c) {
  c.activation = read_activation(fields, "hidden_act", "silu");
  c.has_biases = fields.truth_or("attention_bias", false);
  require(c.has_biases == fields.truth_or("mlp_bias", false),
          "{}: attention_bias without mlp_bias, or the reverse, is not supported", fields.place());
  read_rope(fields, c);
}

void read_mistral(const HfFields& fields, DecoderConfig& c) {
  c.activation = read_activation(fields, "hidden_act", "silu");
  read_rope(fields, c);
  read_windows(fields, c, window_of(fields), [](int64_t) { return true; });
}

void read_qwen2(const HfFields& fields, DecoderConfig& c) {
  c.activation = read_activation(fields, "hidden_act", "silu");
  c.has_query_biases = true;
  read_rope(fields, c);
  const double first = fields.number_or("max_window_layers", 28);
  const bool uses = fields.truth_or("use_sliding_window", false);
  read_windows(fields, c, uses ? window_of(fields) : std::nullopt,
               [&](int64_t layer) { return double(layer) >= first; });
}

void read_qwen3(const HfFields& fields, DecoderConfig& c) {
  fields.refuse_unless("attention_bias", false);
  read_qwen2(fields, c);
  c.has_query_biases = false;
  c.query_norm = QueryNorm::by_head;
}

void read_olmo2(const HfFields& fields, DecoderConfig& c) {
  fields.refuse_unless("attention_bias", false);
  c.activation = read_activation(fields, "hidden_act", "silu");
  c.query_norm = QueryNorm::by_width;
  c.norms_inputs = false, c.norms_branches = true;
  read_rope(fields, c);
}

void read_phi3(const HfFields& fields, DecoderConfig& c) {
  c.fuses_query = c.fuses_gate = true;
  read_mistral(fields, c);
}

void read_gpt2(const HfFields& fields, DecoderConfig& c) {
  fields.refuse_unless("scale_attn_weights", true);
  fields.refuse_unless("scale_attn_by_inverse_layer_idx", false);
  fields.refuse_unless("add_cross_attention", false);
  c.norm = NormKind::layer;
  c.activation = read_activation(fields, "activation_function", "gelu_new");
  c.gated = false, c.has_biases = c.fuses_query = true;
  c.rope_dim = 0;
}

void read_gptneox(const HfFields& fields, DecoderConfig& c) {
  fields.refuse_unless("attention_bias", true);
  c.norm = NormKind::layer;
  c.activation = read_activation(fields, "hidden_act", "gelu");
  c.gated = false, c.has_biases = c.fuses_query = true;
  c.parallel = fields.truth_or("use_parallel_residual", true);
  read_rope(fields, c, "rotary_emb_base");
}

void read_gemma(const HfFields& fields, DecoderConfig& c) {
  fields.refuse_unless("attention_bias", false);
  fields.refuse_unless("use_bidirectional_attention", false);
  c.activation = read_activation(fields, "hidden_activation", "gelu_pytorch_tanh");
  c.norms_branches = true;
  c.embedding_scale = std::sqrt(double(c.width));
  c.attention_scale = 1 / std::sqrt(fields.number_or("query_pre_attn_scalar", 256));
}

void read_gemma2(const HfFields& fields, DecoderConfig& c) {
  read_gemma(fields, c);
  if (fields.has("attn_logit_softcapping")) c.attention_soft_cap = fields.number("attn_logit_softcapping");
  if (fields.has("final_logit_softcapping")) c.logit_soft_cap = fields.number("final_logit_softcapping");
  read_rope(fields, c);
  read_windows(fields, c, fields.count_or("sliding_window", 4096), [](int64_t layer) { return layer % 2 == 0; });
}

void read_gemma3(const HfFields& fields, DecoderConfig& c) {
  read_gemma(fields, c);
  c.query_norm = QueryNorm::by_head;
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    require(!fields.has(key), "{}: '{}' is not supported in gemma3_text", fields.place(), key);
  const int64_t pattern = fields.count_or("sliding_window_pattern", fields.count_or("_sliding_window_pattern", 6));
  read_windows(fields, c, fields.count_or("sliding_window", 4096),
               [&](int64_t layer) { return (layer + 1) % pattern != 0; });
  c.rope_dim = c.head_dim;
  const HfFields full = rope_fields(fields, "full_attention", "rope_theta", 1e6, true);
  const HfFields local = rope_fields(fields, "sliding_attention", "rope_local_base_freq", 1e4, false);
  for (LayerConfig& layer : c.layers) set_rope(layer.window ? local : full, c, layer);
  require(c.rope_divisors.empty(), "{}: rope_type must be default or linear in gemma3_text", fields.place());
}

// model_type of the file, the architecture's GGUF name, and names of the keys that differ.
struct Family {
  std::string_view type, architecture;
  void (*read)(const HfFields&, DecoderConfig&);
  bool is_tied = false;  // where the file does not say
  std::string width = "hidden_size", heads = "num_attention_heads", layers = "num_hidden_layers",
              feed_forward = "intermediate_size", context = "max_position_embeddings", epsilon = "rms_norm_eps";
};

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"llama", "llama", read_llama},
      {"mistral", "llama", read_mistral},
      {"qwen2", "qwen2", read_qwen2},
      {"qwen3", "qwen3", read_qwen3},
      {"gemma2", "gemma2", read_gemma2, true},
      {"gemma3_text", "gemma3", read_gemma3, true},
      {"olmo2", "olmo2", read_olmo2},
      {"phi3", "phi3", read_phi3},
      {"gpt2", "gpt2", read_gpt2, true, "n_embd", "n_head", "n_layer", "n_inner", "n_positions", "layer_norm_epsilon"},
      {.type = "gpt_neox", .architecture = "gptneox", .read = read_gptneox, .epsilon = "layer_norm_eps"},
  };
  return all;
}

const Family& find_family(const HfFields& fields) {
  const std::string type = fields.text("model_type");
  std::string known;
  for (const Family& family : families()) {
    if (family.type == type) return family;
    known += fmt::format(" {}", family.type);
  }
  fail("{}: unsupported model_type {}, supported:{}", fields.place(), io::printable(type), known);
}

}  // namespace

Activation read_activation(const HfFields& fields, const std::string& key, const std::string& otherwise) {
  const std::string name = fields.text_or(key, otherwise);
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  fail("{}: '{}' must be one of: silu gelu gelu_new gelu_pytorch_tanh; got {}", fields.place(), key,
       io::printable(name));
}

DecoderConfig read_hf_config(const std::string& folder) {
  const HfFields fields = HfFields::open(folder);
  const Family& family = find_family(fields);
  DecoderConfig c;
  c.architecture = family.architecture;
  c.name = fields.text_or("_name_or_path", folder);
  c.width = fields.count(family.width);
  c.heads = fields.count(family.heads);
  const bool has_groups = c.architecture != "gpt2" && c.architecture != "gptneox";  // these ignore keys about them
  c.kv_heads = has_groups ? fields.count_or("num_key_value_heads", c.heads) : c.heads;
  const bool has_head_dim = has_groups && fields.has("head_dim");
  require(has_head_dim || c.width % c.heads == 0, "{}: {} must be a multiple of {}, got {} and {}", fields.place(),
          family.width, family.heads, c.width, c.heads);
  c.head_dim = c.value_dim = has_head_dim ? fields.count("head_dim") : c.width / c.heads;
  c.feed_forward =
      c.architecture == "gpt2" ? fields.count_or(family.feed_forward, 4 * c.width) : fields.count(family.feed_forward);
  c.context = fields.count(family.context);
  c.vocabulary = fields.count("vocab_size");
  c.norm_epsilon = fields.number(family.epsilon);
  c.attention_scale = 1 / std::sqrt(double(c.head_dim));
  c.is_tied = fields.truth_or("tie_word_embeddings", family.is_tied);
  constexpr int64_t kMostLayers = 4096;
  const int64_t layers = fields.count(family.layers);
  require(layers <= kMostLayers, "{}: {} must be <= {}, got {}", fields.place(), family.layers, kMostLayers, layers);
  c.layers.resize(size_t(layers));
  family.read(fields, c);
  check_config(c, fields.place());
  return c;
}

}  // namespace foveate::models
