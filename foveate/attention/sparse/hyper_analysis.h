// What decides whether HyperAttention (2310.05869) can work on given queries and keys, measured without an L x L
// matrix, and its theory's estimate of row sums.  q [B, Hq, Lq, D], k [B, Hkv, Lk, D], as ops::attend takes them.
#pragma once

#include "foveate/attention/sparse/hyper.h"

namespace foveate::attention {

// alpha = Lq * max over keys j >= first_key of sum_i P_ij^2 (section 2), P the softmax over what the plan shows: with
// Lk = Lq keys 1 where attention is uniform, Lq^2 where one key has all.  first_key > 0 leaves sinks out.  [B, Hq].
at::Tensor hyper_alpha(const at::Tensor& q, const at::Tensor& k, const Plan& plan, const ops::Score& score = {},
                       int64_t first_key = 0);

// The sortLSH mask of all queries and keys (algorithm 1): block t of the sorted queries sees block t of the sorted
// keys. Of the options lsh_num_projs, block_size and gray count.  projections [D, lsh_num_projs].  Throws Error: no
// blocks.
TokenPlan sortlsh_mask(const Hyper& options, const at::Tensor& q, const at::Tensor& k, const at::Tensor& projections);

// The mean over rows of the share of the softmax over what `all` shows that falls on keys that the mask lists and `all`
// shows: [B, Hq].  Uniform attention over all keys has block_size / Lk.
at::Tensor heavy_mass(const at::Tensor& q, const at::Tensor& k, const TokenPlan& mask, const Rule& all,
                      const ops::Score& score = {});

// kappa = the largest over the smallest sum of exp(logit) over the keys outside of a row's own block of the sortLSH
// mask (section 2): [B, Hq].  O(Lq Lk) time.  Throws Error: no key is outside of any block.
at::Tensor hyper_kappa(const Hyper& options, const at::Tensor& q, const at::Tensor& k, const at::Tensor& projections,
                       const ops::Score& score = {});

// ApproxD (algorithm 2): the logarithm of each row's estimated sum of exp(logit), [B, Hq, Lq],
//   D_i = block sum + max(Lk / m * sum over drawn keys outside of the block of min(A_il, C_i), tau / kappa),
//   C_i = epsilon^2 m / (Lk ln Lk) * (block sum + tau / kappa),  tau = the largest outside sum over the rows `asked`.
// Options of residual=capped; kappa 0 takes the ratio over those rows.  Drawn keys [B, Hkv, m] and rows [n] int64 are
// places in sorted order.  The score may have a scale and a soft cap.  Throws Error: options of another residual.
at::Tensor approx_d(const Hyper& options, const at::Tensor& q, const at::Tensor& k, const at::Tensor& projections,
                    const at::Tensor& drawn, const at::Tensor& asked, const ops::Score& score = {});

// The largest singular value of each matrix of x [.., n, d], d small: fp64 [..].
at::Tensor operator_norm(const at::Tensor& x);

// The largest singular value of P [Lq, Lk] of each head: [B, Hq].  Power iteration until a round changes it by less
// than 1e-6 of it (1e-9 in fp64), at most 300 rounds; from below.
at::Tensor attention_norm(const at::Tensor& q, const at::Tensor& k, const Plan& plan, const ops::Score& score = {});

// The error that the theory bounds by epsilon: ||out - P V|| / (||P|| ||V||), operator norms: [B, Hq].
at::Tensor operator_norm_error(const at::Tensor& out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const Plan& plan, const ops::Score& score = {});

}  // namespace foveate::attention
