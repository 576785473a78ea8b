// Each block of queries attends to its best blocks of keys: Dynamic Hierarchical Sparse Attention v2 (2510.24606 v2,
// ICML 2026), the family of four block masks.
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Blocks of `query_block` queries and `key_block` keys.  Every query head keeps, for each block of queries, budget =
// max(1, floor(density * blocks of keys)) of the blocks that one of its rows sees, and attends to them under the exact
// causal mask.  Which ones, by `mask`:
//   topk  the largest products of mean query and mean key
//   a     the first block, the latest block, and the largest products between them
//   vs    as a, but ranked by lines: the columns and the diagonals that the last `query_block` queries of the prompt
//         give the most attention to, a share `vertical_slash_ratio` of budget * key_block of them columns.  A block
//         scores the sum of its kept columns and of the kept diagonals that cross it and the block of queries
//   vsb   as vs with blocks for tokens: the last queries' mean against mean keys.  O(blocks) memory
// a, vs and vsb are dense where a block of queries sees no more than budget blocks; vs and vsb also in the first budget
// * key_block rows (whole blocks of them) and in the last block.  Equal scores: the lower block.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept blocks.
// Shorter blocks at the ends: means of their real rows (the release pads hidden states with zeros instead, so that it
// differs where the length is no multiple of both blocks); the last queries are `query_block` real ones.
// Blocks that no row of the block can see (the layer's own window, padding, documents) are no candidates, the first
// block included; the first block is that of the text's first key, and a budget counts the blocks of each sequence's
// longest text.
// Score terms of the model (scale, soft cap) count for vs. Prefill only: generated rows are dense.  All four need the
// prompt's length for their budget, so a prompt in chunks is planned chunk by chunk, each as if it ended the prompt.
// Deviations from the release: own_blocks=false takes its forced blocks, with which rows may not see their own key (and
// rows of topk nothing: out 0, lse -inf); its topk also spends budget on later blocks, ours never does; its vsb spends
// budget on forced blocks once more, ours fills up.
// Forced blocks are kept even where they exceed the budget.  Throws Error: options out of range, padding behind a
// text where lines choose, a rule that BlockGrid does not take.
struct DhsaBlocks {
  static constexpr std::string_view name = "dhsa_blocks";
  static constexpr std::string_view summary =
      "best blocks of keys for each block of queries, by means or by lines (DHSA v2); decode dense";
  static constexpr Kind kind = Kind::prompt;

  enum class Mask { topk, a, vs, vsb };
  friend constexpr auto enum_names(Mask) { return std::array<std::string_view, 4>{"topk", "a", "vs", "vsb"}; }

  double density = 0.125, vertical_slash_ratio = 0.5;
  int64_t query_block = 128, key_block = 32;
  Mask mask = Mask::vs;
  bool own_blocks = true;

  static void fields(auto& self, auto&& visit) {
    visit("density", self.density, between(0, 1), "share of the prompt's key blocks kept per query block; 1 is dense");
    visit("mask", self.mask, any(),
          "rule: block means (topk, a = with first and latest block), lines of the last queries (vs, vsb = by blocks)");
    visit("query_block", self.query_block, at_least(16), "queries that share one selection, a multiple of 16");
    visit("key_block", self.key_block, between(16, 128), "keys that share one score: 16, 32, 64 or 128");
    visit("vertical_slash_ratio", self.vertical_slash_ratio, between(0, 1),
          "vs, vsb: share of columns among the kept lines");
    visit("own_blocks", self.own_blocks, any(),
          "always keep the blocks of the queries' own keys; false: the latest only (topk: none), as released");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;  // all rows by the plan, even a single one
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const;
};

}  // namespace foveate::attention
