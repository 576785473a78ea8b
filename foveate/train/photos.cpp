#include "foveate/train/photos.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <filesystem>

#include "foveate/base/random.h"
#include "foveate/eval/image_tensor.h"
#include "foveate/io/cache.h"
#include "foveate/io/image.h"
#include "foveate/ops/resize.h"

namespace foveate::train {
namespace {

bool is_jpeg_name(const std::filesystem::path& path) {
  return path.extension() == ".jpg" || path.extension() == ".jpeg";
}

std::vector<std::filesystem::path> list_images(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".png" || is_jpeg_name(entry.path())) paths.push_back(entry.path());
  require(!paths.empty(), "{}: must have files .png, .jpg or .jpeg, got none", folder);
  std::ranges::sort(paths);
  return paths;
}

at::Tensor as_bytes(const at::Tensor& x) { return x.clamp(0, 1).mul_(255).round_().to(at::kByte); }

// One of the eight ways in which a square lies on itself.
at::Tensor turned(at::Tensor x, uint64_t way) {
  if (way & 1) x = x.flip({2});
  if (way & 2) x = x.flip({1});
  return way & 4 ? x.transpose(1, 2) : x;
}

}  // namespace

PhotoPair make_pair(std::string name, const at::Tensor& image, int64_t scale) {
  require(scale >= 1 && image.dim() == 4 && image.size(0) == 1 && image.size(1) == 3 && image.size(2) >= scale &&
              image.size(3) >= scale,
          "{}: the image must be [1, 3, H, W], H and W >= scale >= 1, got [{}] and scale {}", name,
          fmt::join(image.sizes(), ", "), scale);
  const int64_t h = image.size(2) / scale, w = image.size(3) / scale;
  const at::Tensor high = as_bytes(image.slice(2, 0, scale * h).slice(3, 0, scale * w));
  const at::Tensor low = as_bytes(ops::resize_bicubic(high.to(at::kFloat).div_(255), h, w));
  return {std::move(name), high[0], low[0]};
}

std::vector<PhotoPair> read_photos(const std::string& name, int64_t scale) {
  const at::NoGradGuard no_grad;
  const std::string folder = io::find_images(name);
  std::vector<PhotoPair> photos;
  for (const auto& path : list_images(folder)) {
    at::Tensor image = eval::to_tensor(io::read_image(path.string()));
    if (is_jpeg_name(path)) {
      require(image.size(2) > 1 && image.size(3) > 1, "{}: must be 2 x 2 pixels or more", path.string());
      image = image.slice(2, 0, image.size(2) / 2 * 2).slice(3, 0, image.size(3) / 2 * 2);
      image = ops::resize_bicubic(image, image.size(2) / 2, image.size(3) / 2);
    }
    photos.push_back(make_pair(path.string(), image, scale));
  }
  return photos;
}

PatchBatch draw_patches(const std::vector<PhotoPair>& photos, const PatchOptions& options, uint64_t seed,
                        int64_t step) {
  check_options(options);
  require(!photos.empty(), "patches: photos are needed, got none");
  const int64_t scale = photos[0].high.size(1) / photos[0].low.size(1);
  for (const PhotoPair& photo : photos) {
    require(photo.low.size(1) >= options.size && photo.low.size(2) >= options.size,
            "{}: must be {} x {} pixels or more when reduced, got {} x {}", photo.name, options.size, options.size,
            photo.low.size(1), photo.low.size(2));
    require(photo.high.size(1) == scale * photo.low.size(1), "{}: scale must be {} as of the first photo", photo.name,
            scale);
  }
  Random random(seed, uint64_t(step));
  std::vector<at::Tensor> low, high;
  for (int64_t i = 0; i < options.batch; ++i) {
    const PhotoPair& photo = photos[random.below(photos.size())];
    const auto place = [&](int64_t axis) {
      return int64_t(random.below(uint64_t(photo.low.size(axis) - options.size + 1)));
    };
    const int64_t top = place(1), left = place(2);
    const uint64_t way = random.below(8);
    const auto patch = [&](const at::Tensor& x, int64_t times) {
      const int64_t size = times * options.size;
      return turned(x.narrow(1, times * top, size).narrow(2, times * left, size), way);
    };
    low.push_back(patch(photo.low, 1));
    high.push_back(patch(photo.high, scale));
  }
  return {at::stack(low).to(at::kFloat).div_(255), at::stack(high).to(at::kFloat).div_(255)};
}

}  // namespace foveate::train
