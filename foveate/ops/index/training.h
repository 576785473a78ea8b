// How an indexer learns: to put its softmax where the main attention puts its weight (DeepSeek-V3.2-Exp).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace foveate::ops {

// One sequence: q [M, HI, D], k [N, D], weights [M, HI], of fp32 or fp64; start, end [M] int64.
struct IndexerRows {
  at::Tensor q, k, weights, start, end;
};

// index_logits in plain ATen, differentiable in q, k and weights.  [M, N], -inf outside the ranges.  Holds M x HI x N
// numbers: long sequences are for index_logits and indexer_loss.
at::Tensor differentiable_index_logits(const IndexerRows& rows);

// The main attention that is to be met: q [Hq, M, D], k [Hkv, N, D].
struct IndexerTarget {
  at::Tensor q, k;
  double scale = 1;
  std::optional<double> soft_cap;
};

// Mean over rows of KL(p || softmax(I)) over the keys of a row's range, or of its list `index` [M, K] integers (counted
// from key 0, entries < 0 empty): p is the target's softmax over the same keys, summed over heads and normed.  Log
// probabilities are cut at -100.  Rows without a key count nothing.  A scalar with gradients of rows.q, rows.k and
// rows.weights, made beside it in tiles of rows: no M x N memory.  The target has none.  Throws Error: shapes that do
// not fit.
at::Tensor indexer_loss(const IndexerRows& rows, const IndexerTarget& target,
                        const std::optional<at::Tensor>& index = {});

}  // namespace foveate::ops
