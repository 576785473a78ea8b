// Images as tensors and back.
#pragma once

#include <ATen/core/Tensor.h>

#include "foveate/io/image.h"

namespace foveate::eval {

// [1, channels, height, width] fp32, 0 .. 1.
at::Tensor to_tensor(const io::Image& image);

// x [1, C, H, W] or [C, H, W] of floats, C 1 or 3: clamped to 0 .. 1 and rounded to 8 bits.  Throws Error: another
// shape, NaN.
io::Image to_image(const at::Tensor& x);

// The same numbers as to_tensor(to_image(x)), of any shape.
at::Tensor round_to_8_bits(const at::Tensor& x);

}  // namespace foveate::eval
