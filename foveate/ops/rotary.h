// Rotary position embedding in the rotate-half form (Su et al., 2104.09864; the layout of Hugging Face checkpoints).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace foveate::ops {

// cos and sin of some positions: made once for q and k of all layers with the same angles.
struct Rotation {
  at::Tensor cos, sin;  // [L, dim / 2], in the type of the products

  // x [B, H, L, D >= dim] -> the same shape and dtype; channels beyond dim pass.  Throws Error where they do not fit.
  at::Tensor rotate(const at::Tensor& x) const;
  void check(int64_t length, int64_t head_dim) const;  // throws that Error
};

class Rotary {
 public:
  // Rotates the first `dim` channels (even) with angles position * base^(-2i/dim) / factor / divisors[i]
  // (divisors: dim / 2, or empty for 1).  Throws Error: dim odd or < 2, anything not > 0, another count of divisors.
  Rotary(int64_t dim, double base, double factor = 1, const std::vector<double>& divisors = {});

  // x [B, H, L, D >= dim], positions [L], [1, L] or [B, L] int64 -> the same shape and dtype; angles in fp64, products
  // in fp32 or wider. Rotations add up: rotating by p and then by d is rotating by p + d, so a key or query can be
  // moved afterwards.
  at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions) const;
  // positions [L] int64; angles in fp64, their cos and sin rounded to `type`.
  Rotation rotation(const at::Tensor& positions, at::ScalarType type) const;

  int64_t dim() const { return 2 * frequency_.size(0); }

  // Rotates the first `dim` channels by every so manieth of the angles, from the fastest to the slowest.  Throws Error:
  // dim / 2 that does not divide the angles.
  Rotary thinned(int64_t dim) const;

  bool operator==(const Rotary& other) const;  // the same angles

 private:
  at::Tensor frequency_;  // [dim / 2] fp64
};

}  // namespace foveate::ops
