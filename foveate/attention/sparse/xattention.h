// Each block of queries attends to the blocks of keys that hold most of an estimate of its attention, made of every
// stride-th antidiagonal: XAttention (Xu et al., 2503.16428).
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Queries and keys in groups of `stride`; the logit of two groups is the mean of `stride` of their products, those of
// one antidiagonal of the square between them, and a block's share Z of a block of queries the sum of the groups'
// softmax (estimate()).  A block of queries keeps the first block, those of its own keys, and the best others until
// together they hold tau of its Z, the block that reaches tau included; then it attends under the exact causal mask.
// Equal shares: the lower block.  tau 1 is dense.  Costs 1 / stride of all products and O(blocks^2 + L * D) memory.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept blocks.
// A group of queries sees groups of keys that begin at or before its first query, inside the layer's window; of the
// model's score terms the scale alone counts for the estimate.  A group cut short by the end has zeros for its rest.
// Generated rows are dense; so is a call without a state of one new row behind other keys.
// bf16 products are rounded to bf16 before the softmax.
// The released function's default tau is 0.8, its published runs' 0.9.
// Throws Error: stride does not divide block, tau outside (0, 1], head_tau not one for each query head, a rule that
// BlockGrid does not take.
struct XAttention {
  static constexpr std::string_view name = "xattention";
  static constexpr std::string_view summary =
      "blocks that hold a share of attention, estimated by antidiagonals (XAttention); decode dense";
  static constexpr Kind kind = Kind::block;

  // Which query of a group meets key s of a group: antidiagonal the (stride - 1 - s)-th, slash the s-th, random one of
  // a permutation; double and triple are antidiagonal with k_s + k_s+1 and k_s-1 + 2 k_s + k_s+1 (around the group) for
  // k_s.
  enum class Select { antidiagonal, slash, random, two_lines, three_lines };
  friend constexpr auto enum_names(Select) {
    return std::array<std::string_view, 5>{"antidiagonal", "slash", "random", "double", "triple"};
  }

  int64_t block = 128, stride = 16;
  double tau = 0.9;
  std::string head_tau;
  Select select = Select::antidiagonal;
  int64_t seed = 0;

  static void fields(auto& self, auto&& visit) {
    visit("block", self.block, at_least(1), "queries and keys of a block; multiples of 64 are fastest");
    visit("stride", self.stride, at_least(1), "tokens of a group: the estimate costs 1 / stride of dense products");
    visit("tau", self.tau, between(0, 1), "share of the estimated attention that is kept, > 0");
    visit("head_tau", self.head_tau, any(), "a tau for each query head instead, as 0.9/0.8/..");
    visit("select", self.select, any(), "which products of a square of stride x stride are taken");
    visit("seed", self.seed, at_least(0), "of select=random");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;  // all rows by the estimate, even a single one
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const { return block; }

  // Z: [B, Hq, blocks of queries, blocks of keys] fp32 (fp64 for fp64); a row sums to its groups of queries.
  at::Tensor estimate(const Inputs& in) const;
};

}  // namespace foveate::attention
