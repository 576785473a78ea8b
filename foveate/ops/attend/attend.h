// Attention over the keys that a plan names: the one operator every softmax mechanism is made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "foveate/plan/plan.h"

namespace foveate::ops {

// Logits a query has for places instead of keys, one axis or several: s += sum over axes a of
//   logits[b, h, i, sizes[0] + .. + sizes[a - 1] + clamp(keys[a][j] - queries[a][i], 0, sizes[a] - 1)].
// With logits = q . table^T and coordinates of a map these are relative position embeddings factored by axis (Shaw et
// al., 1803.02155; HaloNet); with a table alone, broadcast over rows, a relative position bias.  Memory O(Lq *
// columns).
struct Relative {
  at::Tensor logits;           // floating point [B|1, Hq|1, Lq|1, sum of sizes]; has a gradient
  at::Tensor queries, keys;    // [axes, Lq], [axes, Lk] int64
  std::vector<int64_t> sizes;  // one for each axis, at least 1; at most 4 axes
};

// How a logit is made, in this order (p is the query's position, Rule::query_start + i):
//   s = scale * q.k;   s = soft_cap * tanh(s / soft_cap);   s += bias + relative - slope * |p - j|;   s <= 0: s *=
//   leaky
struct Score {
  std::optional<double> scale;       // unset: 1 / sqrt(D)
  std::optional<double> soft_cap;    // > 0 (Gemma 2); unset: none
  std::optional<at::Tensor> bias;    // floating point [B|1, Hq|1, Lq|1, Lk|1], added to the logit; has a gradient
  std::optional<at::Tensor> sink;    // floating point [Hq]: a logit that joins the denominator alone; has a gradient
  std::optional<at::Tensor> slopes;  // floating point [Hq] (ALiBi, Press et al., 2108.12409); has a gradient
  std::optional<Relative> relative;
  std::optional<double> leaky;  // > 0: factor of logits that are not positive (LeakyReLU: graph attention); unset: 1
  // [B|1, Lk] bool: grouped softmax (Landmark attention, Mohtashami and Jaggi, 2305.16300, section 3.1).  A landmark
  // closes a block of keys; the keys of the row's own block (that of its position) and the landmarks of the others
  // share one softmax, and a block shares what its landmark gets by a softmax of its own.  A landmark's value never
  // counts; a block whose landmark, or all else, a row does not see counts nothing for it.  Plans must not list a key
  // twice.
  std::optional<at::Tensor> landmarks;
  // Probability in [0, 1) with which a weight becomes 0, others growing by 1 / (1 - dropout); lse is without it.  Which
  // ones depends on seed, batch, head, position and key alone (base/random.h: dropout_row, dropout_bits).
  double dropout = 0;
  std::optional<at::Tensor> dropout_seed;  // int64, one element, so that a compiled graph may draw it; unset: 0

  uint64_t seed() const;                              // what dropout_seed says
  double scale_of(int64_t dim) const;                 // what scale says for heads of `dim` numbers
  at::Tensor capped(const at::Tensor& logits) const;  // what soft_cap makes of logits
};

// Which key and value head a query head reads, where the groups are unequal or differ between keys and values.
struct HeadMap {
  std::optional<at::Tensor> keys;    // [Hq] int64, heads of k; unset: query head h reads key head h / (Hq / Hkv)
  std::optional<at::Tensor> values;  // [Hq] int64, heads of v; unset: as the keys
};

struct Attended {
  at::Tensor out;  // [B, Hq, Lq, Dv], dtype of q
  at::Tensor lse;  // [B, Hq, Lq] natural log of the softmax's denominator, sink included; fp32 (fp64 for fp64 inputs)
};

// out = softmax(s over the keys the plan shows) v, in blocks: no L x L matrix, forward or backward.
// q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], one dtype of fp32, bf16, fp16, fp64, any strides.  Without a
// head map Hq must be a multiple of Hkv; with one for values v may have other heads than k.  A list's head axis of Hkv
// goes by heads of k.  Softmax and sums run in fp32 (fp64 for fp64). A row
// that sees no key: out 0, lse -inf (with a sink: its logit), gradients 0.  An invisible key or value, even NaN or Inf,
// changes nothing.  Gradients: q, k, v, bias, sink, slopes, relative logits, from out and from lse. Throws Error:
// shapes, dtypes or a plan that do not fit.   Source: Dao et al., FlashAttention-2, 2307.08691, section 3.
//
// For decoding, without gradients of anything:
//   k and v may be rows of 8 bits (quantise_rows): uint8, q in fp32, bf16 or fp16.
//   pages [B, N] int32: k [P, Hkv, S, D] and v [P, Hkv, S, Dv] are pages of S keys (Kwon et al., 2309.06180), shared by
//   the batch; key j of batch b is row j % S of page pages[b][j / S], and there are N * S keys, of which the rule
//   (key_lengths, query_start) says which count.  Entries wholly behind key_lengths may be anything.
Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Plan& plan,
                const Score& score = {}, const HeadMap& heads = {}, const std::optional<at::Tensor>& pages = {});

}  // namespace foveate::ops
