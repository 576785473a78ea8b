// Keys and values in 8 bits: what a cache holds instead of bf16 where memory or its bandwidth is short.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// x [..., D >= 1] fp32, bf16 or fp16 -> uint8 [..., D + 2 * ceil(D / 32)]: the row's int8 codes, then a bf16 scale for
// each 32 of them; an element is code * scale.  scale >= 0: the largest |x| of a block / 127, rounded up; codes are to
// the nearest.  Error <= scale / 2.  A block with NaN or Inf becomes NaN.  Attention reads such rows as they are.
at::Tensor quantise_rows(const at::Tensor& x);

// The reverse, in `dtype` (fp32, bf16, fp16).  Throws Error: rows of a length that none has.
at::Tensor dequantise_rows(const at::Tensor& rows, at::ScalarType dtype);

inline bool is_quantised(const at::Tensor& rows) { return rows.scalar_type() == at::kByte; }

// Bytes of a quantised row of so many elements, and the reverse.
template <class Int>
Int quantised_bytes(const Int& dim) {
  return dim + (dim + 31) / 32 * 2;
}
template <class Int>
Int quantised_dim(const Int& bytes) {
  return bytes - (bytes + 33) / 34 * 2;
}
// Elements of a row, quantised or not.
inline int64_t row_dim(const at::Tensor& rows) {
  return is_quantised(rows) ? quantised_dim(rows.size(-1)) : rows.size(-1);
}

// x itself, or quantised rows in `dtype`.
inline at::Tensor widened(const at::Tensor& x, at::ScalarType dtype) {
  return is_quantised(x) ? dequantise_rows(x, dtype) : x;
}

}  // namespace foveate::ops
