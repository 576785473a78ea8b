// Halo attention: blocks of a map attend to themselves and a border around them, so that all queries of a block share
// their keys.   Source: HaloNet, Vaswani et al., 2103.12731.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "foveate/ops/attend/attend.h"

namespace foveate::attention {

// What stands for keys outside of the map.
enum class HaloPadding {
  zero,   // keys and values of zeros, which take part with the logit of their place (timm and its weights)
  mask,   // nothing
  shift,  // the window of keys moves inside: neighborhood attention of window block + 2 halo and stride block
};

// The window is block + 2 halo pixels wide.
struct Halo {
  int64_t block = 8, halo = 3;  // pixels, >= 1 and >= 0
  int64_t stride = 1;           // 1, or 2: queries stand on every second pixel; block must be a multiple
  HaloPadding padding = HaloPadding::zero;
  std::optional<double> scale;  // of q . k; unset: 1 / sqrt(d)
  // Whether position logits are scaled too (BoTNet, SASA); those of published HaloNets are not.
  bool scale_positions = false;
  // Whether row i of a strided query counts strided pixels: what timm computes, and its strided weights need.
  bool strided_index = false;
  // Whether a map may end inside of blocks: as if zeros were appended (HaloPadding says what they are) and cut off.
  bool auto_pad = false;

  int64_t window() const { return block + 2 * halo; }
};

// Relative position embeddings [2 window - 1, d], shared by heads.  A key in row j of its window and a query in row i
// of its block take height[j - i + window - 1]; shifted windows have no such order: there a key r rows below the query
// takes height[r + window - 1].  Likewise columns.
struct RelativeEmbeddings {
  at::Tensor height, width;
};

// out[pixel] = softmax over its window of (scale q . k + q . height[row] + q . width[column]) v.
// q [B, heads, H / stride, W / stride, d], k [B, heads, H, W, d], v [B, heads, H, W, dv]: one dtype, any strides (heads
// last need no copy).  H and W multiples of block unless auto_pad, then q has ceil(H / stride) rows.
// Returns out [B, heads, H / stride, W / stride, dv] and lse [B, heads, H / stride, W / stride].
// Gradients: q, k, v and embeddings, through ops::attend; no copy of a window is made, forward or backward.  Position
// logits are summed in fp32 and rounded to the dtype of q.
// Throws Error: sizes, options or shapes that do not fit.
ops::Attended halo_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::optional<RelativeEmbeddings>& embeddings = {}, const Halo& options = {});

}  // namespace foveate::attention
