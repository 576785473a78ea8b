// Each block of queries attends to its best keys, chosen by chunk means: Dynamic Hierarchical Sparse Attention v1
// (2510.24606), with chunks of one length or between boundaries that a small network predicts from the keys.
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/attention/sparse/boundaries.h"
#include "foveate/base/options.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {

// Blocks of `query_block` queries and chunks of `chunk` keys are pooled over tokens and heads; a chunk's score for a
// block, the product of the two, is every key's score of that chunk; a block takes its `budget` best keys, cutting the
// last chunk if need be, and attends to them under the exact causal mask.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept keys.
// Keys that no row of the block can see (the layer's own window, padding, documents) are no candidates.
// Deviations from the paper's release, as options: local_anchor=block_end counts the local tokens back from the block's
// end, so that its first rows may see one of them only.
// chunks=learned: this layer's predictor says where chunks begin, for the whole of the prompt (class prompt; a prompt
// that comes in parts is cut anew with each); generated keys join the last chunk.  chunks=shared: as the latest layer
// before this one in the same forward pass with chunks=learned has cut.  lists=shared: the keys that the latest layer
// of the same options and the same window selected for the prompt.  The release shares both: one predictor, in layer 0
// ("dhsa:chunks=learned@0;dhsa:chunks=shared").  It begins the instruction's chunk one token late, this does not.
// Throws Error: forced keys (global_tokens, local_tokens, the block itself with local_anchor=block_start) over budget,
// a rule that shown_keys() does not take, nothing to share.
struct Dhsa {
  static constexpr std::string_view name = "dhsa";
  static constexpr std::string_view summary = "best keys for each block of queries, chosen by chunk means (DHSA v1)";
  static constexpr Kind kind = Kind::block;
  Kind own_kind() const { return chunks == Chunks::even ? Kind::block : Kind::prompt; }

  enum class Pooling { avgpool_norm, avgpool, maxpool };
  friend constexpr auto enum_names(Pooling) {
    return std::array<std::string_view, 3>{"avgpool_norm", "avgpool", "maxpool"};
  }
  enum class LocalAnchor { block_start, block_end };
  friend constexpr auto enum_names(LocalAnchor) { return std::array<std::string_view, 2>{"block_start", "block_end"}; }
  enum class Decode { dense, sparse };
  friend constexpr auto enum_names(Decode) { return std::array<std::string_view, 2>{"dense", "sparse"}; }
  enum class Chunks { even, learned, shared };
  friend constexpr auto enum_names(Chunks) { return std::array<std::string_view, 3>{"even", "learned", "shared"}; }
  enum class Lists { own, shared };
  friend constexpr auto enum_names(Lists) { return std::array<std::string_view, 2>{"own", "shared"}; }

  int64_t query_block = 128, budget = 1024, global_tokens = 128, local_tokens = 128, chunk = 16, instruction_tokens = 0;
  Pooling pooling = Pooling::avgpool_norm;
  LocalAnchor local_anchor = LocalAnchor::block_start;
  bool head_share = true;
  Decode decode = Decode::dense;
  Chunks chunks = Chunks::even;
  Lists lists = Lists::own;
  double theta = 1.1;
  int64_t nms_window = 8, chunks_per_block = 8, half_window = 4, boundary_heads = 4;

  static void fields(auto& self, auto&& visit) {
    visit("query_block", self.query_block, at_least(1), "queries that share one selection");
    visit("budget", self.budget, at_least(1), "keys kept per query block; at or above the length it is dense");
    visit("global_tokens", self.global_tokens, at_least(0), "first keys of the text, always kept");
    visit("local_tokens", self.local_tokens, at_least(0), "latest keys, always kept");
    visit("local_anchor", self.local_anchor, any(),
          "where local tokens are counted back from; block_start keeps the whole block too");
    visit("chunk", self.chunk, at_least(1), "keys that share one score");
    visit("pooling", self.pooling, any(), "how a block and a chunk are summed up: mean * sqrt(length), mean, maximum");
    visit("head_share", self.head_share, any(), "one selection for all heads; else one per key head");
    visit("instruction_tokens", self.instruction_tokens, at_least(0),
          "last rows of the prompt that attend densely (published: 64)");
    visit("decode", self.decode, any(), "generated rows: dense, or each a block of one that keeps `budget` keys");
    visit("chunks", self.chunks, any(),
          "of one length, as this layer's boundary predictor says, or as an earlier layer's has said");
    visit("lists", self.lists, any(), "this layer's own selection, or an earlier layer's of the same window");
    visit("theta", self.theta, any(), "learned: a boundary's logit is larger");
    visit("nms_window", self.nms_window, at_least(0), "learned: boundaries lie further apart than so many tokens");
    visit("chunks_per_block", self.chunks_per_block, at_least(1), "learned: boundaries per block of queries, at most");
    visit("half_window", self.half_window, at_least(1), "learned: keys on each side of a gap that the predictor reads");
    visit("boundary_heads", self.boundary_heads, at_least(1), "learned: heads of the predictor's attention");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;  // all rows by the plan, even a single one
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const;
  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;

  // Where the chunks of in.k begin and end: of each batch entry, or one for all.  learned: they are left for later
  // layers.
  using Cuts = std::vector<std::vector<int64_t>>;
  Cuts cuts_of(const Inputs& in) const;
  Attended attend_chunks(const Inputs& in, const Cuts& cuts) const;
  // The pieces of the definition, public for tests and for the state.
  at::Tensor pool(const at::Tensor& x,
                  std::span<const int64_t> cuts) const;  // [B, heads, L, D] -> [B, 1|heads, segments, D]
  // What blocks of `rows_of_block` of a call's rows may and must take: by sequence, where they differ, and block.
  std::vector<ops::Candidates> candidates(const Inputs& in, int64_t rows_of_block) const;
};

}  // namespace foveate::attention
