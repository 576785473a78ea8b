// Rows of 8-bit floats (e4m3) with a scale each, and the layouts in which DeepSeek's models cache them.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

struct Float8Options {
  double least = 1e-4 / 448;  // a scale is at least so much
  bool power_of_two = false;  // scales are rounded up to a power of two (ue8m0)
};

struct Float8Rows {
  at::Tensor codes;   // [..., D] float8_e4m3fn
  at::Tensor scales;  // [...] fp32: an element is code * scale

  at::Tensor values() const;  // [..., D] fp32
};

// x [..., D >= 1] floating point; scale = max(largest |x| of the row / 448, least), codes to the nearest, ties to even.
// A row with NaN or Inf becomes NaN.  No gradient.  Source: DeepSeek-V3.2-Exp, inference/kernel.py.
Float8Rows quantise_float8(const at::Tensor& x, const Float8Options& options = {});

// x [..., D] times the orthonormal Hadamard matrix (Sylvester's order) of D, a power of two: products of rows stay,
// outliers are spread over all dims.  Differentiable.  Throws Error: D not a power of two.
at::Tensor hadamard(const at::Tensor& x);

// A page of an index cache: 64 keys as [64][D] e4m3 and then [64] fp32 scales, D + 4 bytes a key.
// rows of N keys -> uint8 [ceil(N / 64), 64 * (D + 4)], zeros behind the last; and back.  Throws Error: sizes that do
// not fit.
at::Tensor to_index_pages(const Float8Rows& rows);
Float8Rows from_index_pages(const at::Tensor& pages, int64_t keys);

// Rows of a latent cache (multi-head latent attention) in 656 bytes: 512 e4m3 in four tiles of 128, their four fp32
// scales (powers of two), 64 bf16 rotated dims.  kv [..., 576] floating point <-> uint8 [..., 656]; the reverse gives
// `dtype`.  Source: FlashMLA, tests/quant.py.
at::Tensor quantise_latent(const at::Tensor& kv);
at::Tensor dequantise_latent(const at::Tensor& rows, at::ScalarType dtype);

}  // namespace foveate::ops
