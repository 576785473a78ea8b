// HaloNets: residual networks whose blocks attend instead of convolving, in every stage (H0 .. H7, Vaswani et al.,
// 2103.12731, table 2) or in some blocks of the last ones (timm's hybrids).
#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <optional>
#include <string_view>
#include <vector>

#include "foveate/models/vision/halo_attn.h"

namespace foveate::models {

enum class Activation { relu, silu };
// Of channels, behind the convolution of a block: Hu et al., 1709.01507, and Wang et al., 1910.03151.
enum class ChannelGate { none, squeeze_excite, efficient };

// 1 x 1 convolution to `width`, halo attention or a convolution of 3 x 3, 1 x 1 convolution to `out`.
struct HaloBlock {
  int64_t width = 0, out = 0, stride = 1;
  int64_t groups = 1;                        // of the convolution
  std::optional<HaloAttnOptions> attention;  // unset: the convolution; dim_in is `width`
  bool projects = false;                     // the shortcut has a convolution even where sizes agree

  int64_t attended() const { return attention ? attention->channels_out() : width; }
};

// What makes the map half as large after the stem's first convolution did.
enum class StemEnd {
  pool,    // maxima of 3 x 3 at every second pixel
  stride,  // of the last convolution
  none,    // nothing: it stays half as large as the image
};

struct HaloNetConfig {
  bool has_tiered_stem = false;  // three convolutions of 3 x 3 (24, 32, 64 channels), else one of 7 x 7
  StemEnd stem_end = StemEnd::pool;
  Activation activation = Activation::silu;
  ChannelGate gate = ChannelGate::none;
  std::vector<std::vector<HaloBlock>> stages;
  int64_t features = 0;  // of a last 1 x 1 convolution; 0: none
  int64_t classes = 1000;
  int64_t image = 256;  // pixels of a side, as published
};

// A convolution without bias and a batch norm behind it: conv.weight, bn.weight, ..
class ConvBnImpl : public torch::nn::Module {
 public:
  explicit ConvBnImpl(const torch::nn::Conv2dOptions& options);
  at::Tensor forward(const at::Tensor& x) { return bn_(conv_(x)); }

 private:
  torch::nn::Conv2d conv_;
  torch::nn::BatchNorm2d bn_;
};
TORCH_MODULE(ConvBn);

class ChannelGateImpl : public torch::nn::Module {
 public:
  ChannelGateImpl(ChannelGate kind, int64_t channels);
  at::Tensor forward(const at::Tensor& x);

 private:
  torch::nn::Conv2d fc1_{nullptr}, fc2_{nullptr};
  torch::nn::Conv1d conv_{nullptr};
};

class ResidualBlockImpl : public torch::nn::Module {
 public:
  ResidualBlockImpl(int64_t channels, const HaloBlock& block, const HaloNetConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  Activation activation_;
  ConvBn shortcut_{nullptr}, conv1_1x1_{nullptr}, conv2_kxk_{nullptr}, conv3_1x1_{nullptr};
  std::shared_ptr<ChannelGateImpl> attn_;
  HaloAttn self_attn_{nullptr};
  torch::nn::BatchNorm2d post_attn_{nullptr};
};
TORCH_MODULE(ResidualBlock);

// "h0" .. "h7", "halonet26t", "halonet50ts", "sehalonet33ts", "eca_halonext26ts".  Maps may end inside of blocks.
// The hybrids count rows of strided queries as timm does, so that its weights mean the same.
// Throws Error: another name (lists them).
HaloNetConfig halonet_config(std::string_view name);

// Multiply-adds of one image of height x width: convolutions, linear maps, keys and values.
double count_macs(const HaloNetConfig& config, int64_t height, int64_t width);

int64_t squeezed_channels(int64_t channels);  // inside of squeeze-and-excitation

// Names of parameters are timm's (byobnet): stem.conv1.conv.weight, stages.2.1.self_attn.q.weight, head.fc.weight.
// Random parameters by the seed, distributed as timm draws them; without a seed as torch's modules begin, for those who
// load a checkpoint.  Maps are channels last in memory.
class HaloNetImpl : public torch::nn::Module {
 public:
  explicit HaloNetImpl(const HaloNetConfig& config, std::optional<uint64_t> seed = 0);
  at::Tensor forward(const at::Tensor& image);   // [B, 3, H, W] -> [B, classes]
  at::Tensor features(const at::Tensor& image);  // [B, channels, H / 32, W / 32]

 private:
  HaloNetConfig config_;
  std::vector<ConvBn> stem_;
  std::vector<ResidualBlock> blocks_;
  ConvBn final_conv_{nullptr};
  torch::nn::Linear fc_{nullptr};
};
TORCH_MODULE(HaloNet);

}  // namespace foveate::models
