// Photographs, and patches of them to learn super-resolution from.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "foveate/base/options.h"

namespace foveate::train {

// An image and its reduced form, as training for super-resolution has them.
struct PhotoPair {
  std::string name;
  at::Tensor high, low;  // [3, scale h, scale w] and [3, h, w], uint8
};

// `image` [1, 3, H, W] of 0 .. 1, cut at the bottom and the right to multiples of the scale, and reduced by it
// (ops/resize.h); both rounded to 8 bits.  Throws Error: scale < 1, an image smaller than it.
PhotoPair make_pair(std::string name, const at::Tensor& image, int64_t scale);

// All files .png, .jpg and .jpeg of a folder or a fetched set ("photos"), in the order of their names.  JPEG's are
// first reduced to a half, which takes the marks of compression away.  Throws Error: no such files, a broken one, or
// one too small.
std::vector<PhotoPair> read_photos(const std::string& folder, int64_t scale);

struct PatchOptions {
  static constexpr std::string_view name = "patches";

  int64_t batch = 16, size = 48;

  static void fields(auto& self, auto&& visit) {
    visit("batch", self.batch, between(1, 1 << 20), "patches of a step");
    visit("size", self.size, between(1, 1 << 14), "pixels of a side of a patch before it is enlarged");
  }
};

struct PatchBatch {
  at::Tensor low;   // [B, 3, size, size] fp32, 0 .. 1
  at::Tensor high;  // [B, 3, scale size, scale size]
};

// The patches of a step, the same for the same numbers: of a photo and a place at random, mirrored and turned in one of
// the eight ways.  Throws Error: no photos, one smaller than a patch, photos of several scales.
PatchBatch draw_patches(const std::vector<PhotoPair>& photos, const PatchOptions& options, uint64_t seed, int64_t step);

}  // namespace foveate::train
