// How far a result is from what it should be.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::eval {

// |got - want| / |want| over all numbers, in fp32; infinite where one of them is NaN, so that no bound lets it through.
double relative_error(const at::Tensor& got, const at::Tensor& want);

}  // namespace foveate::eval
