// Joins partial softmaxes over disjoint keys into the softmax over all of them.
#pragma once

#include <span>

#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

// parts: out [.., Dv] and lse [..] of the same queries over disjoint sets of keys, any axes; at least one.
// out = sum_i exp(lse_i - lse) out_i, lse = log sum_i exp(lse_i), in fp32 (fp64 for fp64 parts), differentiable through
// both; out has the parts' dtype.  The empty part (lse -inf) is legal and its out is not read; where all are empty the
// result is (out 0, lse -inf).  A sink logit must be in one part only.  Throws Error: shapes that do not fit.
Attended merge_by_lse(std::span<const Attended> parts);

// Joins partial softmaxes by logits of their own: out = sum_i softmax_i(logits)_i * out_i, each part normalised in
// itself.  logits [B, Hq, Lq], one for each part.  An empty part (lse -inf) takes no weight; where all are empty the
// result is 0.  fp32 (fp64 for fp64) inside, dtype of the parts; differentiable in outs and logits.
// Throws Error: shapes that do not fit.   Sources: Superlinear, gate merge; Landmark, 2305.16300, section 3.1.
at::Tensor mix(std::span<const Attended> parts, std::span<const at::Tensor> logits);

}  // namespace foveate::ops
