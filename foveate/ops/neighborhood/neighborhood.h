// Attention of every place of a grid to the places nearest to it.
// Sources: Hassani et al., 2204.07143, 2209.15001, 2403.04690 (fused kernels), 2504.16922 (strides).
#pragma once

#include <optional>
#include <string>

#include "foveate/ops/attend/cpu.h"
#include "foveate/plan/neighborhood.h"

namespace foveate::ops {

struct NeighborhoodScore {
  std::optional<double> scale;  // of q . k; unset: 1 / sqrt(D)
  // Floating point [Hq, 2 kernel - 1 of each axis]: relative position bias by key - query + kernel - 1 in coordinates
  // of the dilation group, added to the logit; has a gradient.
  std::optional<at::Tensor> bias;
  // [B, Hkv, M, D], [B, Hkv, M, Dv], dtype of q: M tokens more that every query sees (registers, text); have gradients.
  std::optional<at::Tensor> extra_keys, extra_values;
};

// out = softmax over the keys of the window and the extra ones.  q [B, Hq, N, D], k [B, Hkv, N, D], v [B, Hkv, N, Dv],
// N the places of the grid, the last axis inner; one dtype of fp32, bf16, fp16, fp64, any strides: a grid with heads
// first [B, H, *grid, D] or last [B, *grid, H, D] is a view of it.  Hq is a multiple of Hkv.  Results lie in memory as
// q does, heads before places or behind.  lse: natural log, fp32 (fp64 for fp64), extra keys included.  Softmax and
// sums run in fp32 (fp64).  Every query sees itself: there are no empty rows.  Memory O(N).  On the kernels the same
// bits for any number of threads.  Gradients: q, k, v, bias, extra keys and values, from out and from lse.
// Throws Error: a neighborhood as check_neighborhood says; shapes or dtypes that do not fit; a bias with a causal axis;
// only one of extra_keys and extra_values.
Attended attend_neighborhood(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const Neighborhood& neighborhood, const NeighborhoodScore& score = {});

// One line: the level, the tile of queries, the keys it visits for each one that is seen, and whether its queries see
// the same ones (is_block_sparse); or "windows as ranges of keys, " and what attend's kernels do with them; or
// "definition: " and the reason; then the same of extra keys; "nothing to do" without queries.  Runs nothing.  That a
// NaN or Inf has a call run again in the definition it cannot know: kernel_uses has those.  Throws Error as
// attend_neighborhood.
std::string explain_neighborhood(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Neighborhood& neighborhood, const NeighborhoodScore& score = {},
                                 Pass pass = Pass::forward);

}  // namespace foveate::ops
