// Similar queries and keys are sorted together and attend exactly, the rest is estimated from sampled keys:
// HyperAttention (Han et al., 2310.05869, ICLR 2024).
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"
#include "foveate/ops/select/buckets.h"

namespace foveate::attention {

// Queries that all see keys [first_key, first_key + keys) are a rectangle.  In it queries and keys are sorted by
// angular hash and cut into as many blocks; a block of queries attends exactly to its block of keys and to
// `sample_size` keys drawn from the rectangle, each of which stands for keys / sample_size of those outside of the
// block: a drawn key of the query's own block counts nothing.  Sums of weights are without bias.  Causal attention over
// n tokens is that over each half and the rectangle of the second half's queries and the first half's keys, halved
// until at most min_seq_len tokens are left, which attend exactly, as do calls of fewer than min_seq_len queries.  The
// rectangles of one depth run together; keys are hashed, sorted and drawn once per key head.  A sink joins once, exact.
// Generated rows are dense.
//
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Causal rules and full ones; keys that a chunk of queries finds in a cache
// are a rectangle.  Where key_lengths cut keys off, each sample of the batch runs alone.  A layer whose own window
// hides keys is exact under it: that is linear already.  Order and samples are constants; gradients are those of the
// estimate, lse included, for q, k, v and the terms of the score.  (Of residual=vnorm too: gradients through its
// weights with fixed samples would have a bias.)  lse estimates that of all keys, so a mechanism's Attended has none
// where something was sampled; hyper_attention gives it.  Samples and projections follow from seed, layer, place in the
// batch and depth alone: another seed draws anew.  Deviations from the release, as options: gray=reference orders bins
// as released; same_block_mask=false counts drawn keys of the own block twice (the release's CUDA form).  Not as
// released: nothing is padded with zero rows that count; weights have gradients in every dtype; a rectangle with one
// block of queries and several of keys is sampled too.  Throws Error: options that contradict each other, no key, rules
// with documents, row ranges, head windows or later keys in part, landmarks.
struct Hyper {
  static constexpr std::string_view name = "hyper";
  static constexpr std::string_view summary =
      "blocks of queries and keys sorted by hash, the rest by sampled keys (HyperAttention); decode dense";
  static constexpr Kind kind = Kind::prompt;

  // uniform  every key alike
  // vnorm    a key with probability |v|^2 / sum of |v|^2, weight 1 / (sample_size * probability)
  // capped   uniform, with the theory's bounds (see approx_d): weights of at most C, their sum of at least tau / kappa
  enum class Residual { uniform, vnorm, capped };
  friend constexpr auto enum_names(Residual) { return std::array<std::string_view, 3>{"uniform", "vnorm", "capped"}; }
  using Gray = ops::GrayOrder;

  int64_t lsh_num_projs = 7, block_size = 256, sample_size = 256, min_seq_len = 4096, seed = 0;
  Residual residual = Residual::uniform;
  bool replacement = true;
  Gray gray = Gray::exact;
  bool same_block_mask = true;
  double epsilon = 1, kappa = 0;

  static void fields(auto& self, auto&& visit) {
    visit("lsh_num_projs", self.lsh_num_projs, between(0, 16), "hyperplanes of the hash; 0 leaves the text's order");
    visit("block_size", self.block_size, at_least(0), "keys of a sorted block; 0: samples alone");
    visit("sample_size", self.sample_size, at_least(0), "keys drawn per rectangle and key head; 0: blocks alone");
    visit("min_seq_len", self.min_seq_len, at_least(1), "causal parts of so many tokens or fewer are exact");
    visit("seed", self.seed, at_least(0), "of hyperplanes and samples");
    visit("residual", self.residual, any(), "how keys are drawn and weighed: uniform, by their values' norm, capped");
    visit("replacement", self.replacement, any(), "a key may be drawn twice (as published)");
    visit("gray", self.gray, any(), "order of the hash's bins: reflected Gray code, or as released");
    visit("same_block_mask", self.same_block_mask, any(), "drawn keys of the own block count nothing");
    visit("epsilon", self.epsilon, at_least(0), "capped: the cap grows with its square");
    visit("kappa", self.kappa, at_least(0), "capped: ratio of the sums' bounds, >= 1; 0 measures it on sampled rows");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
};

// What chance decides.
struct HyperDraws {
  at::Tensor projections;  // [D, lsh_num_projs] floating point, the same for all heads
  // Of each group of rectangles (a causal call: one for each depth; keys of a cache before them) the drawn places in
  // sorted order [B, Hkv, rectangles, samples] int64; empty: drawn by the seed.
  std::vector<at::Tensor> samples = {};
};

// Standard normal projections by the options' seed and the layer.
HyperDraws hyper_draws(const Hyper& options, int64_t dim, int64_t layer);

// Hyper's attend with everything explicit: out and the estimate of lse, where attend gives none.
ops::Attended hyper_attention(const Hyper& options, const Inputs& in, const HyperDraws& draws);

}  // namespace foveate::attention
