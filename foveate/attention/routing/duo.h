// Some heads see everything, the others the latest keys and the first ones: DuoAttention (Xiao et al., 2410.10819) and
// PruLong (Bhaskar et al., 2506.17121).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Key heads are full or streaming, each with the query heads that read it; a streaming head at position p sees key j
// iff p - j < size or j < sinks.  Which ones are full:
//   full_heads   a list, as (0-1,5), all or none; needs no adapter
//   pattern      a file with a line of numbers for each layer, one for each key head (DuoAttention's
//                full_attention_heads.tsv), or the same as a JSON list of lists: the best 1 - sparsity of all its
//                numbers
//   neither      the layer's learned gates, the best 1 - sparsity of them
// The best 1 - sparsity of N: those at or above the sparsity quantile, between neighbours by linear interpolation, as
// released (equal numbers: all or none of them, where the release draws lots); sparsity 0 all, 1 none.
// phase=train mixes both: out = z full + (1 - z) streaming, z a learned gate of each key head with its gradient: alpha
// itself (keep it in [0, 1] after each step), or a hard-concrete sample of log_alpha, drawn for (seed, layer).
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  The state holds O(sinks + size) keys of streaming heads.  Sinks stay inside
// of a model's own window.
// Throws Error: a list or file that does not fit the heads, a missing gate, a model's own sinks or head_window.
struct Duo {
  static constexpr std::string_view name = "duo";
  static constexpr std::string_view summary = "full heads beside streaming heads (DuoAttention, PruLong); decode alike";
  static constexpr Kind kind = Kind::row;

  enum class Gate { alpha, hard_concrete };
  friend constexpr auto enum_names(Gate) { return std::array<std::string_view, 2>{"alpha", "hard_concrete"}; }
  enum class Phase { deploy, train };
  friend constexpr auto enum_names(Phase) { return std::array<std::string_view, 2>{"deploy", "train"}; }

  int64_t size = 1024, sinks = 128, seed = 0;
  double sparsity = 0.5;
  std::string full_heads, pattern;
  Gate gate = Gate::alpha;
  Phase phase = Phase::deploy;

  static void fields(auto& self, auto&& visit) {
    visit("size", self.size, at_least(1), "latest keys that streaming heads see, the query's own among them");
    visit("sinks", self.sinks, at_least(0), "first keys of the text that streaming heads see");
    visit("sparsity", self.sparsity, between(0, 1), "share of streaming heads among those that have a gate");
    visit("full_heads", self.full_heads, any(), "key heads that see everything: (0-1,5), all, none; empty: by gates");
    visit("pattern", self.pattern, any(), "file of gates: a line of numbers for each layer, or a JSON list of lists");
    visit("gate", self.gate, any(), "learned gate: alpha (DuoAttention) or hard_concrete (PruLong)");
    visit("phase", self.phase, any(), "deploy: a head is full or streaming; train: a mix of both by its gate");
    visit("seed", self.seed, at_least(0), "train, hard_concrete: of the sampled gates");
  }
  void validate() const;

  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;
  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

  std::vector<bool> is_full(const Inputs& in) const;  // for each key head
};

// The value below which a head streams (numpy's quantile): sparsity <= 0 gives -inf, >= 1 +inf.
double duo_threshold(std::vector<double> gates, double sparsity);

// out = z full + (1 - z) streaming; z [Hkv], one for the query heads that read a key head; full and streaming
// [B, Hq, Lq, Dv].  Differentiable.
at::Tensor duo_mix(const at::Tensor& full, const at::Tensor& streaming, const at::Tensor& z);

}  // namespace foveate::attention
