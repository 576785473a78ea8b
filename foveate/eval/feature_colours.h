// Feature maps as pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

namespace foveate::eval {

// Maps [C, h, w] of floats, C >= 3, of any sizes -> [3, h, w] fp32, 0 .. 1: red, green and blue are the first three
// principal components of the cells of all maps together, so that colours of one map mean the same in the others; each
// component from its least to its largest value.  Throws Error: another shape, maps of different C, numbers that are
// not finite.
std::vector<at::Tensor> colour_features(std::span<const at::Tensor> maps);

}  // namespace foveate::eval
