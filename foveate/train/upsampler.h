// UPLiFT learns to make the features of a frozen backbone finer: those of a reduced image are to become those that the
// backbone gives of the image itself (2601.17950, section 3.3).
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/models/vision/uplift.h"
#include "foveate/train/backbone.h"
#include "foveate/train/image_set.h"
#include "foveate/train/trainer.h"

namespace foveate::train {

// What it learns from are mosaics of a set's images: sets of small images have no large ones.
struct UpsamplerModel {
  static constexpr std::string_view name = "upsampler";

  enum class Difference { squares, magnitudes, none };
  friend constexpr auto enum_names(Difference) {
    return std::array<std::string_view, 3>{"squares", "magnitudes", "none"};
  }

  int64_t batch = 8, doublings = 2, image = 128, tiles = 2, width = 32, offsets = 17;
  Difference difference = Difference::squares;
  double cosine = 1;
  bool deepest = false;

  static void fields(auto& self, auto&& visit) {
    visit("batch", self.batch, between(1, 1 << 16), "mosaics of a step");
    visit("doublings", self.doublings, between(1, 6),
          "most doublings; a step learns from the mosaic reduced by 2, by 4 and so on up to this power");
    visit("image", self.image, between(2, 1 << 14), "pixels of a mosaic's side");
    visit("tiles", self.tiles, between(1, 64), "images of a mosaic's side");
    visit("width", self.width, between(8, 1024), "channels of the decoder; 64 as published. A multiple of 8");
    visit("offsets", self.offsets, between(0, 25),
          "cells whose features a pixel mixes: 5, 9, 13, 17 or 25; 0: new features by a convolution, as LiFT");
    visit("difference", self.difference, any(), "whose mean is learned from");
    visit("cosine", self.cosine, between(0, 1000), "weight of 1 - cosine beside it");
    visit("deepest", self.deepest, any(), "learn from the most doublings alone");
  }
  // Throws Error: options out of range, a width that is no multiple of 8, nothing to learn from.
  models::UpliftConfig config(const Backbone& backbone) const;
};

// How near features come to the true ones, means over all cells of all images.
struct Closeness {
  double cosine = 0, square = 0;  // of directions; of differences
};
struct UpsamplingScore {
  Closeness uplift, bilinear, nearest;
};

class Upsampler {
 public:
  // Throws Error: as config(); a mosaic whose side is no multiple of the tiles, or of the cells of the most reduced
  // one.
  Upsampler(const UpsamplerModel& model, Backbone backbone, uint64_t seed);

  ParameterMap parameters() const;
  TensorMap buffers() const;                           // of batch norms
  std::map<std::string, std::string> subject() const;  // what identifies the run beside the trainer's options
  // For n = 1 .. doublings (of `deepest` the last alone) the mosaic reduced by 2^n guides n doublings of its features,
  // each of which is compared with the features of the mosaic at that size.  Notes: cosines of the last doubling, and
  // of bilinear features.  `tokens` are mosaics.
  StepLoss loss(const ImageSet& set, int64_t step, uint64_t seed) const;
  // Of each doubling, from the most reduced mosaic on: mosaics of the set's first images, in their order, at most
  // `mosaics`.  Throws Error: fewer images than a mosaic has.
  std::vector<UpsamplingScore> score(const ImageSet& set, int64_t mosaics) const;
  const models::Uplift& net() const { return net_; }
  // Weights with what load_upsampler needs to know.  Throws Error: a path that is not writable.
  void save(const std::string& path) const;

 private:
  // Of the mosaic as it is, then reduced by 2, by 4 ...
  struct Pyramid {
    std::vector<at::Tensor> images, features;
  };
  Pyramid pyramid(const at::Tensor& mosaics) const;

  UpsamplerModel model_;
  Backbone backbone_;
  models::Uplift net_;
};

// Weights that Upsampler::save wrote, for inference.  Throws Error: weights of something else, or trained with another
// backbone; whatever else is wrong with the file.
models::Uplift load_upsampler(const std::string& path, const Backbone& backbone);

// The yardstick: features [B, C, h, w] -> [B, C, 2^doublings h, 2^doublings w].
at::Tensor upsample_bilinear(const at::Tensor& features, int64_t doublings);

// Mosaics of images [B tiles^2, C, h, w] uint8, row by row -> [B, 3, side, side] fp32, -1 .. 1; images are resized,
// grey ones get three equal channels.
at::Tensor make_mosaics(const at::Tensor& images, int64_t tiles, int64_t side);

}  // namespace foveate::train
