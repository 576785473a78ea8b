// What layers of language models are made of: matrices, norms, activations.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"
#include "foveate/ops/rotary.h"

namespace foveate::models {

// A matrix [out, in] and its bias [out] in the compute dtype, or a norm's [width] in fp32; undefined where the
// architecture has none.  A quantised matrix may stay packed instead.
struct Affine {
  at::Tensor weight, bias;
  Packed packed = nullptr;
  bool defined() const { return weight.defined() || packed; }
};

// x [..., in] -> [..., out] in x's dtype.
at::Tensor linear(const at::Tensor& x, const Affine& w);
// One result for each matrix; packed ones are read together.
std::vector<at::Tensor> linear(const at::Tensor& x, std::initializer_list<const Affine*> matrices);

struct NormRule {
  NormKind kind;
  double epsilon;
};
// Over the last axis of x fp32; x itself where there is no norm.
at::Tensor norm(const at::Tensor& x, const Affine& w, const NormRule& rule);

at::Tensor activate(const at::Tensor& x, Activation activation);

// What follows is one pass over memory where no gradients are recorded (ops/fused.h).

// The residual stream x [B, L, width] fp32 takes in norm(branch), where there is a branch, and the next matrices read
// norm(x) as `type`, which is returned.  Without gradients x changes in place.
at::Tensor take_in(at::Tensor& x, const at::Tensor& branch, const Affine& branch_norm, const Affine& next_norm,
                   const NormRule& rule, at::ScalarType type);

// rows [B, L, heads * D] -> [B, heads, L, D] in the same dtype, each head normed and then rotated (null: not).
at::Tensor rotated_heads(const at::Tensor& rows, int64_t heads, const Affine& head_norm, const NormRule& rule,
                         const ops::Rotation* rotation);

// activate(gate) * up, or activate(gate) where up is undefined.
at::Tensor gated(const at::Tensor& gate, const at::Tensor& up, Activation activation);

}  // namespace foveate::models
