// What a decoder layer does between its matrix products, each in one pass over memory and with one allocation.  Sums
// and products in fp32, one rounding where the plain form (models/language/affine.cpp) rounds.  No gradients.  Tensors
// are fp32 or bf16, with unit last stride or else copied; norms over the last axis are y * weight / sqrt(mean(y^2) +
// epsilon), and y itself where the weight is undefined; the bits do not depend on the number of threads nor on other
// rows.
#pragma once

#include <ATen/core/Tensor.h>

#include "foveate/ops/rotary.h"

namespace foveate::ops {

// Whether they can run: no gradients are recorded, and FOVEATE_BACKEND is not "definition".
bool can_fuse();

struct RmsNorms {
  at::Tensor branch, next;  // weights [width] fp32, or undefined
  double epsilon = 0;
};

// x [..., width] fp32, contiguous: x += norm(branch), where branch [..., width] is defined; -> norm(x) in `type`.
at::Tensor take_in(at::Tensor& x, const at::Tensor& branch, const RmsNorms& norms, at::ScalarType type);

// rows [B, L, heads * D] -> [B, heads, L, D], each head normed by `norm` [D] and rotated unless null; contiguous.
at::Tensor rotated_heads(const at::Tensor& rows, int64_t heads, const at::Tensor& norm, double epsilon,
                         const Rotation* rotation);

// x [B, H, L, D] and places [B, H, L, N] int64 -> [B, H, L, N, D]: each row once for each of its places, rotated by
// that row of the rotation.
at::Tensor rotated_for_each(const at::Tensor& x, const at::Tensor& places, const Rotation& rotation);

enum class Gate { silu, gelu_tanh };
// act(gate) * up, or act(gate) where up is undefined; any two of a shape.
at::Tensor gated(const at::Tensor& gate, const at::Tensor& up, Gate activation);

}  // namespace foveate::ops
