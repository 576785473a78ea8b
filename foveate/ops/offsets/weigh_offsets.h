// Values at fixed offsets of a cell, weighed by given logits: attention without queries and keys (Local Attender).
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// out[b, c, p, q] = sum over k of softmax_k(logits[b, :, p, q]) * value[b, c, clamp(p / I + rows[k], 0, H - 1),
//                                                                             clamp(q / I + columns[k], 0, W - 1)]
// value [B, C, H, W], logits [B, n, I H, I W] with one whole I >= 1 for both axes, both floating point of any strides;
// n offsets (rows[k], columns[k]) in cells, >= 1 of them, any integers: those that leave the grid stop at its border
// and keep weights of their own.  Returns [B, C, I H, I W] of value's dtype, channels last in memory; softmax and sums
// in fp32 (fp64 for fp64). Gradients of value and logits, the same bits on any number of threads.  Extra memory:
// weights as large as the logits, and value in channels last; nothing n times as large as the output, forward or
// backward. Throws Error: shapes that do not fit.   Source: UPLiFT, 2601.17950, section 3.
at::Tensor weigh_offsets(const at::Tensor& value, const at::Tensor& logits, at::IntArrayRef rows,
                         at::IntArrayRef columns);

}  // namespace foveate::ops
