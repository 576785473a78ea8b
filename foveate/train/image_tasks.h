// What image models learn: classes, and enlarging.  A model is any function of images, so that these know no layers.
#pragma once

#include <vector>

#include "foveate/eval/image_quality.h"
#include "foveate/models/vision/enlarge.h"
#include "foveate/train/augment.h"
#include "foveate/train/photos.h"
#include "foveate/train/trainer.h"

namespace foveate::train {

using models::ImageModel;

// Cross-entropy of `model` (images [B, C, H, W] -> logits [B, classes]) from the targets of the step's batch.  Note
// `accuracy`: of the labels before mixing.  `tokens` are images.  Throws Error: logits of another shape; what
// draw_batch throws.
StepLoss classification_loss(const ImageModel& model, const ImageSet& set, const Augment& augment, int64_t batch,
                             int64_t step, uint64_t seed);

// The share of images whose label has the highest logit (the first of equal ones), without gradients, `batch` at once.
double top1(const ImageModel& model, const ImageSet& set, int64_t batch);

// Mean absolute difference of `model` (low [B, 3, h, w] -> [B, 3, scale h, scale w]) from the step's patches.  `tokens`
// are pixels of the small images.  Throws Error: an output of another shape; what draw_patches throws.
StepLoss enlarging_loss(const ImageModel& model, const std::vector<PhotoPair>& photos, const PatchOptions& options,
                        int64_t step, uint64_t seed);

struct EnlargingScore {
  std::vector<eval::ImageQuality> photos;  // of each
  eval::ImageQuality mean;
};

// luma_quality of whole photos, enlarged one by one without gradients, without as many pixels at the borders as the
// scale.  Throws Error: no photos, an output of another shape.
EnlargingScore score_enlarging(const ImageModel& model, const std::vector<PhotoPair>& photos);

// The yardstick: bicubic enlarging by a factor.
ImageModel bicubic(int64_t scale);

}  // namespace foveate::train
