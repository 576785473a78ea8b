#include "foveate/models/vision/nat.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/zeros.h>

#include "foveate/base/error.h"
#include "foveate/models/vision/initialise.h"
#include "foveate/models/vision/modules.h"
#include "foveate/ops/neighborhood/neighborhood.h"

namespace foveate::models {
namespace {

using at::Tensor;

torch::nn::LayerNorm layer_norm(int64_t channels) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({channels}));
}

torch::nn::Conv2d halving(int64_t in, int64_t out, bool bias) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).stride(2).padding(1).bias(bias));
}

Tensor channels_last(const Tensor& maps) { return maps.permute({0, 2, 3, 1}); }
Tensor channels_first(const Tensor& maps) { return maps.permute({0, 3, 1, 2}); }

std::vector<torch::nn::Conv2d> add_embeddings(torch::nn::Module& patch_embed, const NatConfig& c) {
  if (c.embeds_patches)
    return {patch_embed.register_module(
        "proj", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, c.embed, c.patch).stride(c.patch)))};
  std::vector<torch::nn::Conv2d> all;
  torch::nn::ModuleList list;
  int64_t from = 3;
  for (const int64_t to : c.embedding_channels()) {
    all.push_back(halving(from, to, true));
    list->push_back(all.back());
    from = to;
  }
  patch_embed.register_module("proj", list);
  return all;
}

// Zeros behind both axes of [B, h, w, C].
Tensor padded(const Tensor& x, int64_t height, int64_t width) {
  return at::constant_pad_nd(x, {0, 0, 0, width - x.size(2), 0, height - x.size(1)});
}

}  // namespace

NatAttentionImpl::NatAttentionImpl(int64_t channels, int64_t heads, int64_t kernel, int64_t dilation, bool pads)
    : heads_(heads),
      kernel_(kernel),
      dilation_(dilation),
      pads_(pads),
      qkv_(register_module("qkv", torch::nn::Linear(channels, 3 * channels))),
      proj_(register_module("proj", torch::nn::Linear(channels, channels))),
      rpb_(register_parameter("rpb", at::zeros({heads, 2 * kernel - 1, 2 * kernel - 1}))) {}

Tensor NatAttentionImpl::forward(const Tensor& given) {
  const int64_t height = given.size(1), width = given.size(2), least = kernel_ * dilation_;
  const bool small = height < least || width < least;
  require(pads_ || !small,
          "nat: maps must be at least kernel * dilation = {} x {}, got {} x {}; pads_small_maps pads them", least,
          least, height, width);
  const Tensor x = small ? padded(given, std::max(height, least), std::max(width, least)) : given;
  const Tensor qkv = qkv_(x).unflatten(-1, {3, heads_, -1}).flatten(1, 2);  // [B, places, 3, heads, dim]
  const auto heads_first = [&](int64_t which) { return qkv.select(2, which).transpose(1, 2); };
  const Neighborhood neighborhood{{{x.size(1), kernel_, 1, dilation_}, {x.size(2), kernel_, 1, dilation_}}};
  ops::NeighborhoodScore score;
  score.bias = rpb_;
  const Tensor out = ops::attend_neighborhood(heads_first(0), heads_first(1), heads_first(2), neighborhood, score).out;
  const Tensor map = out.transpose(1, 2).flatten(2).unflatten(1, {x.size(1), x.size(2)});
  return proj_(small ? map.narrow(1, 0, height).narrow(2, 0, width) : map);
}

NatMlpImpl::NatMlpImpl(int64_t channels, int64_t hidden)
    : fc1_(register_module("fc1", torch::nn::Linear(channels, hidden))),
      fc2_(register_module("fc2", torch::nn::Linear(hidden, channels))) {}

Tensor NatMlpImpl::forward(const Tensor& x) { return fc2_(at::gelu(fc1_(x))); }

NatLayerImpl::NatLayerImpl(const NatConfig& c, size_t level, size_t layer, double drop_path)
    : drop_path_(drop_path),
      norm1_(register_module("norm1", layer_norm(c.channels(level)))),
      norm2_(register_module("norm2", layer_norm(c.channels(level)))),
      attn_(register_module("attn", NatAttention(c.channels(level), c.heads[level], c.window(),
                                                 c.dilation(level, layer), c.pads_small_maps))),
      mlp_(register_module("mlp", NatMlp(c.channels(level), int64_t(double(c.channels(level)) * c.mlp_ratio)))) {
  if (!c.layer_scale) return;
  gamma1_ = register_parameter("gamma1", at::full({c.channels(level)}, *c.layer_scale));
  gamma2_ = register_parameter("gamma2", at::full({c.channels(level)}, *c.layer_scale));
}

// Whole images of a batch lose the branch (Huang et al., 1603.09382); those that keep it have it enlarged.
Tensor NatLayerImpl::branch(const Tensor& y, const Tensor& gamma, Random* random) const {
  const Tensor scaled = gamma.defined() ? y * gamma : y;
  if (!random || drop_path_ == 0) return scaled;
  const Tensor keep = at::empty({y.size(0), 1, 1, 1}, at::kFloat);
  for (int64_t i = 0; i < y.size(0); ++i)
    keep.mutable_data_ptr<float>()[i] = random->uniform() < drop_path_ ? 0.0f : float(1 / (1 - drop_path_));
  return scaled * keep.to(y.scalar_type());
}

Tensor NatLayerImpl::forward(const Tensor& x, Random* random) {
  const Tensor attended = x + branch(attn_(norm1_(x)), gamma1_, random);
  return attended + branch(mlp_(norm2_(attended)), gamma2_, random);
}

