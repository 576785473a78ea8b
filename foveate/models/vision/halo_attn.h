// The halo attention layer, with the parameters of timm's.
#pragma once

#include <torch/nn/modules/conv.h>

#include <optional>

#include "foveate/attention/local/halo.h"

namespace foveate::models {

struct HaloAttnOptions {
  int64_t dim_in = 0;
  std::optional<int64_t> dim_out;  // unset: dim_in; a multiple of heads
  int64_t heads = 8;
  std::optional<int64_t> dim_head_qk;  // of queries and keys; unset: dim_out * qk_ratio, to a multiple of 8, / heads
  double qk_ratio = 1;
  attention::Halo halo = {};  // its stride is the layer's
  bool qkv_bias = false;
  bool avg_down = false;  // with stride 2: attention on all pixels, then the mean of 2 x 2 instead of strided queries
  bool out_proj = false;  // a linear map behind

  int64_t channels_out() const { return dim_out.value_or(dim_in); }
  int64_t head_dim() const;
};

class PosEmbedRelImpl : public torch::nn::Module {
 public:
  PosEmbedRelImpl(int64_t window, int64_t dim);
  at::Tensor height_rel, width_rel;  // [2 window - 1, dim]
};
TORCH_MODULE(PosEmbedRel);

// x [B, dim_in, H, W] -> [B, dim_out, H / stride, W / stride] (rounded up), both channels last in memory.
// Parameters: q.weight [heads * dim_head_qk, dim_in, 1, 1]; kv.weight, whose outputs are for each head first the
// channels of its keys, then of its values; pos_embed.height_rel, pos_embed.width_rel [2 window - 1, dim_head_qk].
// Queries, keys and values are made once for each pixel; zeros outside of the map stand behind that product.
// Throws Error: options that do not fit, and as attention::halo_attend.
class HaloAttnImpl : public torch::nn::Module {
 public:
  explicit HaloAttnImpl(const HaloAttnOptions& options);
  at::Tensor forward(const at::Tensor& x);

 private:
  HaloAttnOptions options_;
  torch::nn::Conv2d q_{nullptr}, kv_{nullptr}, proj_{nullptr};
  PosEmbedRel pos_embed_{nullptr};
};
TORCH_MODULE(HaloAttn);

// Multiply-adds of the layer on a map of height x width: products with weights, and with keys and values.
struct HaloCost {
  double projections = 0, attention = 0;
};
HaloCost halo_cost(const HaloAttnOptions& options, int64_t height, int64_t width);

}  // namespace foveate::models
