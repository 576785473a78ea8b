// The columns and the diagonals of the attention map that the last queries look at most: vertical-slash of MInference
// 1.0 (Jiang et al., 2407.02490).
#pragma once

#include <span>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/sparse/head_patterns.h"
#include "foveate/attention/sparse/lines.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Every query head adds up the attention of the last `last_queries` queries of the prompt by key and by distance, and
// keeps the `vertical` keys and the `slash` distances with the most (equal sums: the lower one); the first
// `first_columns` keys and the `first_distances` nearest distances come before all others.  At least first_columns keys
// and half of first_distances distances are kept (30 and 50, as released).
// A block of `block` queries at positions [p, p + block) attends, under the exact causal mask, to
//   the ranges that its distances cover: [e - block, e) with e = max(p + block - distance, block), from the farthest
//   distance on; one that begins inside or right behind the range before makes that one longer by `block`;
//   the kept keys outside of them, one by one.
// So each query sees every kept key and every key at a kept distance, and some beside them.  line_runs makes these.
// `heads` names a file of MInference's form (head_patterns.h) with a pair for each head of each layer; heads that it
// does not name take vertical and slash.  It is read at every prefill.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept keys.
// Prefill only: generated rows are dense.  A prompt in chunks is planned chunk by chunk, each as if it ended the
// prompt; of several documents the last one chooses the lines for all.  Deviations: the search of the release forces 30
// distances (first_distances=30).
// Throws Error: options out of range, a file that is not of the form or not of the model, padding behind a text, a rule
// that BlockGrid does not take, queries that do not sit at keys.
struct VerticalSlash {
  static constexpr std::string_view name = "vertical_slash";
  static constexpr std::string_view summary =
      "keys and distances that the last queries look at most (MInference); decode dense";
  static constexpr Kind kind = Kind::prompt;

  int64_t vertical = 1000, slash = 6096;
  std::string heads;
  int64_t last_queries = 64, first_columns = 30, first_distances = 100, block = 64;

  static void fields(auto& self, auto&& visit) {
    visit("vertical", self.vertical, at_least(1), "keys kept; at or above the length: dense");
    visit("slash", self.slash, at_least(1), "distances kept; at or above the length: dense");
    visit("heads", self.heads, any(), "file with a pair for each head of each layer, as MInference's; empty: none");
    visit("last_queries", self.last_queries, at_least(1), "queries at the end of the prompt whose attention is read");
    visit("first_columns", self.first_columns, at_least(0), "first keys, kept before all others");
    visit("first_distances", self.first_distances, at_least(1), "nearest distances, kept before all others");
    visit("block", self.block, at_least(1), "queries that share one selection");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;  // all rows by the plan, even a single one
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const { return block; }
};

// Kept lines of each head: [B, Hq, capacity] int32, ascending, -1 behind the end.
struct Lines {
  at::Tensor columns, distances;
};
// `heads`: one for each query head; counts above the number of keys keep all.
Lines select_lines(const LineSums& sums, std::span<const HeadPattern> heads, const VerticalSlash& options);

// The ranges and single keys of the rows of a grid: the conversion above, for each row as if the text of its queries
// began with key 0.  Ranges of a list ascend and are disjoint; neighbouring single keys are one range.
RunPlan line_runs(const Lines& lines, const BlockGrid& grid);

// Attention to given lines: one pattern for each query head.
Attended attend_lines(const Inputs& in, std::span<const HeadPattern> heads, const VerticalSlash& options);

}  // namespace foveate::attention
