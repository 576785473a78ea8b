// Three views of the past, mixed by learned gates: windows of keys summed up, the best blocks of keys, the latest keys.
// Native Sparse Attention (Yuan et al., 2502.11089).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// How a window of `compress` rows becomes one row, by key head; which tensors there are depends on Nsa::phi.
struct NsaPhi {
  std::optional<at::Tensor> positions;  // [Hkv, compress, D] added to the rows of each window; unset: none
  std::optional<at::Tensor> weights;    // weighted: [Hkv, compress] as they are
  std::optional<at::Tensor> in;         // linear: [Hkv, D, compress * D];  mlp: the same, then SiLU and
  std::optional<at::Tensor> out;        // mlp: [Hkv, D, D]
};

struct NsaBranch {
  at::Tensor k, v;
};
// Branches may share keys and values or have projections of their own.
struct NsaBranches {
  NsaBranch compressed;  // [B, Hkv, windows, D] and [.., Dv]: what Nsa::summed gives
  NsaBranch selected;    // [B, Hkv, Lk, D] and [.., Dv]; perhaps 8-bit rows
  NsaBranch window;      // the same
};

// A row at position t attends three times, each a softmax of its own:
//   compressed  windows i of tokens [i stride, i stride + compress) that end at or before t, each summed up by phi
//   selected    the tokens of its `blocks` best blocks of `block` keys.  A block scores the probabilities its windows
//               get in the first softmax, as often as a stride of the window lies in the block (1, 2, 2, 2, 1 with the
//               published sizes), added over the query heads of a key head: one choice for all of them.  The first
//               blocks and the latest, its own among them, are always taken; ties: the lower block.
//   window      the latest `window` tokens
// and out = g_c O_c + g_s O_s + g_w O_w with gates g = sigmoid(gate . hidden), three for each token and query head.  A
// row without a window: O_c = 0.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D | Dv].  The choice has no gradient; everything else has: q, k, v, phi, gates.
// Keys that the model's own rule hides (windows, padding, documents) make their windows invisible and are no
// candidates; windows and blocks count from key 0, first blocks from a row's first key.  A sink logit joins all three
// softmaxes; a window's bias is the mean of its tokens', its slope counts from its middle. The state keeps the
// summed-up windows beside the cache. The variant of fla-org:
// compress=64,stride=64,phi=mean,rope=before,first_blocks=0,local_blocks=1 (its own block, which scores 1 there, is
// always taken here). Throws Error: sizes that do not divide, forced blocks over `blocks`, missing learned parts, a
// rule that seen_keys() does not take, relative, landmark or leaky logits.
struct Nsa {
  static constexpr std::string_view name = "nsa";
  static constexpr std::string_view summary =
      "summed-up windows, best blocks and latest keys mixed by gates (NSA); decode alike";
  static constexpr Kind kind = Kind::row;

  enum class Phi { mean, weighted, linear, mlp };
  friend constexpr auto enum_names(Phi) { return std::array<std::string_view, 4>{"mean", "weighted", "linear", "mlp"}; }
  enum class Rope { after, before };
  friend constexpr auto enum_names(Rope) { return std::array<std::string_view, 2>{"after", "before"}; }
  enum class Gates { learned, selected };
  friend constexpr auto enum_names(Gates) { return std::array<std::string_view, 2>{"learned", "selected"}; }

  int64_t compress = 32, stride = 16, block = 64, blocks = 16, first_blocks = 1, local_blocks = 2, window = 512;
  Phi phi = Phi::mlp;
  Rope rope = Rope::after;
  Gates gates = Gates::learned;

  static void fields(auto& self, auto&& visit) {
    visit("compress", self.compress, at_least(1), "tokens of a window that is summed up, a multiple of stride");
    visit("stride", self.stride, at_least(1), "tokens from one window to the next");
    visit("block", self.block, at_least(1), "keys of a selected block, a multiple of stride");
    visit("blocks", self.blocks, at_least(1), "blocks that a row attends to; at or above the length: dense");
    visit("first_blocks", self.first_blocks, at_least(0), "first blocks of the text, always taken");
    visit("local_blocks", self.local_blocks, at_least(1), "latest blocks, the row's own among them, always taken");
    visit("window", self.window, at_least(1), "latest keys of the third branch, the row's own among them");
    visit("phi", self.phi, any(), "how a window becomes one key and value: mean, or learned");
    visit(
        "rope", self.rope, any(),
        "after: windows of unrotated keys are summed up, then rotated as their first token; before: rotated keys are");
    visit("gates", self.gates, any(), "learned, or the selected blocks alone (with phi=mean nothing is learned)");
  }
  void validate() const;

  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;
  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

  int64_t windows_of(int64_t tokens) const { return tokens < compress ? 0 : (tokens - compress) / stride + 1; }
  // x [B, Hkv, L, D], or 8-bit rows -> [B, Hkv, windows_of(L), D] fp32 (fp64 for fp64).  Differentiable.
  at::Tensor summed(const at::Tensor& x, const NsaPhi& parts) const;
  // Windows from `first` on of k (or v), unrotated and rotated as `rope` says, in the dtype of q.
  NsaBranch compressed(const Inputs& in, int64_t first = 0) const;
  // What equation 9 makes of the probabilities of windows [B, Hq, rows, windows]: scores [B, Hkv, rows, blocks] of the
  // blocks, added over the query heads of a key head.
  at::Tensor block_scores(const at::Tensor& probabilities, int64_t kv_heads, int64_t all_blocks) const;
  // The blocks of every row, [B, Hkv, Lq, min(blocks, all)] int32 ascending, -1 behind the end, from queries and the
  // compressed keys with the lse [B, Hq, Lq] of their softmax; length: Lk; score: that of windows.
  at::Tensor select(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& lse, int64_t length,
                    const Rule& rule, const ops::Score& score) const;
  // sigmoid(gate . hidden): [B, Hq, Lq, 3] in the order compressed, selected, window.
  at::Tensor learned_gates(const Inputs& in) const;
};

// The whole of it from explicit tensors; gates as learned_gates gives them, or unset: the selected branch alone.
Attended nsa(const at::Tensor& q, const NsaBranches& branches, const std::optional<at::Tensor>& gates,
             const Nsa& options, const Rule& rule = {}, const ops::Score& score = {});

}  // namespace foveate::attention
