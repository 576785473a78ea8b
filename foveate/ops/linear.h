// The matrix product of linear layers, in the arithmetic that this machine is fast in.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// x [..., in] times weight [out, in] transposed, plus bias [out] if defined -> [..., out] in x's dtype, summed in fp32.
// Where the machine multiplies bf16 slower than fp32 (no AVX512-BF16 or AMX, or one at half rate), many rows are
// multiplied in fp32 and rounded once, which is no less exact.  Differentiable.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

// Whether bf16 products of many rows run faster than fp32 ones here.  Measured once, at the first call (a few
// milliseconds); FOVEATE_PRODUCTS=bf16|fp32 decides instead.  Throws Error: another value of it.
bool prefers_bf16_products();

}  // namespace foveate::ops
