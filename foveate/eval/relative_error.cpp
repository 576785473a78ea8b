#include "foveate/eval/relative_error.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace foveate::eval {

double relative_error(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor a = got.to(at::kFloat), b = want.to(at::kFloat);
  const double of_difference = (a - b).square().sum().item<double>(), of_want = b.square().sum().item<double>();
  const double error = std::sqrt(of_difference / std::max(of_want, 1e-30));
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

}  // namespace foveate::eval
