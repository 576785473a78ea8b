#include "foveate/ops/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"

namespace foveate::ops {

Rotary::Rotary(int64_t dim, double base, double factor, const std::vector<double>& divisors) {
  require(dim >= 2 && dim % 2 == 0, "rotary: dim must be even and >= 2, got {}", dim);
  require(base > 0 && factor > 0, "rotary: base and factor must be > 0, got {} and {}", base, factor);
  frequency_ = at::pow(base, at::arange(0, dim, 2, at::kDouble).div_(double(dim)).neg_()).div_(factor);
  if (divisors.empty()) return;
  require(std::ssize(divisors) == dim / 2, "rotary: divisors must be {}, got {}", dim / 2, divisors.size());
  require(std::ranges::all_of(divisors, [](double d) { return d > 0 && std::isfinite(d); }),
          "rotary: divisors must be finite and > 0");
  frequency_.div_(at::tensor(divisors, at::kDouble));
}

Rotation Rotary::rotation(const at::Tensor& positions, at::ScalarType type) const {
  const at::Tensor angle = positions.to(at::kDouble).unsqueeze(1) * frequency_;
  return {angle.cos().to(type), angle.sin().to(type)};
}

Rotary Rotary::thinned(int64_t dim) const {
  const int64_t angles = frequency_.size(0);
  require(dim >= 2 && dim % 2 == 0 && angles % (dim / 2) == 0, "rotary: thinned to dims that divide {}, got {}",
          2 * angles, dim);
  Rotary thin(*this);
  thin.frequency_ = frequency_.slice(0, 0, angles, angles / (dim / 2)).contiguous();
  return thin;
}

bool Rotary::operator==(const Rotary& other) const { return frequency_.equal(other.frequency_); }

at::Tensor Rotary::rotate(const at::Tensor& x, const at::Tensor& positions) const {
  if (positions.dim() == 2) {
    if (x.size(0) == 0) return x;
    if (positions.size(0) == 1) return rotate(x, positions[0]);
    require(positions.size(0) == x.size(0), "rotary: positions must be of each of {} sequences, got {}", x.size(0),
            positions.size(0));
    std::vector<at::Tensor> parts;
    for (int64_t b = 0; b < x.size(0); ++b) parts.push_back(rotate(x.narrow(0, b, 1), positions[b]));
    return at::cat(parts);
  }
  return rotation(positions, at::promote_types(x.scalar_type(), at::kFloat)).rotate(x);
}

void Rotation::check(int64_t length, int64_t head_dim) const {
  require(head_dim >= 2 * cos.size(1), "rotary: head dim must be >= {}, got {}", 2 * cos.size(1), head_dim);
  require(length == cos.size(0), "rotary: positions must be {}, got {}", length, cos.size(0));
}

at::Tensor Rotation::rotate(const at::Tensor& x) const {
  check(x.size(2), x.size(3));
  const int64_t half = cos.size(1), dim = 2 * half;
  const at::Tensor a = x.narrow(3, 0, half).to(cos.scalar_type()), b = x.narrow(3, half, half).to(cos.scalar_type());
  std::vector<at::Tensor> parts = {(a * cos - b * sin).to(x.scalar_type()), (b * cos + a * sin).to(x.scalar_type())};
  if (x.size(3) > dim) parts.push_back(x.narrow(3, dim, x.size(3) - dim));
  return at::cat(parts, 3);
}

}  // namespace foveate::ops
