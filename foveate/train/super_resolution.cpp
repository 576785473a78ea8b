#include "foveate/train/super_resolution.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/spec.h"
#include "foveate/train/module_parameters.h"

namespace foveate::train {

models::CataNetConfig SuperResolutionModel::config(int64_t size) const {
  check_options(*this);
  require(dim % heads == 0, "super-resolution: dim must be a multiple of heads ({}), got {}", heads, dim);
  models::CataNetConfig c{.upscale = scale, .dim = dim, .heads = heads};
  c.qk_dim = std::max<int64_t>(1, dim * 9 / 10 / heads) * heads;  // 36 of 40, as published
  c.mlp_dim = dim * 12 / 5;                                       // 96 of 40
  c.decay = decay, c.aggregates = aggregates;
  c.patches.clear(), c.centres.clear(), c.groups.clear();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t turn = block % 4, count = centres << turn;
    require(!aggregates || count <= size * size,
            "super-resolution: centres of a block must be <= the {} pixels of a patch, got {}", size * size, count);
    c.patches.push_back(patch * (4 + turn) / 4);
    c.centres.push_back(count);
    c.groups.push_back(std::max<int64_t>(1, size * size / count));
  }
  require(c.smallest_side() <= size,
          "super-resolution: size must be >= the {} pixels of the largest patch of attention, got {}",
          c.smallest_side(), size);
  return c;
}

SuperResolution::SuperResolution(const SuperResolutionModel& model, const PatchOptions& patches, uint64_t seed)
    : options_(model), patches_(patches), net_(model.config(patches.size), seed) {
  const at::NoGradGuard no_grad;
  for (const auto& item : net_->named_parameters())
    if (item.key().starts_with("last_conv.")) item.value().zero_();
}

ParameterMap SuperResolution::parameters() const { return parameters_of(*net_); }

TensorMap SuperResolution::buffers() const { return buffers_of(*net_); }

std::map<std::string, std::string> SuperResolution::subject() const {
  return {{"model", to_full_spec(options_).text()}, {"patches", to_full_spec(patches_).text()}};
}

ImageModel SuperResolution::model(bool trains) const {
  net_.ptr()->train(trains);
  return [this](const at::Tensor& images) { return net_.ptr()->forward(images); };
}

StepLoss SuperResolution::loss(const std::vector<PhotoPair>& photos, int64_t step, uint64_t seed) const {
  return enlarging_loss(model(/*trains=*/true), photos, patches_, step, seed);
}

EnlargingScore SuperResolution::score(const std::vector<PhotoPair>& photos) const {
  return score_enlarging(model(/*trains=*/false), photos);
}

double SuperResolution::macs() const {
  const int64_t scale = options_.scale;
  return models::count_macs(net_->config(), 720 / scale, 1280 / scale).all;
}

}  // namespace foveate::train
