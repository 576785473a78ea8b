// How near an image comes to the one it should be: PSNR and SSIM.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace foveate::eval {

// RGB [B, 3, H, W] of 0 .. 1 -> luma [B, 1, H, W] of BT.601 as video has it, 16/255 .. 235/255, in x's dtype and not
// rounded.  Throws Error: another shape.
at::Tensor luma(const at::Tensor& rgb);

// Of each image of a batch, [B] fp64: -10 log10 of the mean square of the differences of got and want [B, C, H, W],
// whose range is 1; infinite where they are equal.  `crop` pixels at every border do not count.  Throws Error: shapes
// that differ, nothing left.
at::Tensor psnr(const at::Tensor& got, const at::Tensor& want, int64_t crop = 0);

// Structural similarity (Wang et al. 2004), [B] fp64: windows of 11 x 11 under a Gaussian of deviation 1.5, which lie
// in the image as a whole; K1 0.01, K2 0.03, range 1; the mean over places and channels.  Throws Error as psnr does, or
// where fewer than 11 x 11 pixels are left.
at::Tensor ssim(const at::Tensor& got, const at::Tensor& want, int64_t crop = 0);

// What the literature on super-resolution reports: of images [1, 3, H, W] rounded to 8 bits, on the luma, without as
// many pixels at the borders as the factor of enlargement.
struct ImageQuality {
  double psnr = 0, ssim = 0;
};
ImageQuality luma_quality(const at::Tensor& got, const at::Tensor& want, int64_t crop);

}  // namespace foveate::eval
