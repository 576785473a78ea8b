#include "foveate/train/image_classifier.h"

#include <algorithm>
#include <cstdlib>

#include "foveate/base/error.h"
#include "foveate/base/spec.h"
#include "foveate/train/module_parameters.h"

namespace foveate::train {

namespace {

constexpr int64_t kHeadDim = 16;

struct Level {
  int64_t side, layers;  // tokens of a side
};

// Those with layers.  Throws Error: a model that does not fit.
std::vector<Level> levels_of(const ClassifierModel& model, int64_t height, int64_t width) {
  check_options(model);
  require(model.embed % kHeadDim == 0, "classifier: embed must be a multiple of {}, got {}", kHeadDim, model.embed);
  require(model.kernel % 2 == 1, "classifier: kernel must be odd, got {}", model.kernel);
  std::vector<Level> all;
  int64_t side = std::min(height, width);
  for (const int64_t layers : {model.first_layers, model.second_layers, model.third_layers}) {
    side = (side + 1) / 2;
    if (layers > 0) all.push_back({side, layers});
  }
  require(all.back().side >= model.kernel, "classifier: kernel must be <= the {} tokens of a side, got {}",
          all.back().side, model.kernel);
  require(model.kind != ClassifierModel::Kind::hybrid || all.size() > 1,
          "classifier: a hybrid attends behind its first level, it must have layers at two or more, got {}",
          all.size());
  return all;
}

// Parameters of a block but for its norms and its shortcut.
int64_t weights_of(const models::HaloBlock& block, int64_t channels) {
  const int64_t around = (channels + block.out) * block.width;
  if (!block.attention) return around + 9 * block.width * block.width;
  const models::HaloAttnOptions& o = *block.attention;
  return around + 3 * block.width * block.width + 2 * (2 * o.halo.window() - 1) * o.head_dim();
}

// The block with a convolution of as many parameters, as near as whole channels come.
models::HaloBlock convolved(models::HaloBlock block, int64_t channels) {
  const int64_t wanted = weights_of(block, channels);
  block.attention.reset();
  const auto off = [&](int64_t width) {
    block.width = width;
    return std::abs(weights_of(block, channels) - wanted);
  };
  int64_t width = 1;
  while (off(width + 1) < off(width)) ++width;
  block.width = width;
  return block;
}

}  // namespace

models::NatConfig ClassifierModel::nat(int64_t height, int64_t width, int64_t classes) const {
  models::NatConfig c;
  c.embed = embed, c.kernel = kernel, c.drop_path = drop_path, c.classes = classes;
  c.patch = first_layers > 0 ? 2 : 4;
  c.deviation = 0;
  c.image = std::min(height, width);
  for (const Level& level : levels_of(*this, height, width)) {
    c.heads.push_back((embed << c.depths.size()) / kHeadDim);
    c.depths.push_back(level.layers);
    std::vector<int64_t>& own = c.dilations.emplace_back();
    for (int64_t layer = 0; layer < level.layers; ++layer)
      own.push_back(kind == Kind::dinat && layer % 2 == 1 ? level.side / kernel : 1);
  }
  return c;
}

models::HaloNetConfig ClassifierModel::halonet(int64_t height, int64_t width, int64_t classes) const {
  models::HaloNetConfig c{.has_tiered_stem = true, .classes = classes, .image = std::min(height, width)};
  if (first_layers > 0) c.stem_end = models::StemEnd::none;
  int64_t channels = 64, before = 0;  // of the stem; tokens of a side at the level before
  for (const Level& level : levels_of(*this, height, width)) {
    const int64_t own = embed << c.stages.size();
    const bool attends = kind == Kind::halonet || (kind == Kind::hybrid && before > 0);
    c.stages.emplace_back();
    for (int64_t layer = 0; layer < level.layers; ++layer) {
      models::HaloBlock block{.width = own, .out = own, .stride = before > 0 && layer == 0 ? 2 : 1};
      // Four blocks of a level's map.  The first of a later level stands on the map of the one before.
      const int64_t side = block.stride == 2 ? before : level.side;
      const attention::Halo halo{.block = ((side + 1) / 2 + 1) / 2 * 2, .halo = kernel / 2, .auto_pad = true};
      block.attention =
          models::HaloAttnOptions{.dim_in = own, .heads = own / kHeadDim, .dim_head_qk = kHeadDim, .halo = halo};
      c.stages.back().push_back(attends ? block : convolved(block, channels));
      channels = own;
    }
    before = level.side;
  }
  return c;
}

ImageClassifier::ImageClassifier(const ClassifierModel& model, const ImageSet& set, uint64_t seed)
    : model_(model), height_(set.images.size(2)), width_(set.images.size(3)), classes_(set.classes) {
  if (model_.is_nat())
    nat_ = models::Nat(model_.nat(height_, width_, classes_), seed);
  else
    halonet_ = models::HaloNet(model_.halonet(height_, width_, classes_), seed);
}

torch::nn::Module& ImageClassifier::module() const {
  if (model_.is_nat()) return *nat_.ptr();
  return *halonet_.ptr();
}

ParameterMap ImageClassifier::parameters() const { return parameters_of(module()); }

TensorMap ImageClassifier::buffers() const { return buffers_of(module()); }

std::map<std::string, std::string> ImageClassifier::subject() const {
  return {{"model", to_full_spec(model_).text()}, {"image", fmt::format("{} x {}", height_, width_)}};
}

ImageModel ImageClassifier::with(Random* random) const {
  module().train(random != nullptr);
  return [this, random](const at::Tensor& images) {  // grey images as three equal channels
    const at::Tensor coloured = images.expand({images.size(0), 3, images.size(2), images.size(3)});
    return model_.is_nat() ? nat_.ptr()->forward(coloured, random) : halonet_.ptr()->forward(coloured);
  };
}

StepLoss ImageClassifier::loss(const ImageSet& set, const Augment& augment, int64_t step, uint64_t seed) const {
  constexpr uint64_t kPaths = 0x70617468;  // a stream of its own beside those of the batch
  Random paths(seed ^ kPaths, uint64_t(step));
  return classification_loss(with(&paths), set, augment, model_.batch, step, seed);
}

double ImageClassifier::top1(const ImageSet& set) const { return train::top1(with(nullptr), set, 250); }

double ImageClassifier::macs() const {
  if (model_.is_nat()) return models::count_macs(nat_->config(), height_, width_);
  return models::count_macs(model_.halonet(height_, width_, classes_), height_, width_);
}

}  // namespace foveate::train
