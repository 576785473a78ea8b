#include "foveate/eval/feature_colours.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_eigh.h>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

constexpr int64_t kColours = 3;

at::Tensor cells_of(const at::Tensor& map) { return map.flatten(1).t().to(at::kDouble); }  // [h w, C]

// The directions [C, 3] along which centred cells [N, C] differ most.  The largest number of each is positive, which
// makes the same picture of the same features anywhere.
at::Tensor directions(const at::Tensor& centred) {
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(centred.t().matmul(centred), "L"));  // ascending
  const at::Tensor first = vectors.narrow(1, vectors.size(1) - kColours, kColours).flip({1});
  const at::Tensor largest = first.gather(0, first.abs().argmax(0, /*keepdim=*/true));
  return first * largest.sign();
}

}  // namespace

std::vector<at::Tensor> colour_features(std::span<const at::Tensor> maps) {
  require(!maps.empty(), "colour_features: maps are needed, got none");
  std::vector<at::Tensor> parts;
  for (const at::Tensor& map : maps) {
    require(map.dim() == 3 && map.size(0) >= kColours && map.size(0) == maps[0].size(0) && map.numel() > 0 &&
                map.is_floating_point(),
            "colour_features: maps must be [C, h, w] of floats with the same C >= {}, got {} [{}]", kColours,
            c10::toString(map.scalar_type()), fmt::join(map.sizes(), ", "));
    parts.push_back(cells_of(map));
  }
  const at::Tensor cells = at::cat(parts);
  require(at::isfinite(cells).all().item<bool>(), "colour_features: features must be finite, got NaN or infinity");
  const at::Tensor mean = cells.mean(0, /*keepdim=*/true), axes = directions(cells - mean);
  const at::Tensor values = (cells - mean).matmul(axes), least = values.amin({0}), range = values.amax({0}) - least;
  std::vector<at::Tensor> pictures;
  for (size_t i = 0; i < maps.size(); ++i) {
    const at::Tensor own = ((parts[i] - mean).matmul(axes) - least) / range.clamp_min(1e-12);
    pictures.push_back(own.t().reshape({kColours, maps[i].size(1), maps[i].size(2)}).to(at::kFloat));
  }
  return pictures;
}

}  // namespace foveate::eval
