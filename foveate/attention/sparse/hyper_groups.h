// The rectangles of HyperAttention: how a call is cut into them, and the plans of those that run together.
#pragma once

#include <vector>

#include "foveate/attention/sparse/hyper.h"
#include "foveate/ops/merge/attend_parts.h"

namespace foveate::attention {

// Queries [first_query, first_query + queries) that all see keys [first_key, first_key + keys).
struct Rectangle {
  int64_t first_query, queries, first_key, keys;
};

// A call of `queries` rows, of which the first sits at key `start`, over `keys` keys.
struct HyperCut {
  std::vector<std::vector<Rectangle>> groups;  // those of one group run together; none: the whole call is exact
  std::vector<ops::Segment> leaves;            // rows that attend exactly, causally, to the keys of their own leaf
  ops::Segment late = {0, 0};                  // rows behind the last key that see all from `start` on exactly
};
HyperCut cut_call(const Hyper& options, int64_t start, int64_t queries, int64_t keys, bool is_causal);

// One group with its queries and keys in sorted order.  R rectangles of at most `blocks` blocks each.
struct HyperGroup {
  std::vector<Rectangle> rectangles;
  int64_t query_block, key_block, blocks;
  at::Tensor query_order;  // [B, Hq, R, blocks * query_block] int64 queries, -1 behind the end
  at::Tensor key_order;    // [B, Hkv, R, blocks * key_block] int64 keys, -1 behind the end
};
// Buckets [B, Hq, Lq] and [B, Hkv, Lk] below 2^lsh_num_projs.
HyperGroup sort_group(const Hyper& options, std::vector<Rectangle> rectangles, const at::Tensor& query_buckets,
                      const at::Tensor& key_buckets);

// Block t of a rectangle's queries and block t of its keys.  `rule` is that of the call.
TokenPlan block_plan(const HyperGroup& group, const Rule& rule);

// Places in sorted order [B, Hkv, R, sample_size], -1 behind the end where a rectangle has fewer keys and none is drawn
// twice.  norms [B, Hkv, Lk] fp64, for residual=vnorm: a key's weight in the draw; else undefined.
at::Tensor draw_places(const Hyper& options, const HyperGroup& group, const at::Tensor& norms, uint64_t stream,
                       int64_t batch);

// The drawn keys of each block of queries, and what each counts.  places [B, Hkv, R, samples] as drawn.
ops::Part sampled_part(const Hyper& options, const HyperGroup& group, const Rule& rule, const at::Tensor& places,
                       const at::Tensor& norms, const Inputs& in);

// A rectangle's queries and keys in sorted order, as dense tensors.
struct SortedRectangle {
  at::Tensor queries, keys;  // [B, Hq, rows] and [B, Hkv, keys] int64: which they are
  at::Tensor q, k, v;        // [B, Hq, rows, D], [B, Hkv, keys, D], [B, Hkv, keys, Dv]
  int64_t query_block, key_block;
};
SortedRectangle sorted_rectangle(const HyperGroup& group, size_t number, const Inputs& in);

// log of the sum of exp(logit) over the keys outside of a row's own block: [B, Hq, rows].  -inf where there are none.
// q [B, Hq, rows, D] are rows of the rectangle, `rows_at_once` of each of these blocks [n] int64 in turn.
at::Tensor outside_lse(const SortedRectangle& r, const at::Tensor& q, const at::Tensor& blocks, int64_t rows_at_once,
                       const ops::Score& score);

// ApproxD (2310.05869, algorithm 2) of a rectangle in logarithms, rows in sorted order [B, Hq, rows]:
//   logits [.., m] = min(logit of drawn key l, log C_i), -inf in the own block,
//   C_i = epsilon^2 m / (n ln n) (block sum of i + tau / kappa),  tau = largest outside sum over the rows `asked`,
//   lse = max(log(n / m sum_l exp(logits)), log(tau / kappa)).
// kappa 0: the ratio of the largest and the smallest outside sum over those rows.
struct CappedResidual {
  at::Tensor logits, lse;  // [B, Hq, rows, m], [B, Hq, rows]
  at::Tensor empty;        // [B, Hq, rows] bool: all drawn keys are of the own block; lse is the lower bound
};
CappedResidual capped_residual(const Hyper& options, const SortedRectangle& r, const at::Tensor& block_lse,
                               const at::Tensor& places, const at::Tensor& asked, const ops::Score& score);

// Rows whose outside sums are measured: as many as samples, without repetition.  [n] int64 places in sorted order.
at::Tensor draw_rows(const Hyper& options, int64_t rows, uint64_t stream);

}  // namespace foveate::attention
