// Needles and passkeys over a grid of lengths and depths: where in a text a mechanism still finds things.
// Source: Kamradt, "Needle in a Haystack" (35 x 35 there; 6 x 6 is what a CPU does in minutes).
#pragma once

#include <span>
#include <vector>

#include "foveate/eval/recall.h"

namespace foveate::eval {

struct HeatMapOptions {
  std::vector<int64_t> lengths;  // in tokens, answers included; empty: no map
  int64_t depths = 6;            // round(linspace(0, 100, depths)) percent; one alone stands at 50
  int64_t prompts = 3;           // of each test in each cell
  uint64_t seed = 0;

  void validate() const;                   // Throws Error: out of range
  std::vector<int> depth_percent() const;  // of each row of the map
};

// round(linspace(low, high, count)).  Throws Error: count < 1, low > high.
std::vector<int64_t> even_lengths(int64_t low, int64_t high, int64_t count);

// Up to six even ones from a sixth of the context on, but none below 256 tokens, room for a question and its needles;
// of a context below 256 that one alone.
std::vector<int64_t> default_heat_lengths(int64_t context);

struct HeatPrompts {
  std::vector<NeedleSet> needles;              // one for each length; a haystack holds a needle at every depth
  std::vector<std::vector<Passkey>> passkeys;  // of each length: all depths, each with all its prompts
  int64_t depths = 0, prompts = 0;
};
// A pure function of its arguments; prose as make_needles takes it.
HeatPrompts make_heat_prompts(const Codec& codec, std::span<const int32_t> prose, const HeatMapOptions& options);

// Shares of prompts, [length][depth].
struct HeatMap {
  std::vector<std::vector<double>> needle;   // whose answer ranked first among the distractors
  std::vector<std::vector<double>> passkey;  // whose key was repeated
};
// One reading of a haystack serves all its depths; passkey prompts share what is alike before the key where the
// mechanisms allow it (run_passkeys).
HeatMap run_heat_map(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                     const io::Tokenizer& tokenizer, const HeatPrompts& prompts, attention::CacheType cache,
                     const Progress& progress = {});

}  // namespace foveate::eval
