// Each block of queries attends to its best blocks of keys by block means: MoBA (Lu et al., 2502.13189), MInference's
// block-sparse heads (2407.02490).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// A block of `query_block` queries scores each block of `block` keys by mean query . mean key (over real rows), keeps
// the blocks of its own keys and the best of the others that one of its rows sees, `blocks` in all or a share `density`
// of those it sees, and attends to them under the exact causal mask.  Equal scores: the lower block.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept blocks.
// Blocks that no row of the block can see (the layer's own window, padding, documents) are no candidates.
// Published settings: MInference block=64,blocks=100; MoBA query_block=1,block=512,blocks=3 (each query by itself).
// A generated row is a block of one: the query itself against block means, which the state keeps beside the cache.
// Deviation from MInference's release: its own block competes as any other, ours is always kept.
// Throws Error: options out of range, a rule that BlockGrid does not take.
struct BlockTopk {
  static constexpr std::string_view name = "block_topk";
  static constexpr std::string_view summary =
      "best blocks of keys for each block of queries by block means (MoBA, MInference block-sparse); decode alike";
  static constexpr Kind kind = Kind::block;

  enum class HeadShare { none, group, all };
  friend constexpr auto enum_names(HeadShare) { return std::array<std::string_view, 3>{"none", "group", "all"}; }
  enum class Decode { sparse, dense };
  friend constexpr auto enum_names(Decode) { return std::array<std::string_view, 2>{"sparse", "dense"}; }

  int64_t query_block = 64, block = 64, blocks = 100;
  double density = 0;
  HeadShare head_share = HeadShare::none;
  Decode decode = Decode::sparse;

  static void fields(auto& self, auto&& visit) {
    visit("query_block", self.query_block, at_least(1), "queries that share one selection; 1: each by itself");
    visit("block", self.block, at_least(1), "keys that share one score; multiples of 64 are fastest");
    visit("blocks", self.blocks, at_least(1), "blocks kept, with those of the queries' own keys");
    visit("density", self.density, between(0, 1), "> 0: this share of the blocks seen is kept instead (at least one)");
    visit("head_share", self.head_share, any(),
          "who shares a choice, by the mean of their scores: no heads, those of "
          "a key head, all");
    visit("decode", self.decode, any(), "generated rows: each a block of one, or dense");
  }
  void validate() const { check_options(*this); }

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const;

  // The same over given means of k's blocks, [B, Hkv, blocks of keys, D].
  Attended attend_by(const Inputs& in, const at::Tensor& means) const;
};

}  // namespace foveate::attention
