// One softmax over the keys of several plans at once.
#pragma once

#include <span>
#include <vector>

#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

// Keys that a plan shows, and how much each of them counts: a logit s counts exp(s + row_weight + key_weight).
struct Part {
  Plan plan;
  std::optional<at::Tensor> row_weight;  // lse's dtype [B|1, Hq|1, Lq|1], finite: the logarithm of a sample's weight
  std::optional<at::Tensor> key_weight;  // lse's dtype [B|1, Hq|1, 1, Lk], finite
};

// The same as merge_by_lse over attend of each part, with one backward for all: a part's gradients need no more than
// the whole's out and lse, so nothing of a part is kept.  q, k, v, score and gradients as attend has them; weights have
// none.  A key in two parts counts twice.  A row that no part shows a key: out 0, lse -inf.  A sink logit joins once.
// Throws Error: no part, landmarks (their blocks belong to one plan), else as attend.
// Source: HyperAttention, 2310.05869, algorithm 1 with importance weights; the gradient is FlashAttention-2's.
Attended attend_parts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::span<const Part> parts,
                      const Score& score = {});

}  // namespace foveate::ops
