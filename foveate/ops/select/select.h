// Chooses keys by score.  One order everywhere: higher score first, then lower index.
#pragma once

#include <cstdint>
#include <span>

#include "foveate/plan/plan.h"

namespace foveate::ops {

// Which keys one block of queries may and must take.
struct Candidates {
  int64_t first, last;  // allowed keys [first, last)
  int64_t forced_head;  // the first so many allowed keys are always taken
  int64_t forced_tail;  // the last so many allowed keys are always taken
};

// Token lists for each block of queries from chunk scores: forced keys first, then whole chunks in score order; a chunk
// that does not fit is cut behind its first keys.  A block with at most `budget` allowed keys takes them all.
// scores [B, H, blocks, chunks]; chunk c holds keys [cuts[c], cuts[c+1]); candidates: one per block, or per sequence
// and block.  NaN scores last. Returns [B, H, blocks, longest list] int32, ascending, -1 behind the end.  No gradient.
// Throws Error: forced keys that exceed the budget.
at::Tensor select_tokens(const at::Tensor& scores, std::span<const int64_t> cuts,
                         std::span<const Candidates> candidates, int64_t budget);

struct TopOptions {
  std::optional<at::Tensor> forced, banned;  // bool, broadcast to the scores; banned counts where both are set
};

// The `count` best entries along the last axis: forced ones first, then higher scores, then lower indices.  A score of
// -inf is banned; NaN comes behind all numbers.  scores [.., N] floating point, compared in fp32.
// Returns [.., min(count, N)] int32, ascending, -1 behind the end where fewer may be taken.  No gradient.
// Throws Error: count < 0, masks that do not fit, more forced entries than count.
at::Tensor select_top(const at::Tensor& scores, int64_t count, const TopOptions& options = {});
// A count for each row: int64, broadcasts to the scores without their last axis; as wide as the largest.
at::Tensor select_top(const at::Tensor& scores, const at::Tensor& counts, const TopOptions& options = {});

struct MassOptions {
  std::optional<at::Tensor> forced, banned;  // bool, broadcast to the scores; banned counts where both are set
  bool crossing = true;                      // the entry with which the share is reached is taken, else only what fits
};

// The best entries along the last axis that together hold a share of their sum (top-p): forced ones first, then higher
// scores, then lower indices, as long as less than share * (sum of all that are not banned) is held.  A share of 1
// takes all that are not banned.  scores [.., N] floating point, >= 0, compared in fp32, summed in fp64 in the order of
// taking; NaN counts 0 and comes last.  share in [0, 1]: floating point, broadcasts to scores with a last axis of 1.
// Returns [.., longest list] int32, ascending, -1 behind the end.  No gradient.  Throws Error: a share outside [0, 1],
// a negative score, what does not fit.  Sources: XAttention, 2503.16428, algorithm 2; FlexPrefill, 2502.20766, with
// crossing=false for its query-aware heads.
at::Tensor select_mass(const at::Tensor& scores, const at::Tensor& share, const MassOptions& options = {});
at::Tensor select_mass(const at::Tensor& scores, double share, const MassOptions& options = {});

}  // namespace foveate::ops
