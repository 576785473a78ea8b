#include "foveate/models/language/affine.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>

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

at::Tensor norm(const at::Tensor& x, const Affine& w, NormKind kind, double epsilon) {
  if (!w.defined()) return x;
  if (kind == NormKind::layer) return at::layer_norm(x, {x.size(-1)}, w.weight, w.bias, epsilon);
  return at::rms_norm(x, {x.size(-1)}, w.weight, epsilon);
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
  if (activation == Activation::silu) return at::silu(x);
  return at::gelu(x, activation == Activation::gelu ? "none" : "tanh");
}

}  // namespace foveate::models
