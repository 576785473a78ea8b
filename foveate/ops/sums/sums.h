// Sums of attention probabilities, streamed: what selects keys by the attention they get, and what describes attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "foveate/kernels/tile.h"
#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

using kernels::SumBy;

struct SumOptions {
  // row:       [B, Hq, Lq]      over the keys a row sees: the mass a selection keeps, where lse is of all keys
  // key:       [B, Hq, Lk]      over the rows that see a key (vertical lines)
  // diagonal:  [B, Hq, Lk]      over pairs whose key lies 0, 1, .. before the query's position (slashes)
  // block:     [B, Hq, ceil(Lq / query_block), ceil(Lk / key_block)]
  SumBy by = SumBy::key;
  int64_t query_block = 64, key_block = 64;
  bool squared = false;             // of the squares
  std::optional<int64_t> distance;  // > 0: each probability times min(|position - key|, distance)
};

// Sums of P = exp(s - lse) over the pairs that the plan shows; a pair listed twice counts twice.  q [B, Hq, Lq, D],
// k [B, Hkv, Lk, D] and score as attend takes them (dropout and sink play no part); lse [B, Hq, Lq] natural log, of
// this plan or of another: with a window as plan and the lse of all keys, sums of a band.  A row with lse -inf adds
// nothing. Returns fp32 (fp64 for fp64).  No gradient: for that of single entries, exp(pair_scores - lse).  No Lq x Lk
// memory but the blocks asked for.  The same bits on any number of threads. Throws Error: shapes that do not fit,
// blocks < 1, distance < 1. Sources: MInference, 2407.02490 (vertical and slash); Native Sparse Attention, 2502.11089,
// equation 9 (blocks).
at::Tensor attention_sums(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const Plan& plan,
                          const Score& score = {}, const SumOptions& options = {});

}  // namespace foveate::ops
