#include "foveate/train/augment.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>

namespace foveate::train {
namespace {

// One image of a set and where it goes.
struct Image {
  int64_t channels, height, width;
  float* pixels;  // [channels, height, width], 0 .. 1 until it is scaled

  int64_t area() const { return height * width; }
};

// A window of the padded image, mirrored or not.
void cut(const Image& image, const uint8_t* source, const Augment& augment, Random& random) {
  const auto shift = [&] { return int64_t(random.below(uint64_t(2 * augment.pad + 1))) - augment.pad; };
  const int64_t down = shift(), right = shift();
  const bool is_mirrored = random.uniform() < augment.flip;
  float* target = image.pixels;
  for (int64_t c = 0; c < image.channels; ++c)
    for (int64_t y = down; y < image.height + down; ++y)
      for (int64_t x = 0; x < image.width; ++x) {
        const int64_t column = (is_mirrored ? image.width - 1 - x : x) + right;
        const bool is_inside = y >= 0 && y < image.height && column >= 0 && column < image.width;
        *target++ = is_inside ? float(source[(c * image.height + y) * image.width + column]) / 255 : 0;
      }
}

float grey(const Image& image, int64_t pixel) {
  const float* p = image.pixels + pixel;
  return image.channels == 3 ? 0.299f * p[0] + 0.587f * p[image.area()] + 0.114f * p[2 * image.area()] : *p;
}

// Towards `rest` where the factor is < 1, away from it where it is > 1.
void blend(float& value, float rest, float factor) { value = std::clamp(rest + factor * (value - rest), 0.0f, 1.0f); }

void jitter(const Image& image, const Augment& augment, Random& random) {
  const auto factor = [&] { return float(1 + augment.jitter * (2 * random.uniform() - 1)); };
  const float brightness = factor(), contrast = factor(), saturation = factor();
  const std::span<float> all(image.pixels, size_t(image.channels * image.area()));
  for (float& value : all) blend(value, 0, brightness);
  double mean = 0;
  for (int64_t i = 0; i < image.area(); ++i) mean += grey(image, i);
  mean /= double(image.area());
  for (float& value : all) blend(value, float(mean), contrast);
  if (image.channels != 3) return;
  for (int64_t i = 0; i < image.area(); ++i) {
    const float rest = grey(image, i);
    for (int64_t c = 0; c < 3; ++c) blend(image.pixels[c * image.area() + i], rest, saturation);
  }
}

void scale(std::span<float> pixels) {
  for (float& value : pixels) value = 2 * value - 1;
}

// Normal noise in a rectangle of 2 % .. 1/3 of the image, sides at most as 3 : 10.
void erase(const Image& image, Random& random) {
  constexpr double kLeast = 0.02, kMost = 1.0 / 3, kNarrowest = 0.3;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = double(image.area()) * (kLeast + (kMost - kLeast) * random.uniform());
    const double aspect = std::exp(std::log(kNarrowest) * (2 * random.uniform() - 1));
    const int64_t h = std::llround(std::sqrt(area * aspect)), w = std::llround(std::sqrt(area / aspect));
    if (h < 1 || w < 1 || h >= image.height || w >= image.width) continue;
    const auto top = int64_t(random.below(uint64_t(image.height - h + 1)));
    const auto left = int64_t(random.below(uint64_t(image.width - w + 1)));
    for (int64_t c = 0; c < image.channels; ++c)
      for (int64_t y = top; y < top + h; ++y)
        for (int64_t x = left; x < left + w; ++x)
          image.pixels[(c * image.height + y) * image.width + x] = float(random.normal());
    return;
  }
}

at::Tensor mix(const at::Tensor& x, double share) { return x * share + x.flip({0}) * (1 - share); }

// A rectangle of about `share` of the image around a place, cut off at the borders, comes from the other image.
// Returns the share of what stays.
double paste(const at::Tensor& images, double share, Random& random) {
  const auto side = [&](int64_t length) {
    const auto half = int64_t(double(length) * std::sqrt(share)) / 2, at = int64_t(random.below(uint64_t(length)));
    return std::pair(std::max<int64_t>(at - half, 0), std::min(at + half, length));
  };
  const int64_t height = images.size(2), width = images.size(3);
  const auto [top, bottom] = side(height);
  const auto [left, right] = side(width);
  const auto box = [&, top = top, bottom = bottom, left = left, right = right](const at::Tensor& x) {
    return x.slice(2, top, bottom).slice(3, left, right);
  };
  box(images).copy_(box(images.flip({0})));
  return 1 - double((bottom - top) * (right - left)) / double(height * width);
}

void mix_batch(ClassBatch& batch, const Augment& augment, Random& random) {
  if (augment.mixup == 0 && augment.cutmix == 0) return;
  const bool has_both = augment.mixup > 0 && augment.cutmix > 0;
  const bool is_cut = has_both ? random.uniform() < 0.5 : augment.cutmix > 0;
  double share = draw_beta(random, is_cut ? augment.cutmix : augment.mixup);
  if (is_cut)
    share = paste(batch.images, 1 - share, random);
  else
    batch.images = mix(batch.images, share);
  batch.targets = mix(batch.targets, share);
}

// Empty images, and the labels and targets of these.
ClassBatch make_batch(const ImageSet& set, std::span<const int64_t> indices, double smoothing) {
  const auto count = std::ssize(indices);
  ClassBatch batch{at::empty({count, set.images.size(1), set.images.size(2), set.images.size(3)}, at::kFloat),
                   at::full({count, set.classes}, smoothing / double(set.classes), at::kFloat),
                   at::empty({count}, at::kLong)};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = set.labels.const_data_ptr<int64_t>()[indices[size_t(i)]];
    batch.labels.mutable_data_ptr<int64_t>()[i] = label;
    batch.targets.mutable_data_ptr<float>()[i * set.classes + label] += float(1 - smoothing);
  }
  return batch;
}

}  // namespace

