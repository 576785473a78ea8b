// Each query attends to its best keys by a learned indexer: DeepSeek Sparse Attention ("lightning indexer",
// DeepSeek-V3.2-Exp), whose scan of all keys HISA (2603.28458) replaces by blocks first and their tokens then.
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"
#include "foveate/ops/index/index.h"

namespace foveate::attention {

// What the indexer makes of some rows of the layer's input.
struct IndexVectors {
  at::Tensor q;        // [B, L, heads, dim]
  at::Tensor k;        // [B, L, dim]
  at::Tensor weights;  // [B, L, heads], with the factors heads^-1/2 and dim^-1/2
};

// For token t of `hidden`: q_j = (query h_t)_j, k_t = LayerNorm(key h_t), w_t = weight h_t; the first `rope_dims` of q
// and k are rotated (rotate-half) as the model rotates; I[t][s] = sum over j of w_tj max(q_tj . k_s, 0); the query's
// `topk` best keys, one list for all heads, are attended under the model's own rule.  q [B, Hq, Lq, D]; k, v [B, Hkv,
// Lk, D].  Without a state `hidden` must hold all keys (Lq = Lk).  Selection has no gradient; q, k, v have theirs
// through the kept keys, and the indexer learns by loss().
// Rows of the prompt and generated rows select alike: a row's own block is always kept, or scored by what the row sees.
// Throws Error: a rule that seen_keys() does not take.
struct Hisa {
  static constexpr std::string_view name = "hisa";
  static constexpr std::string_view summary =
      "best keys for each query by a learned indexer, blocks first (HISA; indexer=flat is DeepSeek's DSA)";
  static constexpr Kind kind = Kind::row;

  enum class Indexer { hierarchical, flat };
  friend constexpr auto enum_names(Indexer) { return std::array<std::string_view, 2>{"hierarchical", "flat"}; }

  Indexer indexer = Indexer::hierarchical;
  int64_t topk = 2048, block = 128, block_topk = 64;
  bool force_ends = true;
  ops::IndexPooling pooling = ops::IndexPooling::mean;
  int64_t heads = 64, dim = 128, rope_dims = 0;
  bool hadamard = true;
  ops::IndexType dtype = ops::IndexType::e4m3;
  bool power_of_two = true, pooled_bf16 = false;

  static void fields(auto& self, auto&& visit) {
    visit("indexer", self.indexer, any(),
          "all keys are scored, or pooled blocks first and then the tokens of the best");
    visit("topk", self.topk, at_least(1), "keys kept per query; at or above the length it is dense");
    visit("block", self.block, at_least(1),
          "keys whose pooled key is scored first (published: block * block_topk 8192)");
    visit("block_topk", self.block_topk, at_least(1), "blocks whose tokens are scored");
    visit("force_ends", self.force_ends, any(), "the first and the last block that a query sees are always among them");
    visit("pooling", self.pooling, any(), "how a block's keys are summed up");
    visit("heads", self.heads, at_least(1), "heads of the indexer");
    visit("dim", self.dim, at_least(1), "dims of its queries and keys");
    visit("rope_dims", self.rope_dims, at_least(0),
          "of them that are rotated, even; 0: as many as the model rotates, or all");
    visit("hadamard", self.hadamard, any(), "spreads outliers over all dims before rounding; dim a power of two");
    visit("dtype", self.dtype, any(), "how index vectors are rounded; e4m3 has a scale for each");
    visit("power_of_two", self.power_of_two, any(), "scales of e4m3 are rounded up to powers of two (ue8m0)");
    visit("pooled_bf16", self.pooled_bf16, any(), "pooled keys of e4m3 in bf16 instead");
  }
  void validate() const;
  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

  // Index vectors of rows: queries read `query_input` [B, L, query width], keys and weights `hidden` [B, L, width].
  // They differ in models with a low-rank query (mla.h).  positions as Rotary::rotate takes them.  Differentiable.
  IndexVectors vectors(const at::Tensor& query_input, const at::Tensor& hidden, const Learned& parts,
                       const ops::Rotary* rotary, const at::Tensor& positions) const;
  IndexVectors vectors(const Inputs& in) const;  // both are in.hidden
  // How ops/index takes the rows of batch entry b: rounded as `dtype` says.
  ops::IndexQueries queries(const IndexVectors& rows, int64_t b, const at::Tensor& start, const at::Tensor& end) const;
  at::Tensor select(const ops::IndexQueries& queries, const ops::BlockedKeys& keys) const;  // [M, topk] int32
  ops::BlockedKeys empty_keys() const;
  // Attends the rows of `in`, whose index vectors these are, where keys[b] holds the index keys of all of in.k.
  Attended attend_over(const Inputs& in, const IndexVectors& rows, const std::vector<ops::BlockedKeys>& keys) const;

  // KL(p || softmax(I)), mean over rows: p is what in.q and in.k give without a gradient, summed over heads and normed.
  // Over all keys a row sees (the first stage of training, the model frozen and dense) or, with `selected`, over the
  // keys that the indexer itself takes (the second).  Gradients of the learned parts alone.
  enum class Stage { dense, selected };
  at::Tensor loss(const Inputs& in, Stage stage) const;
};

}  // namespace foveate::attention
