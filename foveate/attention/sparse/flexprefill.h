// Blocks of keys by lines or by a map of means, as many as the attention of each head needs: FlexPrefill (Lai et al.,
// 2502.20766, ICLR 2025).
#pragma once

#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Blocks of `block` queries and keys.  P is the attention of the last `block` queries of the prompt.  Each query head
// counts the fewest keys, and the fewest distances, that hold `gamma` of P; that many divided by `block`, rounded down,
// plus one, at least min_budget and at most max_budget tokens of them, are the numbers of its vertical and slash
// blocks: those with the largest sums of P by block of keys and by block of distances [s * block, (s + 1) * block).
// The text's first vertical block and slash block 0 are always among them.  Row r keeps vertical blocks up to r and
// blocks r - s.
// A head whose P, by block of keys, lies within `tau` (square root of the Jensen-Shannon divergence, natural logarithm)
// of what the mean of the last queries gives the mean keys is `query-aware`: it takes min_budget of both lines, and the
// blocks of the whole map of softmax(mean query . mean key) that together fit gamma of it, best first.
// Queries see kept blocks under the exact causal mask.  Prompts of at most max(2 * block, min_budget) keys are dense.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept blocks.
// Prefill only: generated rows are dense.  A prompt in chunks is planned chunk by chunk, each as if it ended the
// prompt; a block of queries that lies over two blocks of keys keeps what either place would. Deviations from the
// release: budgets are divided by `block`, there always by 128; where the length is no multiple of `block`, its blocks
// of distances are counted from the farthest; a block of keys that P does not touch makes its divergence NaN, ours is
// finite.  Throws Error: options out of range, max_budget below min_budget, padding behind a text, a rule that
// BlockGrid does not take, queries that do not sit at keys.
struct FlexPrefill {
  static constexpr std::string_view name = "flexprefill";
  static constexpr std::string_view summary =
      "as many vertical and slash blocks, or blocks by means, as each head needs (FlexPrefill); decode dense";
  static constexpr Kind kind = Kind::prompt;

  double gamma = 0.9, tau = 0.1;
  int64_t min_budget = 1024, max_budget = 0, block = 128;

  static void fields(auto& self, auto&& visit) {
    visit("gamma", self.gamma, between(0, 1), "share of attention to be held, > 0; 1 is dense");
    visit("tau", self.tau, between(0, 1), "heads whose means come this near to their attention use them; 0: none");
    visit("min_budget", self.min_budget, at_least(1), "least tokens of vertical, and of slash blocks");
    visit("max_budget", self.max_budget, at_least(0), "most tokens of each; 0: no limit");
    visit("block", self.block, at_least(1), "queries, and keys, of a block");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;  // all rows by the plan, even a single one
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const { return block; }
};

// sqrt(JS) of distributions along the last axis, natural logarithm: p, q [.., n] floating point -> [..] fp64.
at::Tensor root_of_js_divergence(const at::Tensor& p, const at::Tensor& q);

}  // namespace foveate::attention
