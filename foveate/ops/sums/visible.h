// Sums over what is visible, whatever its score.
#pragma once

#include <ATen/core/Tensor.h>

#include "foveate/plan/plan.h"

namespace foveate::ops {

struct VisibleSum {
  at::Tensor sum;    // [B, Hq, Lq, Dv] fp32 (fp64 for fp64)
  at::Tensor count;  // [B, Hq, Lq] of the same dtype
};

// For every query the sum of the values that the plan shows it, and their number; a key listed twice counts twice.
// v [B, Hkv, Lk, Dv]; query head h reads value head h / (heads / Hkv).  A row that sees nothing: 0 and 0.  Invisible
// NaN and Inf change nothing.  Differentiable in v.  Causal rules without anything else cost O(Lk): sums in fp64; every
// other plan costs an attention of head dim 1 (relative error of its fp32 softmax).
// Throws Error: a plan that does not fit.   Source: Affine-Scaled Attention, the term beta * sum of visible values.
VisibleSum visible_sum(const at::Tensor& v, const Plan& plan, int64_t heads, int64_t queries);

}  // namespace foveate::ops
