// CATANet: super-resolution by attention among tokens that look alike, wherever they stand, and among neighbours
// (2503.06896).
#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <vector>

#include "foveate/attention/local/sorted_groups.h"

namespace foveate::models {

struct CataNetConfig {
  int64_t upscale = 4;  // 1 .. 4
  int64_t channels = 3, dim = 40, qk_dim = 36, mlp_dim = 96, heads = 4;
  std::vector<int64_t> patches = {16, 20, 24, 28, 16, 20, 24, 28};  // of each block, pixels of a side, >= 3
  std::vector<int64_t> centres = {16, 32, 64, 128, 16, 32, 64, 128};
  std::vector<int64_t> groups = {256, 128, 64, 32, 256, 128, 64, 32};  // tokens of a group
  int64_t iterations = 5;                                              // of the centres, in training
  double decay = 0.999;                                                // of the centres kept
  attention::GroupWindow window = attention::GroupWindow::next;
  attention::CentreMerge merge = attention::CentreMerge::sum;
  bool aggregates = true;    // whether blocks begin with a TokenAggregation; else what says how is not looked at
  bool uses_centres = true;  // whether tokens attend to centres
  // Whether centres are refined in inference too, for each image alone, from those kept.
  bool refines_always = false;
  // Where patches overlap, their sum is divided by how many there are; the released code halves each overlap once, and
  // so divides by 4 where three patches meet.
  bool halves_overlaps = false;

  int64_t smallest_side() const;  // of an image
};

// y + GELU(depthwise 5 x 5 of y) between two linear maps, y = GELU(first).   [B, H, W, dim] -> the same.
class ConvFfnImpl : public torch::nn::Module {
 public:
  ConvFfnImpl(int64_t dim, int64_t hidden);
  at::Tensor forward(const at::Tensor& x);

 private:
  torch::nn::Linear fc1_{nullptr}, fc2_{nullptr};
  torch::nn::Conv2d depthwise_{nullptr};
};

// to_q, to_k, to_v, proj: linear maps without bias.
struct Projections {
  torch::nn::Linear q{nullptr}, k{nullptr}, v{nullptr}, out{nullptr};
};

// Tokens attend within groups of those alike and to the centres of all; then a ConvFfn.  Buffers: means [M, dim], the
// centres, and initted, whether they are any yet.  In training the centres are refined over the batch and kept as a
// moving average; else they stay as they are, and nothing depends on other images of the batch.
class TokenAggregationImpl : public torch::nn::Module {
 public:
  TokenAggregationImpl(const CataNetConfig& config, size_t block);
  at::Tensor forward(const at::Tensor& x);  // [B, H, W, dim] -> the same
  at::Tensor means, initted;

 private:
  void keep(const at::Tensor& centres);

  int64_t heads_, iterations_;
  double decay_;
  bool uses_centres_, refines_always_;
  attention::SortedGroups groups_;
  torch::nn::LayerNorm norm_{nullptr}, mlp_norm_{nullptr};
  std::shared_ptr<ConvFfnImpl> mlp_;
  Projections tokens_, centres_;
  torch::nn::Conv2d conv1x1_{nullptr};
};

// Attention in overlapping patches, whose results are averaged; then a ConvFfn.
class PatchAttentionImpl : public torch::nn::Module {
 public:
  PatchAttentionImpl(const CataNetConfig& config, size_t block);
  at::Tensor forward(const at::Tensor& x);  // [B, H, W, dim] -> the same

 private:
  int64_t heads_, patch_;
  bool halves_overlaps_;
  torch::nn::LayerNorm norm_{nullptr}, mlp_norm_{nullptr};
  std::shared_ptr<ConvFfnImpl> mlp_;
  Projections maps_;
};

// Names of parameters are the released ones: first_conv, blocks.3.0.irca_attn.to_k.weight, blocks.3.1.layer.0.fn.proj,
// mid_convs.3, upconv1, last_conv.  Random parameters by the seed.
class CataNetImpl : public torch::nn::Module {
 public:
  explicit CataNetImpl(const CataNetConfig& config, uint64_t seed = 0);
  // [B, channels, H, W] in [0, 1] -> [B, channels, upscale H, upscale W].  Throws Error: images smaller than the
  // largest patch.
  at::Tensor forward(const at::Tensor& image);
  const CataNetConfig& config() const { return config_; }

 private:
  at::Tensor deep(const at::Tensor& first);

  CataNetConfig config_;
  torch::nn::Conv2d first_conv_{nullptr}, last_conv_{nullptr};
  std::vector<torch::nn::Conv2d> mid_convs_, upconvs_;
  std::vector<std::shared_ptr<TokenAggregationImpl>> aggregations_;
  std::vector<std::shared_ptr<PatchAttentionImpl>> patches_;
};
TORCH_MODULE(CataNet);

// Multiply-adds of one image of height x width pixels before upscaling.
struct CataNetCost {
  double all = 0, groups = 0, centres = 0, patches = 0;  // the three of attention, scores of centres included
};
CataNetCost count_macs(const CataNetConfig& config, int64_t height, int64_t width);

// Where patches of `patch` pixels begin along `pixels` of them: they overlap by two, and the last ends at the border.
std::vector<int64_t> patch_starts(int64_t pixels, int64_t patch);

}  // namespace foveate::models
