#include "foveate/models/language/encoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "foveate/base/error.h"
#include "foveate/models/language/gguf_fields.h"
#include "foveate/models/language/hf_config.h"
#include "foveate/models/language/hf_parameters.h"

namespace foveate::models {

using at::Tensor;

namespace {

EncoderConfig read_hf(const HfFields& fields) {
  require(fields.text("model_type") == "bert", "{}: model_type must be bert for an encoder, got {}", fields.place(),
          io::printable(fields.text("model_type")));
  const std::string positions = fields.text_or("position_embedding_type", "absolute");
  require(positions == "absolute", "{}: position_embedding_type must be absolute, got {}", fields.place(),
          io::printable(positions));
  fields.refuse_unless("is_decoder", false);
  EncoderConfig c;
  c.width = fields.count("hidden_size"), c.heads = fields.count("num_attention_heads");
  c.layers = fields.count("num_hidden_layers"), c.feed_forward = fields.count("intermediate_size");
  c.vocabulary = fields.count("vocab_size"), c.context = fields.count("max_position_embeddings");
  c.types = fields.count_or("type_vocab_size", 2);
  c.norm_epsilon = fields.number_or("layer_norm_eps", 1e-12);
  c.activation = read_activation(fields, "hidden_act", "gelu");
  c.name = fields.text_or("_name_or_path", fields.place());
  return c;
}

EncoderConfig read_gguf(const io::Gguf& file) {
  const auto architecture = file.string("general.architecture");
  require(architecture == "bert", "{}: general.architecture must be bert for an encoder, got {}", file.path(),
          io::printable(architecture.value_or("")));
  const GgufFields fields(file, "bert");
  EncoderConfig c;
  c.width = fields.count("embedding_length"), c.heads = fields.count("attention.head_count");
  c.layers = fields.count("block_count"), c.feed_forward = fields.count("feed_forward_length");
  c.context = fields.count("context_length");
  c.norm_epsilon = fields.number_or("attention.layer_norm_epsilon", 1e-12);
  c.vocabulary = file.tensor("token_embd.weight").shape.at(0);
  c.types = file.tensor("token_types.weight").shape.at(0);
  c.name = file.string("general.name").value_or(file.path());
  c.pools_means = fields.count_or("pooling_type", 1) == 1;
  return c;
}

void check(const EncoderConfig& c, const std::string& path) {
  require(c.width % c.heads == 0, "{}: the width must be a multiple of the heads, got {} and {}", path, c.width,
          c.heads);
  require(c.layers <= 4096, "{}: there must be <= 4096 layers, got {}", path, c.layers);
}

}  // namespace

Encoder Encoder::load(const std::string& path, at::ScalarType dtype) {
  require(dtype == at::kFloat || dtype == at::kBFloat16, "encoder: dtype must be fp32 or bf16, got {}",
          c10::toString(dtype));
  if (std::filesystem::is_directory(path)) {
    EncoderConfig config = read_hf(HfFields::open(path));
    const std::filesystem::path pooling = std::filesystem::path(path) / "1_Pooling";  // of sentence-transformers
    std::error_code ignored;
    if (std::filesystem::exists(pooling / "config.json", ignored))
      config.pools_means = HfFields::open(pooling.string()).truth_or("pooling_mode_mean_tokens", true);
    check(config, path);
    return Encoder(config, HfParameters(io::Safetensors::open_folder(path), "bert", config.heads), dtype);
  }
  const io::Gguf file = io::Gguf::open(path);
  const EncoderConfig config = read_gguf(file);
  check(config, path);
  return Encoder(config, GgufParameters(file), dtype);
}

Encoder::Encoder(EncoderConfig config, const Parameters& parameters, at::ScalarType dtype)
    : config_(std::move(config)) {
  const int64_t width = config_.width, wide = config_.feed_forward;
  const ParameterReader read(parameters, dtype);
  embedding_ = parameters.read("token_embd.weight", {config_.vocabulary, width});
  positions_ = parameters.read("position_embd.weight", {config_.context, width});
  type_ = parameters.read("token_types.weight", {config_.types, width}).select(0, 0);
  embedding_norm_ = read.norm("token_embd_norm", width, NormKind::layer);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const std::string prefix = fmt::format("blk.{}.", i);
    EncoderLayer w;
    w.query = read.linear(prefix + "attn_q", width, width, true);
    w.key = read.linear(prefix + "attn_k", width, width, true);
    w.value = read.linear(prefix + "attn_v", width, width, true);
    w.output = read.linear(prefix + "attn_output", width, width, true);
    w.output_norm = read.norm(prefix + "attn_output_norm", width, NormKind::layer);
    w.up = read.linear(prefix + "ffn_up", wide, width, true);
    w.down = read.linear(prefix + "ffn_down", width, wide, true);
    w.down_norm = read.norm(prefix + "layer_output_norm", width, NormKind::layer);
    layers_.push_back(std::move(w));
  }
}

Tensor Encoder::norm(const Tensor& x, const Affine& w) const {
  return models::norm(x, w, {NormKind::layer, config_.norm_epsilon});
}

