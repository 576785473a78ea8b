// The one comparator of the tests, and random inputs.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include "foveate/base/random.h"

namespace foveate::test {

// |got - want| <= atol + rtol * |want|, element by element.
struct Bound {
  double atol = 0, rtol = 0;
};

// NaN and infinities must stand at the same places; every other element within its bound.  Says the worst place.
inline testing::AssertionResult same(const at::Tensor& got, const at::Tensor& want, Bound bound) {
  if (got.sizes() != want.sizes())
    return testing::AssertionFailure() << "shapes " << got.sizes() << " and " << want.sizes();
  const at::Tensor a = got.detach().to(at::kDouble).contiguous(), b = want.detach().to(at::kDouble).contiguous();
  const double *x = a.const_data_ptr<double>(), *y = b.const_data_ptr<double>();
  int64_t worst = -1, bad = 0;
  double excess = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const bool is_special = !std::isfinite(x[i]) || !std::isfinite(y[i]);
    const bool agrees = is_special ? (std::isnan(x[i]) && std::isnan(y[i])) || x[i] == y[i]
                                   : std::abs(x[i] - y[i]) <= bound.atol + bound.rtol * std::abs(y[i]);
    if (agrees) continue;
    ++bad;
    const double over = is_special ? INFINITY : std::abs(x[i] - y[i]) - bound.atol - bound.rtol * std::abs(y[i]);
    if (worst < 0 || over > excess) worst = i, excess = over;
  }
  if (bad == 0) return testing::AssertionSuccess();
  auto failure = testing::AssertionFailure() << bad << " of " << a.numel() << " elements differ, worst at [";
  int64_t rest = worst;
  std::vector<int64_t> place(size_t(a.dim()));
  for (int64_t axis = a.dim() - 1; axis >= 0; --axis) place[size_t(axis)] = rest % a.size(axis), rest /= a.size(axis);
  for (size_t i = 0; i < place.size(); ++i) failure << (i ? ", " : "") << place[i];
  return failure << "]: got " << x[worst] << ", want " << y[worst];
}

// Standard normal numbers; the same for a seed on every platform.
inline at::Tensor random_tensor(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kFloat) {
  const at::Tensor values = at::empty(shape, at::kDouble);
  Random random(seed);
  double* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) data[i] = random.normal();
  return values.to(type);
}

}  // namespace foveate::test
