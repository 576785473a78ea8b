// What layers of language models are made of: matrices, norms, activations.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"

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

// Over the last axis of x fp32; x itself where there is no norm.
at::Tensor norm(const at::Tensor& x, const Affine& w, NormKind kind, double epsilon);

at::Tensor activate(const at::Tensor& x, Activation activation);

}  // namespace foveate::models
