#include "foveate/train/image_set.h"

#include <ATen/ops/from_blob.h>

#include <filesystem>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/io/cache.h"
#include "foveate/io/idx.h"

namespace foveate::train {
namespace {

constexpr uint64_t kOrderStream = uint64_t{1} << 40;  // and the epoch; streams of steps lie below

io::IdxArray read_array(const std::string& folder, const std::string& name) {
  const std::string path = (std::filesystem::path(folder) / name).string();
  return io::read_idx(std::filesystem::exists(path) ? path : path + ".gz");
}

at::Tensor as_tensor(io::IdxArray& array, at::IntArrayRef shape, at::ScalarType type) {
  return at::from_blob(array.values.data(), shape, at::kByte).to(type, false, /*copy=*/true);
}

}  // namespace

ImageSet read_mnist(const std::string& name, ImagePart part) {
  const std::string folder = io::find_images(name), stem = part == ImagePart::train ? "train" : "t10k";
  io::IdxArray images = read_array(folder, stem + "-images-idx3-ubyte");
  io::IdxArray labels = read_array(folder, stem + "-labels-idx1-ubyte");
  require(images.shape.size() == 3 && labels.shape.size() == 1 && images.shape[0] == labels.shape[0] &&
              !images.values.empty(),
          "{}: images must be [N, H, W] and labels [N], got [{}] and [{}]", folder, fmt::join(images.shape, ", "),
          fmt::join(labels.shape, ", "));
  ImageSet set{as_tensor(images, {images.shape[0], 1, images.shape[1], images.shape[2]}, at::kByte),
               as_tensor(labels, labels.shape, at::kLong), 10};
  const auto most = set.labels.max().item<int64_t>();
  require(most < set.classes, "{}: labels must be 0 .. 9, got {}", folder, most);
  return set;
}

std::vector<int64_t> draw_indices(int64_t size, int64_t batch, uint64_t seed, int64_t step) {
  require(size >= 1 && batch >= 1 && step >= 0,
          "draw_indices: size and batch must be >= 1 and step >= 0, got {}, {} and {}", size, batch, step);
  std::vector<int64_t> drawn, order(static_cast<size_t>(size));
  for (int64_t at = step * batch, shuffled = -1; std::ssize(drawn) < batch; ++at) {
    if (const int64_t epoch = at / size; epoch != shuffled) {
      std::iota(order.begin(), order.end(), 0);
      Random(seed, kOrderStream + uint64_t(epoch)).shuffle(std::span(order));
      shuffled = epoch;
    }
    drawn.push_back(order[size_t(at % size)]);
  }
  return drawn;
}

}  // namespace foveate::train
