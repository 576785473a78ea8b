// The Local Attender: every pixel of a fine map is a mean of the coarse values around its cell, weighed by logits that
// a guide gives; no queries, no keys.   Source: UPLiFT, 2601.17950, section 3.2.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

namespace foveate::attention {

struct Offset {
  int64_t row, column;  // in cells
};

// The published sets, in the order that a checkpoint's channels have: 5 (cross), 9 (3 x 3), 13 (diamond of radius 2),
// 17 (3 x 3, and every second of the 5 x 5 around it), 25 (5 x 5).  Throws Error: another count.
std::vector<Offset> attender_offsets(int64_t count);

enum class AttenderWeights {
  softmax,
  // The value of the largest logit alone, ties to the first; no gradient of logits.  Values must be finite: those
  // around count 0 times.
  largest,
};

// logits [B, n, I H, I W], value [B, C, H, W] -> [B, C, I H, I W], as ops::weigh_offsets.
at::Tensor local_attender(const at::Tensor& logits, const at::Tensor& value, std::span<const Offset> offsets,
                          AttenderWeights weights = AttenderWeights::softmax);

}  // namespace foveate::attention