double draw_beta(Random& random, double a) {  // Joehnk's rule, by logarithms: powers of 1 / a vanish where a is small
  require(a > 0 && a <= 4, "draw_beta: a must be in (0, 4], got {}", a);
  for (;;) {
    const double x = std::log(1 - random.uniform()) / a, y = std::log(1 - random.uniform()) / a;
    const double most = std::max(x, y);
    if (most + std::log1p(std::exp(std::min(x, y) - most)) <= 0) return 1 / (1 + std::exp(y - x));
  }
}

ClassBatch draw_batch(const ImageSet& set, const Augment& augment, int64_t count, uint64_t seed, int64_t step) {
  check_options(augment);
  const std::vector<int64_t> indices = draw_indices(set.size(), count, seed, step);
  ClassBatch batch = make_batch(set, indices, augment.smoothing);
  Random random(seed, uint64_t(step));
  const int64_t numbers = batch.images.stride(0);
  for (int64_t i = 0; i < count; ++i) {
    const Image image{batch.images.size(1), batch.images.size(2), batch.images.size(3),
                      batch.images.mutable_data_ptr<float>() + i * numbers};
    cut(image, set.images.const_data_ptr<uint8_t>() + indices[size_t(i)] * numbers, augment, random);
    if (augment.jitter > 0) jitter(image, augment, random);
    scale({image.pixels, size_t(numbers)});
    if (random.uniform() < augment.erase) erase(image, random);
  }
  mix_batch(batch, augment, random);
  return batch;
}

ClassBatch plain_batch(const ImageSet& set, std::span<const int64_t> indices) {
  ClassBatch batch = make_batch(set, indices, 0);
  for (size_t i = 0; i < indices.size(); ++i) batch.images[int64_t(i)].copy_(set.images[indices[i]]);
  batch.images.div_(127.5).sub_(1);
  return batch;
}

}  // namespace foveate::train
