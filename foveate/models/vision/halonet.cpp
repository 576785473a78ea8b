#include "foveate/models/vision/halonet.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/models/vision/initialise.h"
#include "foveate/models/vision/modules.h"

namespace foveate::models {
namespace {

using at::Tensor;
using torch::nn::Conv2dOptions;

Tensor activate(const Tensor& x, Activation activation) {
  return activation == Activation::relu ? at::relu(x) : at::silu(x);
}

Conv2dOptions convolution(int64_t from, int64_t to, int64_t kernel, int64_t stride = 1, int64_t groups = 1) {
  return Conv2dOptions(from, to, kernel).stride(stride).padding(kernel / 2).groups(groups).bias(false);
}

void fill(std::string_view name, const Tensor& t, Random& random) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  const bool is_bias = name.ends_with("bias");
  if (is_bias || has("conv3_1x1.bn"))
    t.zero_();  // a block adds nothing at first
  else if (t.dim() == 1)
    t.fill_(1);
  else if (has("_rel"))
    fill_truncated_normal(t, 1 / std::sqrt(double(t.size(1))), random);
  else if (has("self_attn"))
    fill_truncated_normal(t, 1 / std::sqrt(double(fan_in(t))), random);
  else if (t.dim() == 3)
    fill_uniform(t, 1 / std::sqrt(double(fan_in(t))), random);
  else if (t.dim() == 2)
    fill_normal(t, 0.01, random);
  else  // by what an input is summed into; a grouped convolution has as many outputs as inputs
    fill_normal(t, std::sqrt(2 / double(t.size(2) * t.size(3) * (has("conv2_kxk") ? t.size(1) : t.size(0)))), random);
}

}  // namespace

int64_t squeezed_channels(int64_t channels) { return std::max<int64_t>(8, (channels / 16 + 4) / 8 * 8); }

ConvBnImpl::ConvBnImpl(const Conv2dOptions& options)
    : conv_(register_module("conv", torch::nn::Conv2d(options))),
      bn_(register_module("bn", torch::nn::BatchNorm2d(options.out_channels()))) {}

ChannelGateImpl::ChannelGateImpl(ChannelGate kind, int64_t channels) {
  if (kind == ChannelGate::squeeze_excite) {
    const int64_t inner = squeezed_channels(channels);
    fc1_ = register_module("fc1", torch::nn::Conv2d(Conv2dOptions(channels, inner, 1)));
    fc2_ = register_module("fc2", torch::nn::Conv2d(Conv2dOptions(inner, channels, 1)));
  } else {
    const auto odd = int64_t(std::abs(std::log2(double(channels)) + 1) / 2) | 1;
    const int64_t kernel = std::max<int64_t>(odd, 3);
    conv_ = register_module("conv",
                            torch::nn::Conv1d(torch::nn::Conv1dOptions(1, 1, kernel).padding(kernel / 2).bias(false)));
  }
}

Tensor ChannelGateImpl::forward(const Tensor& x) {
  const Tensor mean = x.mean({2, 3}, true);  // [B, C, 1, 1]
  if (fc1_) return x * at::sigmoid(fc2_(at::relu(fc1_(mean))));
  return x * at::sigmoid(conv_(mean.flatten(2).transpose(1, 2))).transpose(1, 2).unsqueeze(3);
}

ResidualBlockImpl::ResidualBlockImpl(int64_t channels, const HaloBlock& block, const HaloNetConfig& config)
    : activation_(config.activation) {
  const auto conv = [&](const char* name, const Conv2dOptions& options) {
    return register_module(name, ConvBn(options));
  };
  if (block.projects || channels != block.out || block.stride != 1)
    shortcut_ = conv("shortcut", convolution(channels, block.out, 1, block.stride));
  conv1_1x1_ = conv("conv1_1x1", convolution(channels, block.width, 1));
  if (block.attention) {
    HaloAttnOptions options = *block.attention;
    options.halo.stride = block.stride;
    self_attn_ = register_module("self_attn", HaloAttn(options));
    post_attn_ = register_module("post_attn", torch::nn::BatchNorm2d(block.attended()));
  } else {
    conv2_kxk_ = conv("conv2_kxk", convolution(block.width, block.width, 3, block.stride, block.groups));
    if (config.gate != ChannelGate::none)
      attn_ = register_module("attn", std::make_shared<ChannelGateImpl>(config.gate, block.width));
  }
  conv3_1x1_ = conv("conv3_1x1", convolution(block.attended(), block.out, 1));
}

Tensor ResidualBlockImpl::forward(const Tensor& x) {
  const auto act = [&](const Tensor& t) { return activate(t, activation_); };
  Tensor y = act(conv1_1x1_(x));
  y = act(self_attn_ ? post_attn_(self_attn_(y)) : conv2_kxk_(y));
  if (attn_) y = attn_->forward(y);
  return act(conv3_1x1_(y) + (shortcut_ ? shortcut_(x) : x));
}

HaloNetImpl::HaloNetImpl(const HaloNetConfig& config, std::optional<uint64_t> seed) : config_(config) {
  const auto stem = add_folder(*this, "stem");
  const auto add = [&](int64_t from, int64_t to, int64_t kernel, int64_t stride) {
    const std::string name = fmt::format("conv{}", stem_.size() + 1);
    stem_.push_back(stem->register_module(name, ConvBn(convolution(from, to, kernel, stride))));
  };
  if (config.has_tiered_stem) {
    add(3, 24, 3, 2);
    add(24, 32, 3, 1);
    add(32, 64, 3, config.stem_end == StemEnd::stride ? 2 : 1);
  } else {
    add(3, 64, 7, 2);
  }
  int64_t channels = 64;
  const auto stages = add_folder(*this, "stages");
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const auto stage = add_folder(*stages, std::to_string(i));
    for (size_t j = 0; j < config.stages[i].size(); ++j) {
      const HaloBlock& block = config.stages[i][j];
      blocks_.push_back(stage->register_module(std::to_string(j), ResidualBlock(channels, block, config)));
      channels = block.out;
    }
  }
  if (config.features > 0) {
    final_conv_ = register_module("final_conv", ConvBn(convolution(channels, config.features, 1)));
    channels = config.features;
  }
  fc_ = add_folder(*this, "head")->register_module("fc", torch::nn::Linear(channels, config.classes));
  if (seed) initialise(*this, *seed, fill);
}

Tensor HaloNetImpl::features(const Tensor& image) {
  require(image.dim() == 4 && image.size(1) == 3, "halonet: the image must be [B, 3, H, W], got [{}]",
          fmt::join(image.sizes().begin(), image.sizes().end(), ", "));
  Tensor x = image.contiguous(at::MemoryFormat::ChannelsLast);
  for (ConvBn& conv : stem_) x = activate(conv(x), config_.activation);
  if (config_.stem_end == StemEnd::pool) x = at::max_pool2d(x, {3, 3}, {2, 2}, {1, 1});
  for (ResidualBlock& block : blocks_) x = block(x);
  return final_conv_ ? activate(final_conv_(x), config_.activation) : x;
}

Tensor HaloNetImpl::forward(const Tensor& image) { return fc_(features(image).mean({2, 3})); }

}  // namespace foveate::models
