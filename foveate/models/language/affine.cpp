#include "foveate/models/language/affine.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>

#include "foveate/ops/fused.h"
#include "foveate/ops/linear.h"

namespace foveate::models {

at::Tensor linear(const at::Tensor& x, const Affine& w) {
  return w.packed ? ops::linear(x, *w.packed, w.bias) : ops::linear(x, w.weight, w.bias);
}

std::vector<at::Tensor> linear(const at::Tensor& x, std::initializer_list<const Affine*> matrices) {
  std::vector<ops::PackedAffine> packed;
  std::vector<at::Tensor> results;
  for (const Affine* w : matrices)
    if (w->packed) packed.push_back({w->packed.get(), w->bias});
  if (packed.size() == matrices.size()) return ops::linear(x, packed);
  for (const Affine* w : matrices) results.push_back(linear(x, *w));
  return results;
}

at::Tensor norm(const at::Tensor& x, const Affine& w, const NormRule& rule) {
  if (!w.defined()) return x;
  if (rule.kind == NormKind::layer) return at::layer_norm(x, {x.size(-1)}, w.weight, w.bias, rule.epsilon);
  return at::rms_norm(x, {x.size(-1)}, w.weight, rule.epsilon);
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
  if (activation == Activation::silu) return at::silu(x);
  return at::gelu(x, activation == Activation::gelu ? "none" : "tanh");
}

at::Tensor take_in(at::Tensor& x, const at::Tensor& branch, const Affine& branch_norm, const Affine& next_norm,
                   const NormRule& rule, at::ScalarType type) {
  if (ops::can_fuse() && rule.kind == NormKind::rms)
    return ops::take_in(x, branch, {branch_norm.weight, next_norm.weight, rule.epsilon}, type);
  if (branch.defined()) x = x + norm(branch.to(at::kFloat), branch_norm, rule);
  return norm(x, next_norm, rule).to(type);
}

at::Tensor rotated_heads(const at::Tensor& rows, int64_t heads, const Affine& head_norm, const NormRule& rule,
                         const ops::Rotation* rotation) {
  if (ops::can_fuse() && (rule.kind == NormKind::rms || !head_norm.defined()))
    return ops::rotated_heads(rows, heads, head_norm.weight, rule.epsilon, rotation);
  at::Tensor split = rows.unflatten(2, {heads, rows.size(2) / heads}).transpose(1, 2);
  if (head_norm.defined()) split = norm(split.to(at::kFloat), head_norm, rule);
  return (rotation ? rotation->rotate(split) : split).to(rows.scalar_type());
}

at::Tensor gated(const at::Tensor& gate, const at::Tensor& up, Activation activation) {
  if (ops::can_fuse() && activation != Activation::gelu)
    return ops::gated(gate, up, activation == Activation::silu ? ops::Gate::silu : ops::Gate::gelu_tanh);
  const at::Tensor active = activate(gate, activation);
  return up.defined() ? active * up : active;
}

}  // namespace foveate::models
