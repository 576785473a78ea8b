// Where a text falls into chunks: the boundary predictor of Dynamic Hierarchical Sparse Attention (2510.24606, v1).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "foveate/attention/learned.h"

namespace foveate::attention {

struct BoundaryOptions {
  int64_t half_window = 4;  // keys on each side of a gap that the predictor reads
  int64_t heads = 4;        // of its attention over them; divides the width of a token's keys
};

// Learned parts for keys of `width` = key heads * head dim numbers a token, heads not repeated.
std::vector<LearnedPart> boundary_parts(int64_t width, const BoundaryOptions& options);

// keys k [B, Hkv, L, D] as attention takes them (rotated; perhaps 8-bit rows) -> logits [B, L] fp32 (fp64 for fp64) of
// a boundary behind each token.  The 2 w keys around a gap (zeros outside the text) attend to each other, are normed
// and averaged on each side, l and r; an MLP reads [l, r, |l - r|, l r, cos(l, r)].  Differentiable in k and the parts.
// Throws Error: parts that are not boundary_parts(), heads that do not divide the width.
at::Tensor boundary_logits(const at::Tensor& k, const Learned& parts, const BoundaryOptions& options);

struct ChunkLimits {
  double theta = 1.1;       // logits must be larger
  int64_t nms_window = 8;   // two boundaries lie further apart
  int64_t most = 0;         // boundaries chosen at most
  int64_t half_window = 4;  // gaps with less on a side are none
  int64_t instruction = 0;  // last tokens of the text, which begin a chunk and hold no other boundary; 0: none
};

// Cuts [0, ..., L] of chunks from the logits [L] of the gaps: the best come first (of equals the earlier), each drops
// those near it.  Without a candidate: [0, L].  Of an empty text: [0].
std::vector<int64_t> choose_cuts(const at::Tensor& logits, const ChunkLimits& limits);

}  // namespace foveate::attention