Tensor Encoder::attention_branch(const EncoderLayer& w, int64_t layer, const Tensor& x, const Tensor& lengths,
                                 const Attend& attend) const {
  const Tensor h = x.to(w.query.weight.scalar_type());
  const auto heads = [&](const Affine& weight) {  // [B, heads, L, dim]
    return linear(h, weight).unflatten(2, {config_.heads, -1}).transpose(1, 2);
  };
  attention::Inputs in;
  in.q = heads(w.query), in.k = heads(w.key), in.v = heads(w.value);
  in.rule = Rule::full();
  in.rule.key_lengths = lengths;
  in.score = {.scale = 1 / std::sqrt(double(config_.width / config_.heads))};
  in.layer = layer;
  const Tensor mixed = (attend ? attend(in).out : ops::attend(in.q, in.k, in.v, in.rule, in.score).out);
  return linear(mixed.transpose(1, 2).flatten(2), w.output).to(at::kFloat);
}

Tensor Encoder::forward(const Tensor& tokens, const Tensor& lengths, const Attend& attend) const {
  require(tokens.dim() == 2 && tokens.scalar_type() == at::kLong, "encoder: tokens must be int64 [batch, length]");
  const int64_t length = tokens.size(1);
  require(length <= config_.context, "encoder: a text must be <= {} tokens, got {}", config_.context, length);
  require(
      tokens.numel() == 0 || (tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < config_.vocabulary),
      "encoder: tokens must be 0 .. {}", config_.vocabulary - 1);
  Tensor x = at::embedding(embedding_, tokens) + positions_.narrow(0, 0, length) + type_;
  x = norm(x, embedding_norm_);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const EncoderLayer& w = layers_[size_t(layer)];
    x = norm(x + attention_branch(w, layer, x, lengths, attend), w.output_norm);
    const Tensor wide = activate(linear(x.to(w.up.weight.scalar_type()), w.up), config_.activation);
    x = norm(x + linear(wide, w.down).to(at::kFloat), w.down_norm);
  }
  return x;
}

namespace {

// Ids of a text, cut to `most` tokens; an end token that the tokenizer adds stays there.
std::vector<int32_t> text_tokens(const io::Tokenizer& tokenizer, const std::string& text, int64_t most) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  require(!ids.empty(), "embed: a text must have tokens, got none");
  if (std::ssize(ids) <= most) return ids;
  const std::vector<int32_t> added = tokenizer.encode("");
  const int32_t last = ids.back();
  ids.resize(size_t(most));
  if (most > 1 && !added.empty() && added.back() == last) ids.back() = last;
  return ids;
}

Tensor mean_states(const Encoder& encoder, std::span<const std::vector<int32_t>> texts) {
  int64_t longest = 0;
  for (const auto& ids : texts) longest = std::max(longest, int64_t(std::ssize(ids)));
  const Tensor tokens = at::zeros({std::ssize(texts), longest}, at::kLong);
  const Tensor lengths = at::empty({std::ssize(texts)}, at::kLong);
  for (int64_t i = 0; i < std::ssize(texts); ++i) {
    const auto& ids = texts[size_t(i)];
    std::copy(ids.begin(), ids.end(), tokens.mutable_data_ptr<int64_t>() + i * longest);
    lengths.mutable_data_ptr<int64_t>()[i] = std::ssize(ids);
  }
  const Tensor real = at::arange(longest, at::kLong).unsqueeze(0).lt(lengths.unsqueeze(1)).unsqueeze(2);
  return encoder.forward(tokens, lengths).masked_fill(~real, 0).sum(1) / lengths.unsqueeze(1);
}

}  // namespace

Tensor embed(const Encoder& encoder, const io::Tokenizer& tokenizer, std::span<const std::string> texts,
             const EmbedOptions& options) {
  const int64_t most = options.most_tokens > 0 ? options.most_tokens : encoder.config().context;
  require(options.most_tokens >= 0 && most <= encoder.config().context, "embed: most_tokens must be 0 .. {}, got {}",
          encoder.config().context, options.most_tokens);
  require(options.batch >= 1, "embed: batch must be >= 1, got {}", options.batch);
  require(encoder.config().pools_means, "embed: {} wants vectors that are no means of its token states: not supported",
          encoder.config().name);
  const at::NoGradGuard no_grad;
  std::vector<Tensor> parts = {at::empty({0, encoder.config().width}, at::kFloat)};
  std::vector<std::vector<int32_t>> batch;
  for (size_t i = 0; i < texts.size(); ++i) {
    batch.push_back(text_tokens(tokenizer, texts[i], most));
    if (std::ssize(batch) < options.batch && i + 1 < texts.size()) continue;
    parts.push_back(mean_states(encoder, batch));
    batch.clear();
  }
  const Tensor means = at::cat(parts);
  if (!options.normalize) return means;
  return means / means.norm(2, {1}, true).clamp_min(1e-12);
}

}  // namespace foveate::models
