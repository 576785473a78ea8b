// Neighborhood attention transformers: NAT (Hassani et al., 2204.07143), DiNAT (2209.15001), DiNAT_s, and models of one
// level, with neighborhood or dense attention.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/base/random.h"

namespace foveate::models {

struct NatConfig {
  int64_t embed = 64;                  // channels of the first level, doubled at each one
  std::vector<int64_t> depths, heads;  // of each level: layers, and heads of `channels / heads` numbers
  double mlp_ratio = 3;
  int64_t kernel = 7;                           // odd, >= 3; 0: dense attention on maps of image / patch (one level)
  std::vector<std::vector<int64_t>> dilations;  // [level][layer]; empty: 1 everywhere
  // Linear weights begin truncated normal of this deviation; 0: of 1 / sqrt(inputs), which narrow models need.
  double deviation = 0.02;
  double drop_path = 0;               // of the last layer, growing from 0
  std::optional<double> layer_scale;  // where factors of the branches begin; unset: none
  int64_t patch = 4;                  // pixels of a token at the first level
  bool embeds_patches = false;        // one convolution of patch x patch, else of 3 x 3 with stride 2: two for 4 pixels
  bool merges_patches = false;        // between levels: 2 x 2 tokens and a linear map, else a convolution
  std::string levels = "levels";      // what the checkpoint calls the list of levels
  bool pads_small_maps = true;   // maps shorter than kernel * dilation get zeros behind, which are keys; else an error
  std::vector<int64_t> outputs;  // levels whose maps `maps` gives, each with a norm of its own
  int64_t classes = 1000;        // 0: a backbone, without the last norm and head
  int64_t image = 224;           // pixels of a side, as published

  bool is_isotropic() const { return depths.size() == 1; }
  int64_t channels(size_t level) const { return embed << level; }
  int64_t dilation(size_t level, size_t layer) const { return dilations.empty() ? 1 : dilations[level][layer]; }
  // Of the convolutions of 3 x 3 that make tokens.
  std::vector<int64_t> embedding_channels() const;
  int64_t window() const { return kernel == 0 ? image / patch : kernel; }
};

// "nat_mini" .. "nat_base", "dinat_mini" .. "dinat_large", "dinat_s_tiny" .. "dinat_s_large", the latter two also with
// "_384" (and "dinat_large_384_11x11"), "nat_isotropic_small", "dinat_isotropic_base", "vitrpb_small" ..
// Throws Error: another name (lists them).
NatConfig nat_config(std::string_view name);

// Dilations as published for a use and image size: "224", "384", "detection", "segmentation" (512 pixels),
// "segmentation_640", "mask2former" (kernel 11).  Throws Error: another name (lists them).
std::vector<std::vector<int64_t>> nat_dilations(std::string_view schedule, const std::vector<int64_t>& depths);

// Throws Error: options that do not fit.
void check_nat(const NatConfig& config);

// Multiply-adds of one image: convolutions, linear maps, keys and values of windows, biases of positions (once each, as
// published).
double count_macs(const NatConfig& config, int64_t height, int64_t width);

// Attention of a layer.  Parameters: qkv (C -> 3 C: q, k, v, heads inside), rpb [heads, 2 kernel - 1, 2 kernel - 1] by
// key - query in the dilation group, proj.
class NatAttentionImpl : public torch::nn::Module {
 public:
  NatAttentionImpl(int64_t channels, int64_t heads, int64_t kernel, int64_t dilation, bool pads);
  at::Tensor forward(const at::Tensor& x);  // [B, h, w, C]

 private:
  int64_t heads_, kernel_, dilation_;
  bool pads_;
  torch::nn::Linear qkv_, proj_;
  at::Tensor rpb_;
};
TORCH_MODULE(NatAttention);

class NatMlpImpl : public torch::nn::Module {
 public:
  NatMlpImpl(int64_t channels, int64_t hidden);
  at::Tensor forward(const at::Tensor& x);

 private:
  torch::nn::Linear fc1_, fc2_;
};
TORCH_MODULE(NatMlp);

// x += drop_path(gamma1 * attn(norm1(x)));  x += drop_path(gamma2 * mlp(norm2(x)))
class NatLayerImpl : public torch::nn::Module {
 public:
  NatLayerImpl(const NatConfig& config, size_t level, size_t layer, double drop_path);
  // `random`: of the dropped paths; null: none are dropped.
  at::Tensor forward(const at::Tensor& x, Random* random);

 private:
  at::Tensor branch(const at::Tensor& y, const at::Tensor& gamma, Random* random) const;

  double drop_path_;
  torch::nn::LayerNorm norm1_, norm2_;
  NatAttention attn_;
  NatMlp mlp_;
  at::Tensor gamma1_, gamma2_;
};
TORCH_MODULE(NatLayer);

// Between levels: h x w x C -> (h / 2) x (w / 2) x 2 C, rounded up.
class NatDownsampleImpl : public torch::nn::Module {
 public:
  NatDownsampleImpl(int64_t channels, bool merges_patches);
  at::Tensor forward(const at::Tensor& x);

 private:
  torch::nn::Conv2d conv_{nullptr};
  torch::nn::Linear linear_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(NatDownsample);

// Names of parameters are those of the published checkpoints: patch_embed.proj.0.weight,
// levels.0.blocks.1.attn.rpb, levels.0.downsample.reduction.weight, norm.weight, head.weight; norm0.weight .. of
// outputs.  Random parameters by the seed: linear weights truncated normal of `deviation`, biases of positions of 0.02,
// convolutions as torch draws them.  Without a seed all are as torch's modules begin, for those who load a checkpoint.
class NatImpl : public torch::nn::Module {
 public:
  explicit NatImpl(const NatConfig& config, std::optional<uint64_t> seed = 0);
  // [B, 3, H, W] -> [B, classes].  `random`: where training drops paths; null: none are dropped.
  at::Tensor forward(const at::Tensor& image, Random* random = nullptr);
  // The maps of config.outputs [B, C, h, w], taken before the level's downsampler.
  std::vector<at::Tensor> maps(const at::Tensor& image, Random* random = nullptr);
  // What the classifier averages: [B, C, h, w] behind the last norm.  Throws Error, as forward: a backbone.
  at::Tensor features(const at::Tensor& image, Random* random = nullptr);
  const NatConfig& config() const { return config_; }

 private:
  at::Tensor embed(const at::Tensor& image);

  NatConfig config_;
  std::vector<torch::nn::Conv2d> embeddings_;
  torch::nn::LayerNorm embed_norm_{nullptr}, norm_{nullptr};
  std::vector<std::vector<NatLayer>> layers_;
  std::vector<NatDownsample> downsamplers_;
  std::vector<torch::nn::LayerNorm> output_norms_;
  torch::nn::Linear head_{nullptr};
};
TORCH_MODULE(Nat);

// From a file of safetensors or torch.save, with the names of the published checkpoints or of Hugging Face's (whose
// query, key and value stand apart).  Biases of another kernel are interpolated (bicubic), as 7 -> 11 was.  A backbone
// takes a classifier's checkpoint without its last norm and head; norms of outputs, which classifiers lack, begin at 1.
// Throws Error: as load_state_dict.
void load_nat(NatImpl& nat, const std::string& path);

}  // namespace foveate::models
