// Batches of images to learn classes from, changed at random.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "foveate/base/options.h"
#include "foveate/base/random.h"
#include "foveate/train/image_set.h"

namespace foveate::train {

// Defaults are those with which NAT and DiNAT were trained (Hassani & Shi, 2209.15001), but for RandAugment, which is
// left out, and random resized crops, whose place crops of padded images take, as usual for small images.
struct Augment {
  static constexpr std::string_view name = "augment";

  int64_t pad = 2;
  double flip = 0.5, jitter = 0.4, erase = 0.25, mixup = 0.8, cutmix = 1, smoothing = 0.1;

  static void fields(auto& self, auto&& visit) {
    visit("pad", self.pad, between(0, 1024), "black pixels around an image, out of which its size is cut at random");
    visit("flip", self.flip, between(0, 1), "share of images that are mirrored");
    visit("jitter", self.jitter, between(0, 1), "brightness, contrast and saturation times 1 - jitter .. 1 + jitter");
    visit("erase", self.erase, between(0, 1), "share of images in which noise takes the place of a rectangle");
    visit("mixup", self.mixup, between(0, 4), "a of Beta(a, a), by which two images are mixed; 0: never");
    visit("cutmix", self.cutmix, between(0, 4),
          "the same for the area that one image gets in the other; with both, half");
    visit("smoothing", self.smoothing, between(0, 1), "share of a target that all classes have in common");
  }
};

struct ClassBatch {
  at::Tensor images;   // [B, C, H, W] fp32, -1 .. 1 but for noise in rectangles
  at::Tensor targets;  // [B, classes] fp32, whose rows sum to 1: for at::cross_entropy_loss
  at::Tensor labels;   // [B] int64, before mixing
};

// The batch of a step, the same for the same numbers: images as draw_indices says, in this order cut, mirrored,
// jittered, scaled, erased (Zhong et al. 1708.04896), mixed with the batch in reverse (Zhang et al. 1710.09412; Yun et
// al. 1905.04899).  Throws Error: options out of range, batch < 1.
ClassBatch draw_batch(const ImageSet& set, const Augment& augment, int64_t batch, uint64_t seed, int64_t step);

// These images as they are, scaled, with hard targets: for scoring.
ClassBatch plain_batch(const ImageSet& set, std::span<const int64_t> indices);

// Of Beta(a, a).  Throws Error: a not in (0, 4], beyond which this takes long.
double draw_beta(Random& random, double a);

}  // namespace foveate::train
