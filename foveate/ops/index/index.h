// The lightning indexer (DeepSeek-V3.2-Exp) and its hierarchical form (HISA, 2603.28458): which keys a query attends
// to.
#pragma once

#include <ATen/core/Tensor.h>

#include "foveate/ops/index/keys.h"

namespace foveate::ops {

// M queries of HI heads.  Query t may take keys [start[t], end[t]); several sequences may stand one behind the other.
struct IndexQueries {
  at::Tensor q;           // [M, HI, D] floating point; read as bf16 unless the keys are fp32, or codes of e4m3
  at::Tensor weights;     // [M, HI] floating point: all that goes by query and head, scales of codes included
  at::Tensor start, end;  // [M] int64, 0 <= start <= end <= N
};

// I[t][s] = scale_s * sum over heads j of weights[t][j] * max(q[t][j] . k[s], 0), summed in fp32; weights may be
// negative.  A key's score has the same bits however it is asked for.
// [M, N] fp32, -inf outside [start, end).  No gradient (see training.h).  Throws Error: shapes that do not fit, HI < 1,
// ranges outside the keys.
at::Tensor index_logits(const IndexQueries& queries, const IndexKeys& keys);

// The `topk` best keys of each query by these scores: higher first, then lower index; NaN last.  [M, topk] int32,
// ascending, counted from start[t]; -1 behind the end where fewer are visible.  Scores are made and forgotten row by
// row.  Throws Error: as above, topk < 1.
at::Tensor index_top(const IndexQueries& queries, const IndexKeys& keys, int64_t topk);
// The same for given scores [M, N] floating point.
at::Tensor index_top(const at::Tensor& logits, const at::Tensor& start, const at::Tensor& end, int64_t topk);

struct HisaOptions {
  int64_t block_topk = 64;  // blocks kept; 2 at least where ends are forced
  int64_t topk = 2048;      // keys kept of their tokens; fewer come out where the blocks hold fewer
  // The first and the last block of a query's range are always kept.  Else its last block competes by the pooled key of
  // the tokens that the query sees: later ones must not count.
  bool force_ends = true;
};

// The same from the tokens of the `block_topk` best blocks, scored first by their pooled keys: blocks stand on the grid
// of the keys, whatever start is.  Equals index_top where block_topk covers all blocks of the range.
at::Tensor hisa_index(const IndexQueries& queries, const BlockedKeys& keys, const HisaOptions& options);

}  // namespace foveate::ops
