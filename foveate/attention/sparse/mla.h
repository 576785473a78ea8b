// Multi-head latent attention over chosen tokens: what DeepSeek's sparse attention runs on (DeepSeek-V3.2-Exp).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "foveate/attention/learned.h"
#include "foveate/ops/rotary.h"

namespace foveate::attention {

struct SparseMlaOptions {
  double scale = 1;                       // of the logits: yarn_scale() of the un-absorbed head
  int64_t value_dim = 512;                // the values are the first so many dims of the keys
  std::optional<at::Tensor> topk_length;  // [S] int64: only the first so many entries of a list count
  std::optional<at::Tensor> sink;         // floating point [H]: out *= sigmoid(lse - sink)
  bool causal = true;                     // query i is at N - S + i and sees no later key
  bool wants_max = false;                 // the largest logits too: [S, H, K] numbers in memory
};

struct SparseMla {
  at::Tensor out;                 // [S, H, value_dim]
  at::Tensor lse;                 // [S, H] natural log, without the sink
  std::optional<at::Tensor> max;  // [S, H] largest logit, without a gradient; where it was asked for
};

// out_i = sum over s of softmax(scale * q_i . kv_s) kv_s[: value_dim], s over the keys that `index` lists: entries < 0,
// >= N, behind topk_length or later than the query are empty; a key listed twice counts twice.  Heads share all keys.
// q [S, H, D], kv [N, 1, D], one dtype; index [S, 1, K] integers.  A row without a key: out 0, lse +inf, max -inf (as
// FlashMLA).  Gradients of q, kv (which gathers those of keys and of values) and sink, from out and lse.
// Throws Error: shapes that do not fit.
SparseMla sparse_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& index,
                     const SparseMlaOptions& options = {});

// Sizes of a layer (published: DeepSeek-V3.2).
struct MlaShape {
  int64_t heads = 128, latent = 512, plain = 128, rotated = 64, value = 128;
  double scale = 0;  // of the logits; 0: 1 / sqrt(plain + rotated)
  double epsilon = 1e-6;
};

// 1 / sqrt(dim) * (0.1 ln(factor) + 1)^2: logits of a context `factor` times as long as the model was made for.
double yarn_scale(int64_t dim, double factor);
// What ops::Rotary divides its `dim` / 2 frequencies by for such a context (YaRN, 2309.00071): slow ones by the factor,
// fast ones by 1, a ramp between those that turn `fast` and `slow` times in the original length.
std::vector<double> yarn_divisors(int64_t dim, double base, double factor, int64_t original_length = 4096,
                                  double fast = 32, double slow = 1);

// Learned parts of a layer of this width and low rank of queries: q_down, q_norm, q_up, kv_down, kv_norm, kv_up, out.
std::vector<LearnedPart> mla_parts(const MlaShape& shape, int64_t width, int64_t query_rank);

// What a layer makes of its input for S tokens.
struct MlaRows {
  at::Tensor low_rank;  // [S, query_rank]: what an indexer's queries read
  at::Tensor q;         // [S, heads, plain + rotated]
  at::Tensor kv;        // [S, latent + rotated]: rows of the cache
};

// hidden [S, width], positions [S] int64; rotated dims turn in neighbouring pairs (an indexer's turn by halves).
MlaRows mla_rows(const at::Tensor& hidden, const Learned& parts, const MlaShape& shape, const ops::Rotary& rotary,
                 const at::Tensor& positions);

// The layer's output [S, width] over a cache kv [N, latent + rotated] that ends with these rows, causal; index [S, K]
// integers as above, unset: all keys.  Both give the same numbers: absorbed reads the cache as it is, by queries moved
// into its space (few queries, sparse lists), expanded makes keys and values of every head (long prompts).
at::Tensor mla_absorbed(const MlaRows& rows, const at::Tensor& kv, const Learned& parts, const MlaShape& shape,
                        const std::optional<at::Tensor>& index = {});
at::Tensor mla_expanded(const MlaRows& rows, const at::Tensor& kv, const Learned& parts, const MlaShape& shape,
                        const std::optional<at::Tensor>& index = {});

}  // namespace foveate::attention
