// Joins partial softmaxes over disjoint keys into the softmax over all of them.
#pragma once

#include <span>

#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

// parts: out [B, Hq, Lq, Dv] and lse [B, Hq, Lq] of the same queries over disjoint sets of keys; at least one.
// out = sum_i exp(lse_i - lse) out_i, lse = log sum_i exp(lse_i), in fp32 (fp64 for fp64 parts), differentiable through
// both; out has the parts' dtype.  The empty part (out 0, lse -inf) is legal; where all are empty so is the result.
// A sink logit must be in one part only.
Attended merge_by_lse(std::span<const Attended> parts);

}  // namespace foveate::ops
