// Images in other sizes.
#pragma once

#include <ATen/core/Tensor.h>

namespace foveate::ops {

// x [B, C, H, W] of floats -> [B, C, height, width] in x's dtype (sums in fp32 or wider), as MATLAB's imresize and with
// it the literature on super-resolution makes images smaller and larger: cubic convolution with a = -0.5 (Keys 1981),
// widened by the factor where an axis shrinks, borders mirrored (b a | a b c).  Where an axis is cut by a factor that
// does not divide it, crop first: both ends are mapped to both ends.  Values may leave the range of x's.  Has a
// gradient.  Throws Error: another rank, integers, an empty axis.
at::Tensor resize_bicubic(const at::Tensor& x, int64_t height, int64_t width);

}  // namespace foveate::ops
