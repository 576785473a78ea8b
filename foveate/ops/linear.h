// The matrix product of linear layers, in the arithmetic that this machine is fast in.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "foveate/kernels/packed.h"

namespace foveate::ops {

// x [..., in] times weight [out, in] transposed, plus bias [out] if defined -> [..., out] in x's dtype, summed in fp32.
// Where the machine multiplies bf16 slower than fp32 (no AVX512-BF16 or AMX, or one at half rate), many rows are
// multiplied in fp32 and rounded once, which is no less exact.  Differentiable.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

// The same with a quantised weight that stays packed: -> [..., out] in x's dtype (fp32 or bf16).  Few rows read the
// weight as it is, its values exact; many rows multiply with parts of it that are dequantised to x's dtype.  fp32 rows
// keep at least 16 bits.  Throws Error: x [..., in] that does not fit, another dtype, x that needs a gradient.
at::Tensor linear(const at::Tensor& x, const kernels::PackedMatrix& weight, const at::Tensor& bias = {});

// The same for several weights that read the same x: few rows wake the threads once, many rows are one product, of
// which each result is a part (rows of it are not contiguous).
struct PackedAffine {
  const kernels::PackedMatrix* weight;
  at::Tensor bias;
};
std::vector<at::Tensor> linear(const at::Tensor& x, std::span<const PackedAffine> weights);

// Rows `ids` (int64, any shape, in [0, out)) of a packed weight, fp32 [..., in]: an embedding.
at::Tensor packed_rows(const kernels::PackedMatrix& weight, const at::Tensor& ids);

// Whether bf16 products of many rows run faster than fp32 ones here.  Measured once, at the first call (a few
// milliseconds); FOVEATE_PRODUCTS=bf16|fp32 decides instead.  Throws Error: another value of it.
bool prefers_bf16_products();

}  // namespace foveate::ops
