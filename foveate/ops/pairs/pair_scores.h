// Scores of single pairs of queries and keys: graphs, retrieved tokens, what only some keys are asked.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// scores[b, h, i, c] = scale * q[b, h, i] . k[b, h', index[b, h, i, c]],  h' = h / (Hq / Hkv).
// q [B, Hq, Lq, D], k [B, Hkv, Lk, D], one dtype of fp32, bf16, fp16, fp64, any strides; index [B|1, 1|Hkv|Hq, Lq, C]
// integers, an entry < 0 or >= Lk is empty: score -inf, no gradient.  Returns [B, Hq, Lq, C] fp32 (fp64 for fp64).
// Gradients of q and k, the same bits on any number of threads.  Throws Error: shapes that do not fit.
at::Tensor pair_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& index, double scale);

}  // namespace foveate::ops