NatDownsampleImpl::NatDownsampleImpl(int64_t channels, bool merges_patches) {
  if (merges_patches) {
    linear_ = register_module("reduction",
                              torch::nn::Linear(torch::nn::LinearOptions(4 * channels, 2 * channels).bias(false)));
    norm_ = register_module("norm", layer_norm(4 * channels));
  } else {
    conv_ = register_module("reduction", halving(channels, 2 * channels, false));
    norm_ = register_module("norm", layer_norm(2 * channels));
  }
}

Tensor NatDownsampleImpl::forward(const Tensor& given) {
  if (conv_) return norm_(channels_last(conv_(channels_first(given))));
  const Tensor x = padded(given, (given.size(1) + 1) / 2 * 2, (given.size(2) + 1) / 2 * 2);
  std::vector<Tensor> tokens;
  for (const auto& [row, column] : {std::pair(0, 0), std::pair(1, 0), std::pair(0, 1), std::pair(1, 1)})
    tokens.push_back(x.slice(1, row, {}, 2).slice(2, column, {}, 2));
  return linear_(norm_(at::cat(tokens, 3)));
}

NatImpl::NatImpl(const NatConfig& config, std::optional<uint64_t> seed) : config_(config) {
  const NatConfig& c = config_;
  check_nat(c);
  const auto patch_embed = add_folder(*this, "patch_embed");
  embeddings_ = add_embeddings(*patch_embed, c);
  embed_norm_ = patch_embed->register_module("norm", layer_norm(c.embed));

  int64_t all = 0, layer_count = 0;
  for (const int64_t depth : c.depths) all += depth;
  torch::nn::ModuleList levels;
  for (size_t level = 0; level < c.depths.size(); ++level) {
    torch::nn::ModuleList blocks;
    std::vector<NatLayer>& own = layers_.emplace_back();
    for (size_t layer = 0; layer < size_t(c.depths[level]); ++layer, ++layer_count) {
      const double drop = all == 1 ? 0 : c.drop_path * double(layer_count) / double(all - 1);
      own.emplace_back(c, level, layer, drop);
      blocks->push_back(own.back());
    }
    if (c.is_isotropic()) {
      register_module(c.levels, blocks);
      break;
    }
    const auto module = std::make_shared<torch::nn::Module>();
    module->register_module("blocks", blocks);
    if (level + 1 < c.depths.size())
      downsamplers_.push_back(
          module->register_module("downsample", NatDownsample(c.channels(level), c.merges_patches)));
    levels->push_back(module);
  }
  if (!c.is_isotropic()) register_module(c.levels, levels);
  const int64_t last = c.channels(c.depths.size() - 1);
  if (c.classes > 0) {
    norm_ = register_module("norm", layer_norm(last));
    head_ = register_module("head", torch::nn::Linear(last, c.classes));
  }
  for (const int64_t level : c.outputs)
    output_norms_.push_back(register_module(fmt::format("norm{}", level), layer_norm(c.channels(size_t(level)))));
  if (!seed) return;
  int64_t inputs = 1;  // of the latest convolution: its bias has the same bound
  initialise(*this, *seed, [&](std::string_view name, const Tensor& parameter, Random& random) {
    if (name.ends_with("rpb")) return fill_truncated_normal(parameter, 0.02, random);
    if (parameter.dim() == 2) {
      const double deviation = c.deviation > 0 ? c.deviation : 1 / std::sqrt(double(parameter.size(1)));
      return fill_truncated_normal(parameter, deviation, random);
    }
    const bool convolution = name.find("patch_embed.proj") != name.npos || name.ends_with("reduction.weight");
    if (!convolution) {
      if (name.ends_with("bias")) parameter.zero_();
      return;
    }
    if (parameter.dim() == 4) inputs = fan_in(parameter);
    fill_uniform(parameter, 1 / std::sqrt(double(inputs)), random);
  });
}

Tensor NatImpl::embed(const Tensor& image) {
  require(image.dim() == 4 && image.size(1) == 3, "nat: image must be [B, 3, H, W], got [{}]",
          fmt::join(image.sizes().begin(), image.sizes().end(), ", "));
  Tensor x = image;
  if (config_.embeds_patches) {
    const auto up = [&](int64_t n) { return (n + config_.patch - 1) / config_.patch * config_.patch; };
    x = at::constant_pad_nd(x, {0, up(x.size(3)) - x.size(3), 0, up(x.size(2)) - x.size(2)});
  }
  for (auto& conv : embeddings_) x = conv(x);
  return embed_norm_(channels_last(x));
}

Tensor NatImpl::features(const Tensor& image, Random* random) {
  require(config_.classes > 0,
          "nat: classes must be >= 1 for scores and their features, got 0; maps has this backbone's");
  Tensor x = embed(image);
  for (size_t level = 0; level < layers_.size(); ++level) {
    for (NatLayer& layer : layers_[level]) x = layer->forward(x, random);
    if (level < downsamplers_.size()) x = downsamplers_[level](x);
  }
  return channels_first(norm_(x));
}

Tensor NatImpl::forward(const Tensor& image, Random* random) {
  return head_(features(image, random).mean(c10::IntArrayRef{2, 3}));
}

std::vector<Tensor> NatImpl::maps(const Tensor& image, Random* random) {
  Tensor x = embed(image);
  std::vector<Tensor> maps;
  for (size_t level = 0; level < layers_.size(); ++level) {
    for (NatLayer& layer : layers_[level]) x = layer->forward(x, random);
    for (size_t i = 0; i < config_.outputs.size(); ++i)
      if (config_.outputs[i] == int64_t(level)) maps.push_back(channels_first(output_norms_[i](x)));
    if (level < downsamplers_.size()) x = downsamplers_[level](x);
  }
  return maps;
}

}  // namespace foveate::models
