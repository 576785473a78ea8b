// Scores of single pairs of queries and keys: graphs, retrieved tokens, what only some keys are asked.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// scores[b, h, i, c] = scale * q[b, h, i] . k[b, h', index[b, h, i, c]],  h' = h / (Hq / Hkv).
// q [B, Hq, Lq, D], k [B, Hkv, Lk, D], one dtype of fp32, bf16, fp16, fp64, any strides; index [B|1, 1|Hkv|Hq, Lq, C]
// integers, an entry < 0 or >= Lk is empty: score -inf, no gradient.  Returns [B, Hq, Lq, C] fp32 (fp64 for fp64).
// Gradients of q and k, the same bits on any number of threads.  Throws Error: shapes that do not fit.
at::Tensor pair_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& index, double scale);

// The two gradients of pair_scores, for those who put operators of their own together; without gradients themselves.
// weights [B, Hq, Lq, C], those of empty entries may be anything.
//   weighted_keys    sum_c weights[b, h, i, c] * k[b, h', index[b, h, i, c]]         -> [B, Hq, Lq, D]
//   weighted_queries  for key j: sum over all pairs with it of weights * q[b, h, i]    -> [B, Hkv, keys, D]
// The results have the dtype of k and q; sums run in fp32 (fp64 for fp64).
at::Tensor weighted_keys(const at::Tensor& weights, const at::Tensor& k, const at::Tensor& index);
at::Tensor weighted_queries(const at::Tensor& weights, const at::Tensor& q, const at::Tensor& index, int64_t kv_heads,
                            int64_t keys);

}  // namespace foveate::ops
