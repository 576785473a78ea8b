#include "foveate/train/image_tasks.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>

#include <algorithm>
#include <numeric>

#include "foveate/ops/resize.h"

namespace foveate::train {
namespace {

at::Tensor run(const ImageModel& model, const at::Tensor& images, at::IntArrayRef shape) {
  const at::Tensor out = model(images);
  require(out.sizes() == shape, "image model: output must be [{}], got [{}]", fmt::join(shape, ", "),
          fmt::join(out.sizes(), ", "));
  return out;
}

int64_t count_right(const at::Tensor& logits, const at::Tensor& labels) {
  return logits.argmax(1).eq(labels).sum().item<int64_t>();
}

at::Tensor as_images(const at::Tensor& bytes) { return bytes.unsqueeze(0).to(at::kFloat).div_(255); }

}  // namespace

StepLoss classification_loss(const ImageModel& model, const ImageSet& set, const Augment& augment, int64_t count,
                             int64_t step, uint64_t seed) {
  const ClassBatch batch = draw_batch(set, augment, count, seed, step);
  const at::Tensor logits = run(model, batch.images, {count, set.classes});
  const double accuracy = double(count_right(logits, batch.labels)) / double(count);
  return {at::cross_entropy_loss(logits, batch.targets), count, {{"accuracy", accuracy}}};
}

double top1(const ImageModel& model, const ImageSet& set, int64_t batch) {
  require(batch >= 1 && set.size() >= 1, "top1: images and batch must be >= 1, got {} and {}", set.size(), batch);
  const at::NoGradGuard no_grad;
  int64_t right = 0;
  for (int64_t first = 0; first < set.size(); first += batch) {
    std::vector<int64_t> indices(size_t(std::min(batch, set.size() - first)));
    std::iota(indices.begin(), indices.end(), first);
    const ClassBatch plain = plain_batch(set, indices);
    right += count_right(run(model, plain.images, {std::ssize(indices), set.classes}), plain.labels);
  }
  return double(right) / double(set.size());
}

StepLoss enlarging_loss(const ImageModel& model, const std::vector<PhotoPair>& photos, const PatchOptions& options,
                        int64_t step, uint64_t seed) {
  const PatchBatch batch = draw_patches(photos, options, seed, step);
  const at::Tensor out = run(model, batch.low, batch.high.sizes());
  return {(out - batch.high).abs().mean(), batch.low.size(0) * batch.low.size(2) * batch.low.size(3), {}};
}

EnlargingScore score_enlarging(const ImageModel& model, const std::vector<PhotoPair>& photos) {
  require(!photos.empty(), "score_enlarging: photos are needed, got none");
  const at::NoGradGuard no_grad;
  EnlargingScore score;
  for (const PhotoPair& photo : photos) {
    const at::Tensor high = as_images(photo.high), out = run(model, as_images(photo.low), high.sizes());
    score.photos.push_back(eval::luma_quality(out, high, photo.high.size(1) / photo.low.size(1)));
    score.mean.psnr += score.photos.back().psnr / double(photos.size());
    score.mean.ssim += score.photos.back().ssim / double(photos.size());
  }
  return score;
}

ImageModel bicubic(int64_t scale) {
  return [scale](const at::Tensor& x) { return ops::resize_bicubic(x, scale * x.size(2), scale * x.size(3)); };
}

}  // namespace foveate::train
