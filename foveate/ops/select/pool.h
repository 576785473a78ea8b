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

// x [B, H, L, D] pooled over segments [cuts[c], cuts[c+1]) -> [B, H, segments, D] fp32 (fp64 for fp64). Differentiable.
// Throws Error: cuts that do not ascend strictly from 0 to L.
at::Tensor pool_segments(const at::Tensor& x, std::span<const int64_t> cuts, Pooling pooling);

}  // namespace foveate::ops
