// A small router looks at the prompt's queries once and sends the whole layer to full or to cheap attention, for the
// prompt and for what is generated after it: Flux Attention (2604.07394).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// One router; F is the head dim, weights are [out, in].
struct FluxRouter {
  at::Tensor encoder_in, encoder_in_bias;    // [8F, F], [8F]; then SiLU
  at::Tensor encoder_out, encoder_out_bias;  // [2F, 8F], [2F]
  at::Tensor head_in, head_in_bias;          // [4F, 2F], [4F]; then SiLU
  at::Tensor head_middle, head_middle_bias;  // [F, 4F], [F]; then SiLU
  at::Tensor head_out, head_out_bias;        // [2, F], [2]
};

// For each sequence the router's logits a = (cheap, full) come from the mean over heads and over the first and the last
// `pool_size` tokens of the prompt of its queries before rotation.  full is taken where a_1 > a_0 (equal: cheap), and
// the layer runs one of two mechanisms of this list: `full` or `cheap`.
// phase=train runs both: z = hard + (y - y detached) with y = softmax((a + g) / tau), g Gumbel noise of (seed, layer)
// (blend=straight_through), or z = y (blend=soft), and out = z full + (1 - z) cheap; the gradient reaches the router
// through z.  noise=false leaves g out.
// A state decides once, when the prompt ends, for each sequence on its own, and keeps the decision: cheap layers then
// hold what the cheap mechanism holds, a window no more than its keys.  Rows of a prompt in chunks go by what is known
// of the prompt so far; until its end both memories are kept.  An empty state takes decoded rows for a prompt.
// An open prompt can not be saved, nor truncated but to nothing.  A fixed route is known from the first chunk on.
// The release streams by block: cheap=(window:size=2048,sinks=128,block=128).
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].
// Throws Error: a nested spec that is none, a prompt without tokens, decoding, saving or truncating before the prompt
// ended, missing parts.
struct Flux {
  static constexpr std::string_view name = "flux";
  static constexpr std::string_view summary =
      "full or cheap attention for the whole layer, by a router that reads the prompt (Flux Attention); decode goes on";
  static constexpr Kind kind = Kind::prompt;

  enum class Route { learned, full, cheap };
  friend constexpr auto enum_names(Route) { return std::array<std::string_view, 3>{"learned", "full", "cheap"}; }
  enum class Pooling { ends, all, first };
  friend constexpr auto enum_names(Pooling) { return std::array<std::string_view, 3>{"ends", "all", "first"}; }
  enum class Phase { deploy, train };
  friend constexpr auto enum_names(Phase) { return std::array<std::string_view, 2>{"deploy", "train"}; }
  enum class Blend { straight_through, soft };
  friend constexpr auto enum_names(Blend) { return std::array<std::string_view, 2>{"straight_through", "soft"}; }

  std::string full = "dense", cheap = "window:size=2048,sinks=128";
  Route route = Route::learned;
  Pooling pooling = Pooling::ends;
  int64_t pool_size = 150, seed = 0;
  Phase phase = Phase::deploy;
  Blend blend = Blend::straight_through;
  double tau = 1;
  bool noise = true;

  static void fields(auto& self, auto&& visit) {
    visit("full", self.full, any(), "mechanism of layers that see much, in brackets where it has options");
    visit("cheap", self.cheap, any(), "mechanism of the other layers: cheap=(window:size=2048,sinks=128)");
    visit("route", self.route, any(), "who decides: the learned router, or always the same (a static allocation)");
    visit("pooling", self.pooling, any(), "which of the prompt's queries the router reads: both ends, all, the first");
    visit("pool_size", self.pool_size, at_least(1), "tokens of each end");
    visit("phase", self.phase, any(), "deploy: one mechanism runs; train: both, with a gradient to the router");
    visit("blend", self.blend, any(), "train: the hard choice with the soft one's gradient, or the soft one");
    visit("tau", self.tau, between(1e-3, 1e3), "train: temperature of the choice");
    visit("noise", self.noise, any(), "train: Gumbel noise on the logits");
    visit("seed", self.seed, at_least(0), "train: of the noise");
  }
  void validate() const;

  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;
  Attended attend(const Inputs& in) const;
  // As deploy attends, by decisions z [B] from elsewhere: full where z > 0.5.
  Attended attend_decided(const Inputs& in, const at::Tensor& z) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const;
};

// Means over heads and over rows of queries [B, Hq, L, D] -> [B, D] fp32 (fp64 for fp64).  ranges [B, 2] int64: first
// and last token of each prompt; unset: all rows.  ends: rows of both slices count, twice where they overlap.
// Throws Error: a range that is empty or outside.
at::Tensor flux_pool(const at::Tensor& q, const std::optional<at::Tensor>& ranges, Flux::Pooling pooling,
                     int64_t pool_size);
// x [B, F] -> logits [B, 2]: (cheap, full).
at::Tensor flux_logits(const at::Tensor& x, const FluxRouter& router);
// z [B], the share of full attention: what `blend` says of softmax((logits + noise) / tau).  noise [B, 2] or unset.
at::Tensor flux_choice(const at::Tensor& logits, const std::optional<at::Tensor>& noise, double tau, Flux::Blend blend);
// out = z full + (1 - z) cheap, [B, Hq, Lq, Dv]; z [B].
at::Tensor flux_blend(const at::Tensor& full, const at::Tensor& cheap, const at::Tensor& z);

// What a layer decided, for objectives and reports: z [B], 1 where full.  With phase=train differentiable.
at::Tensor flux_decision(const Flux& options, const Inputs& in);

}  // namespace foveate::attention
