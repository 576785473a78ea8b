// The latest keys and the first ones (attention sinks): StreamingLLM (Xiao et al., 2309.17453), MInference's A-shape.
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// A query at position p sees key j iff p - j < size or j < sinks (and the model's own rule allows it).
// With block > 1 rows see whole blocks, as block kernels for streaming do: all rows of block r the first sinks / block
// blocks and the latest size / block, r among them (Flux Attention's streaming, 2604.07394).
// Where padding or documents hide the first keys, sinks and blocks count from a query's first key.  Inside a wider
// window of the model's own, sinks end with it.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  The state holds O(sinks + size) keys however long the text gets.
// Throws Error: size < 1, sinks < 0, either no multiple of block, positions=cache without rotary embedding or by block.
struct Window {
  static constexpr std::string_view name = "window";
  static constexpr std::string_view summary =
      "the latest keys and the first ones (StreamingLLM, A-shape); decode alike";
  static constexpr Kind kind = Kind::row;

  // original: keys keep their positions in the text (A-shape; the mask that prefill baselines use).
  // cache: distances are counted inside the kept keys, as StreamingLLM's cache does, so none exceeds sinks + size.
  enum class Positions { original, cache };
  friend constexpr auto enum_names(Positions) { return std::array<std::string_view, 2>{"original", "cache"}; }

  int64_t size = 512, sinks = 4, block = 1;
  Positions positions = Positions::original;

  static void fields(auto& self, auto&& visit) {
    visit("size", self.size, at_least(1),
          "keys seen before and including the query's own; at or above the length: dense");
    visit("sinks", self.sinks, at_least(0), "first keys of the text that stay visible");
    visit("positions", self.positions, any(),
          "where keys sit: in the text, or in the cache (StreamingLLM re-positions)");
    visit("block", self.block, at_least(1), "keys that come and go together; size and sinks are multiples of it");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

 private:
  RunPlan by_block(const Inputs& in) const;
};

// The same for some of the query heads: `heads` says which, for each of them; the others see all that the model shows.
// Unset: all heads.
Attended attend_window(const Window& window, const Inputs& in, const std::optional<std::vector<bool>>& heads = {});
// What it sees as one rule, where every text begins with key 0.
Rule window_rule(const Window& window, const Inputs& in, const std::optional<std::vector<bool>>& heads = {});

}  // namespace foveate::attention
