// Neighborhood attention in two steps, for those who change the weights in between: scores and weighted values as
// tensors [.., window].  Memory O(N window); attend_neighborhood needs none of it.
// Source: Hassani et al., 2403.04690, section 3 (PN, NN and IN).
#pragma once

#include <ATen/core/Tensor.h>

#include "foveate/plan/neighborhood.h"

namespace foveate::ops {

// The three are gradients of each other, so each may be differentiated as often as one likes.  Windows are those of
// plan/neighborhood.h, key by key with the last axis inner.  One dtype of fp32, bf16, fp16, fp64; sums in fp32 (fp64).
// Throws Error: shapes or dtypes that do not fit, a neighborhood as check_neighborhood says.

// q . k: q [B, Hq, N, D], k [B, Hkv, N, D] -> [B, Hq, N, window]; not scaled; -inf where a causal axis hides a key,
// which has no gradient.
at::Tensor neighborhood_qk(const at::Tensor& q, const at::Tensor& k, const Neighborhood& neighborhood);

// Sums of values: weights [B, Hq, N, window], v [B, Hkv, N, D] -> [B, Hq, N, D]; hidden keys count nothing.
at::Tensor neighborhood_av(const at::Tensor& weights, const at::Tensor& v, const Neighborhood& neighborhood);

// What keys get from the queries that see them: weights [B, Hq, N, window], q [B, Hq, N, D] -> [B, Hkv, N, D].
at::Tensor neighborhood_in(const at::Tensor& weights, const at::Tensor& q, int64_t kv_heads,
                           const Neighborhood& neighborhood);

}  // namespace foveate::ops
