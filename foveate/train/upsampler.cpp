#include "foveate/train/upsampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/l1_loss.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/roll.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/base/spec.h"
#include "foveate/models/vision/state_dict.h"
#include "foveate/ops/resize.h"
#include "foveate/train/module_parameters.h"

namespace foveate::train {
namespace {

using at::Tensor;

Tensor cosine(const Tensor& got, const Tensor& want) { return at::cosine_similarity(got, want, 1).mean(); }

Tensor difference(const Tensor& got, const Tensor& want, UpsamplerModel::Difference kind) {
  if (kind == UpsamplerModel::Difference::none) return at::zeros({});
  return kind == UpsamplerModel::Difference::squares ? at::mse_loss(got, want) : at::l1_loss(got, want);
}

Tensor upsample_nearest(const Tensor& features, int64_t doublings) {
  return at::upsample_nearest2d(features, {features.size(2) << doublings, features.size(3) << doublings});
}

void add(Closeness& sum, const Tensor& got, const Tensor& want, double share) {
  sum.cosine += share * cosine(got, want).item<double>();
  sum.square += share * at::mse_loss(got, want).item<double>();
}

// Shifted at random, what leaves at one border coming in at the other, and mirrored or not.
Tensor moved(const Tensor& mosaics, Random& random) {
  std::vector<Tensor> all;
  for (int64_t i = 0; i < mosaics.size(0); ++i) {
    const auto down = int64_t(random.below(uint64_t(mosaics.size(2))));
    const auto right = int64_t(random.below(uint64_t(mosaics.size(3))));
    const Tensor shifted = at::roll(mosaics[i], {down, right}, {1, 2});
    all.push_back(random.uniform() < 0.5 ? shifted.flip({2}) : shifted);
  }
  return at::stack(all);
}

}  // namespace

models::UpliftConfig UpsamplerModel::config(const Backbone& backbone) const {
  check_options(*this);
  require(width % 8 == 0, "upsampler: width must be a multiple of 8, got {}", width);
  require(difference != Difference::none || cosine > 0,
          "upsampler: cosine must be > 0 where difference is none, got {}", cosine);
  models::UpliftConfig c = models::uplift_for_vit(backbone.channels, backbone.patch);
  c.encoder = {{width / 4}, {width / 2}, {width}, {2 * width}, {2 * width}};
  c.decoder = {{width}, {width}};
  c.offsets = offsets == 0 ? std::nullopt : std::optional(offsets);
  return c;
}

Tensor upsample_bilinear(const Tensor& features, int64_t doublings) {
  return at::upsample_bilinear2d(features, {features.size(2) << doublings, features.size(3) << doublings},
                                 /*align_corners=*/false);
}

Tensor make_mosaics(const Tensor& images, int64_t tiles, int64_t side) {
  const Tensor scaled = images.to(at::kFloat).div_(127.5).sub_(1);
  const int64_t own = side / tiles;
  const Tensor resized = ops::resize_bicubic(scaled, own, own).clamp_(-1, 1);
  const Tensor grid =
      resized.unflatten(0, {-1, tiles, tiles}).permute({0, 3, 1, 4, 2, 5});  // [B, C, row, y, column, x]
  return grid.reshape({grid.size(0), grid.size(1), side, side}).expand({-1, 3, -1, -1});
}

Upsampler::Upsampler(const UpsamplerModel& model, Backbone backbone, uint64_t seed)
    : model_(model), backbone_(std::move(backbone)), net_(model.config(backbone_), seed) {
  const int64_t least = backbone_.patch << model_.doublings;
  require(model_.image % model_.tiles == 0 && model_.image % least == 0,
          "upsampler: image must be a multiple of tiles and of {}, the pixels of a cell at the smallest scale, got {} "
          "and {} tiles",
          least, model_.image, model_.tiles);
}

ParameterMap Upsampler::parameters() const { return parameters_of(*net_); }

TensorMap Upsampler::buffers() const { return buffers_of(*net_); }

std::map<std::string, std::string> Upsampler::subject() const {
  return {{"model", to_full_spec(model_).text()}, {"backbone", backbone_.identity}};
}

Upsampler::Pyramid Upsampler::pyramid(const Tensor& mosaics) const {
  const at::NoGradGuard no_grad;
  Pyramid all;
  for (int64_t n = 0; n <= model_.doublings; ++n) {
    const int64_t side = model_.image >> n;
    all.images.push_back(n == 0 ? mosaics : ops::resize_bicubic(mosaics, side, side).clamp_(-1, 1));
    all.features.push_back(backbone_.features(all.images.back()));
  }
  return all;
}

StepLoss Upsampler::loss(const ImageSet& set, int64_t step, uint64_t seed) const {
  const std::vector<int64_t> indices = draw_indices(set.size(), model_.batch * model_.tiles * model_.tiles, seed, step);
  Random random(seed, uint64_t(step));
  const Tensor images = set.images.index_select(0, at::tensor(indices));
  const auto [scales, features] = pyramid(moved(make_mosaics(images, model_.tiles, model_.image), random));
  StepLoss made{.loss = at::zeros({}), .tokens = model_.batch};
  net_.ptr()->train();
  for (int64_t n = model_.deepest ? model_.doublings : 1; n <= model_.doublings; ++n) {
    const Tensor& coarse = features[size_t(n)];
    const std::vector<Tensor> finer = net_.ptr()->steps(scales[size_t(n)], coarse, {.iterations = n});
    for (int64_t k = 1; k <= n; ++k) {
      const Tensor &got = finer[size_t(k - 1)], &want = features[size_t(n - k)];
      const Tensor near = cosine(got, want);
      made.loss = made.loss + difference(got, want, model_.difference) + model_.cosine * (1 - near);
      if (k < model_.doublings) continue;
      const at::NoGradGuard no_grad;
      made.notes = {{"cosine", near.item<double>()},
                    {"bilinear", cosine(upsample_bilinear(coarse, k), want).item<double>()}};
    }
  }
  return made;
}

std::vector<UpsamplingScore> Upsampler::score(const ImageSet& set, int64_t most) const {
  const at::NoGradGuard no_grad;
  const int64_t own = model_.tiles * model_.tiles, count = std::min(most, set.size() / own);
  require(count >= 1, "upsampler: the images to score with must be a mosaic's {} or more, got {}", own, set.size());
  constexpr int64_t kAtOnce = 25;
  std::vector<UpsamplingScore> scores(size_t(model_.doublings));
  net_.ptr()->eval();
  for (int64_t first = 0; first < count; first += kAtOnce) {
    const int64_t batch = std::min(kAtOnce, count - first);
    const auto [scales, features] =
        pyramid(make_mosaics(set.images.narrow(0, first * own, batch * own), model_.tiles, model_.image));
    const Tensor& coarse = features.back();
    const std::vector<Tensor> finer = net_.ptr()->steps(scales.back(), coarse, {.iterations = model_.doublings});
    const double share = double(batch) / double(count);
    for (int64_t k = 1; k <= model_.doublings; ++k) {
      const Tensor& want = features[size_t(model_.doublings - k)];
      UpsamplingScore& score = scores[size_t(k - 1)];
      add(score.uplift, finer[size_t(k - 1)], want, share);
      add(score.bilinear, upsample_bilinear(coarse, k), want, share);
      add(score.nearest, upsample_nearest(coarse, k), want, share);
    }
  }
  return scores;
}

void Upsampler::save(const std::string& path) const { models::save_state_dict(*net_, path, subject()); }

models::Uplift load_upsampler(const std::string& path, const Backbone& backbone) {
  const io::Safetensors file = io::Safetensors::open(path);
  const Spec spec = parse_spec(text_of(file, "model", "upsampler"));
  require(spec.name == UpsamplerModel::name, "{}: model must be {}, got {}", path, UpsamplerModel::name, spec.name);
  const std::string identity = text_of(file, "backbone", "upsampler");
  require(identity == backbone.identity, "{}: the backbone must be the one it was trained with, {}, got {}", path,
          identity, backbone.identity);
  models::Uplift net(parse_options<UpsamplerModel>(spec).config(backbone));
  models::load_state_dict(*net, file.tensors(), path);
  net->eval();
  return net;
}

}  // namespace foveate::train
