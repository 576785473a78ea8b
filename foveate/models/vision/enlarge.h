// Large images through models that enlarge small ones: in tiles, and as the mean over the ways in which an image lies.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "foveate/base/options.h"

namespace foveate::models {

using ImageModel = std::function<at::Tensor(const at::Tensor& images)>;

struct Tiling {
  static constexpr std::string_view name = "tiles";

  int64_t tile = 96, overlap = 16;

  static void fields(auto& self, auto&& visit) {
    visit("tile", self.tile, between(0, 1 << 20), "pixels of a side of what is enlarged at once; 0: the whole image");
    visit("overlap", self.overlap, between(0, 1 << 19), "pixels that neighbouring tiles share, up to half of one");
  }
};

// image [B, C, H, W] -> [B, C, scale H, scale W], by a model that does the same.  Tiles are of one size and evenly
// spaced, share `overlap` pixels or more, and end at the image's borders.  Where they meet, the outer quarter of the
// overlap is left out, and one fades into the other in the middle half: what depends on up to a quarter of the overlap
// around a pixel is as of the whole image.  observe(tiles done, all) is called for each and may throw to stop.
// Throws Error: options, an output of another shape.
at::Tensor enlarge_in_tiles(const ImageModel& model, const at::Tensor& image, int64_t scale, const Tiling& tiling,
                            const std::function<void(int64_t done, int64_t all)>& observe = {});

// The mean of the model's results over an image mirrored and turned in the eight ways in which a square lies on itself,
// each brought back (the "self-ensemble" of Lim et al., 1707.02921).  Eight times the cost.
ImageModel self_ensemble(ImageModel model);

}  // namespace foveate::models
