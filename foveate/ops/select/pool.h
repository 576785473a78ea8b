// Means and maxima over consecutive segments: how blocks of queries and chunks of keys are summed up for selection.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace foveate::ops {

enum class Pooling {
  mean,
  mean_times_root,
  max
};  // mean_times_root: mean * sqrt(length), DHSA (2510.24606, section 3)

// Cuts [0, size, 2 size, ..., length]; the last segment may be shorter.  length 0 gives [0].
std::vector<int64_t> even_cuts(int64_t length, int64_t size);

// x [B, H, L, D], or 8-bit rows of it (quantise_rows), pooled over segments [cuts[c], cuts[c+1]) -> [B, H, segments, D]
// fp32 (fp64 for fp64). Differentiable. Throws Error: cuts that do not ascend strictly from 0 to L.
at::Tensor pool_segments(const at::Tensor& x, std::span<const int64_t> cuts, Pooling pooling);

// Weighted sums over segments: sum of weights[b, h, j] * x[b, h, j] over each.  weights [B|1, H|1, L] floating point,
// as they are (a softmax over each segment makes means of them).  [B, H, segments, D] fp32 (fp64 for fp64);
// differentiable in x and weights.  A weight of 0 takes nothing, but from NaN and Inf.  Throws Error: cuts as above,
// weights that do not fit.
at::Tensor weigh_segments(const at::Tensor& x, const at::Tensor& weights, std::span<const int64_t> cuts);

// Scores of blocks of queries against pooled keys: pool(q) . chunks, without a scale.
// q [B, Hq, L, D]; chunks [B, Hc, C, D] floating point, Hq a multiple of Hc.  Query heads that share a head of chunks
// are averaged before they are pooled (by_group), or scored one by one.  Returns [B, Hc or Hq, blocks, C] fp32 (fp64
// for fp64). Differentiable.  Throws Error: heads or dims that do not fit, cuts as above. Sources: DHSA, 2510.24606,
// section 3 (groups); MoBA, 2502.13189, equation 6 (heads one by one).
at::Tensor score_blocks(const at::Tensor& q, const at::Tensor& chunks, std::span<const int64_t> query_cuts,
                        Pooling pooling, bool by_group);

}  // namespace foveate::ops
