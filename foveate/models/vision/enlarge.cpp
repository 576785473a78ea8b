#include "foveate/models/vision/enlarge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

using at::Tensor;

// The tiles along an axis.
struct TileAxis {
  int64_t pixels, tile, overlap, scale;
  std::vector<int64_t> starts = {0};

  TileAxis(int64_t pixels, const Tiling& tiling, int64_t scale)
      : pixels(pixels), tile(pixels), overlap(tiling.overlap), scale(scale) {
    if (tiling.tile == 0 || pixels <= tiling.tile) return;
    tile = tiling.tile;
    const int64_t step = tile - overlap, last = (pixels - tile + step - 1) / step;  // of the tiles
    for (int64_t i = 1; i <= last; ++i) starts.push_back(i * (pixels - tile) / last);
  }

  // How much each enlarged pixel of a tile counts: from 0 to 1 over the middle half of an overlap.
  Tensor weights(size_t i) const {
    const Tensor places = at::arange(scale * tile, at::kFloat).add(0.5);
    const double half = 0.5 * double(scale * overlap);  // where it is 0, all count 1
    const auto fade = [&](const Tensor& from_edge) { return (from_edge / half - 0.5).clamp(0, 1); };
    Tensor all = at::ones({scale * tile}, at::kFloat);
    if (starts[i] > 0) all = all * fade(places);
    if (starts[i] + tile < pixels) all = all * fade(double(scale * tile) - places);
    return all;
  }
};

Tensor checked(const Tensor& out, at::IntArrayRef shape) {
  require(out.sizes() == shape, "tiles: the model's output must be [{}], got [{}]", fmt::join(shape, ", "),
          fmt::join(out.sizes(), ", "));
  return out;
}

}  // namespace

Tensor enlarge_in_tiles(const ImageModel& model, const Tensor& image, int64_t scale, const Tiling& tiling,
                        const std::function<void(int64_t done, int64_t all)>& observe) {
  check_options(tiling);
  require(image.dim() == 4 && scale >= 1, "tiles: the image must be [B, C, H, W] and scale >= 1, got [{}] and {}",
          fmt::join(image.sizes(), ", "), scale);
  require(tiling.tile == 0 || 2 * tiling.overlap <= tiling.tile,
          "tiles: overlap must be at most half of a tile of {} pixels, got {}", tiling.tile, tiling.overlap);
  const int64_t batch = image.size(0), channels = image.size(1);
  const TileAxis down(image.size(2), tiling, scale), across(image.size(3), tiling, scale);
  const int64_t count = std::ssize(down.starts) * std::ssize(across.starts);
  Tensor sum = at::zeros({batch, channels, scale * down.pixels, scale * across.pixels}, at::kFloat);
  Tensor weight = at::zeros({scale * down.pixels, scale * across.pixels}, at::kFloat);
  int64_t done = 0;
  for (size_t y = 0; y < down.starts.size(); ++y) {
    for (size_t x = 0; x < across.starts.size(); ++x) {
      const auto place = [&](const Tensor& t, int64_t times) {
        return t.narrow(-2, times * down.starts[y], times * down.tile)
            .narrow(-1, times * across.starts[x], times * across.tile);
      };
      const Tensor share = at::outer(down.weights(y), across.weights(x));
      const Tensor part = checked(model(place(image, 1)), {batch, channels, scale * down.tile, scale * across.tile});
      place(sum, scale).add_(part * share);
      place(weight, scale).add_(share);
      if (observe) observe(++done, count);
    }
  }
  return sum.div_(weight);
}

ImageModel self_ensemble(ImageModel model) {
  return [model = std::move(model)](const Tensor& images) {
    Tensor sum;
    for (int way = 0; way < 8; ++way) {
      const auto mirrored = [&](const Tensor& x) {
        const Tensor y = way & 1 ? x.flip({3}) : x;
        return way & 2 ? y.flip({2}) : y;
      };
      const auto turned = [&](const Tensor& x) { return way & 4 ? x.transpose(2, 3) : x; };
      const Tensor part = mirrored(turned(model(turned(mirrored(images)))));
      sum = sum.defined() ? sum + part : part;
    }
    return sum / 8;
  };
}

}  // namespace foveate::models
