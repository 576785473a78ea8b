#include "foveate/models/vision/halo_attn.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

using at::Tensor;

// A convolution of 1 x 1 on pixels [.., channels].
Tensor on_pixels(const torch::nn::Conv2d& conv, const Tensor& pixels) {
  return at::linear(pixels, conv->weight.flatten(1), conv->bias);
}

const HaloAttnOptions& checked(const HaloAttnOptions& o) {
  require(o.heads >= 1, "halo_attn: heads must be >= 1, got {}", o.heads);
  require(o.dim_in >= 1 && o.channels_out() >= 1 && o.channels_out() % o.heads == 0,
          "halo_attn: dim_out must be a multiple of heads ({}), got {}", o.heads, o.channels_out());
  require(o.head_dim() >= 1, "halo_attn: heads must have channels of queries, got dim_head_qk {}", o.head_dim());
  require(o.halo.block >= 1 && o.halo.halo >= 0, "halo_attn: block must be >= 1 and halo >= 0, got {} and {}",
          o.halo.block, o.halo.halo);
  require(o.halo.stride == 1 || o.halo.stride == 2, "halo_attn: stride must be 1 or 2, got {}", o.halo.stride);
  require(o.avg_down || o.halo.block % o.halo.stride == 0,
          "halo_attn: block must be a multiple of stride unless avg_down, got {} and {}", o.halo.block, o.halo.stride);
  return o;
}

}  // namespace

int64_t HaloAttnOptions::head_dim() const {
  if (dim_head_qk) return *dim_head_qk;
  const double channels = double(channels_out()) * qk_ratio;
  const int64_t rounded = std::max<int64_t>(8, int64_t(channels + 4) / 8 * 8);
  return (double(rounded) < 0.9 * channels ? rounded + 8 : rounded) / heads;
}

PosEmbedRelImpl::PosEmbedRelImpl(int64_t window, int64_t dim)
    : height_rel(register_parameter("height_rel", at::zeros({2 * window - 1, dim}))),
      width_rel(register_parameter("width_rel", at::zeros({2 * window - 1, dim}))) {}

HaloAttnImpl::HaloAttnImpl(const HaloAttnOptions& options) : options_(checked(options)) {
  const int64_t keys = options_.heads * options_.head_dim(), out = options_.channels_out();
  const auto conv = [&](int64_t to, int64_t from, bool bias) {
    return torch::nn::Conv2d(torch::nn::Conv2dOptions(from, to, 1).bias(bias));
  };
  q_ = register_module("q", conv(keys, options_.dim_in, options_.qkv_bias));
  kv_ = register_module("kv", conv(keys + out, options_.dim_in, options_.qkv_bias));
  pos_embed_ = register_module("pos_embed", PosEmbedRel(options_.halo.window(), options_.head_dim()));
  if (options_.out_proj) proj_ = register_module("proj", conv(out, out, true));
}

Tensor HaloAttnImpl::forward(const Tensor& x) {
  const HaloAttnOptions& o = options_;
  require(x.dim() == 4 && x.size(1) == o.dim_in, "halo_attn: x must be [B, {}, H, W], got [{}]", o.dim_in,
          fmt::join(x.sizes().begin(), x.sizes().end(), ", "));
  attention::Halo halo = o.halo;
  if (o.avg_down) halo.stride = 1;
  const Tensor pixels = x.permute({0, 2, 3, 1}).contiguous();  // [B, H, W, channels]
  const auto heads_first = [&](const Tensor& t) { return t.unflatten(3, {o.heads, -1}).permute({0, 3, 1, 2, 4}); };
  const Tensor asking = pixels.slice(1, 0, {}, halo.stride).slice(2, 0, {}, halo.stride);
  const Tensor q = heads_first(on_pixels(q_, asking)), kv = heads_first(on_pixels(kv_, pixels));
  const int64_t key_dim = o.head_dim();
  const auto attended =
      attention::halo_attend(q, kv.slice(4, 0, key_dim), kv.slice(4, key_dim),
                             attention::RelativeEmbeddings{pos_embed_->height_rel, pos_embed_->width_rel}, halo);
  Tensor out = attended.out.permute({0, 2, 3, 1, 4}).flatten(3);  // [B, H, W, channels]
  if (proj_) out = on_pixels(proj_, out);
  out = out.permute({0, 3, 1, 2});
  return o.avg_down && o.halo.stride == 2 ? at::avg_pool2d(out, {2, 2}) : out;
}

HaloCost halo_cost(const HaloAttnOptions& o, int64_t height, int64_t width) {
  const int64_t stride = o.avg_down ? 1 : o.halo.stride, keys = o.heads * o.head_dim(), out = o.channels_out();
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto pixels = double(height * width), asking = double(up(height, stride) * up(width, stride));
  const auto window = double(o.halo.window());
  HaloCost cost;
  cost.projections = double(o.dim_in) * (asking * double(keys) + pixels * double(keys + out));
  if (o.out_proj) cost.projections += asking * double(out * out);
  cost.attention = asking * window * window * double(keys + out);
  return cost;
}

}  // namespace foveate::models
