#include "foveate/train/image_classifier.h"

#include "foveate/base/error.h"
#include "foveate/base/spec.h"

namespace foveate::train {

models::NatConfig ClassifierModel::config(int64_t height, int64_t width, int64_t classes) const {
  check_options(*this);
  constexpr int64_t kHeadDim = 16;
  require(embed % kHeadDim == 0, "classifier: embed must be a multiple of {}, got {}", kHeadDim, embed);
  models::NatConfig c;
  c.embed = embed, c.kernel = kernel, c.drop_path = drop_path, c.classes = classes;
  c.depths = {first_layers, second_layers}, c.heads = {embed / kHeadDim, 2 * embed / kHeadDim};
  c.patch = 2, c.embeds_patches = true;
  c.image = std::min(height, width);
  int64_t map = (c.image + 1) / 2;
  for (const int64_t layers : c.depths) {
    require(map >= kernel, "classifier: kernel must be <= the {} tokens of a side, got {}", map, kernel);
    std::vector<int64_t>& own = c.dilations.emplace_back();
    for (int64_t layer = 0; layer < layers; ++layer) own.push_back(dilated && layer % 2 == 1 ? map / kernel : 1);
    map = (map + 1) / 2;
  }
  return c;
}

ImageClassifier::ImageClassifier(const ClassifierModel& model, const ImageSet& set, uint64_t seed)
    : model_(model),
      height_(set.images.size(2)),
      width_(set.images.size(3)),
      net_(model.config(height_, width_, set.classes), seed) {}

ParameterMap ImageClassifier::parameters() const {
  ParameterMap all;
  for (const auto& item : net_->named_parameters()) {
    const bool decays = item.value().dim() > 1 && !item.key().ends_with("rpb");
    all.emplace(item.key(), Parameter{.value = item.value(), .decays = decays});
  }
  return all;
}

std::map<std::string, std::string> ImageClassifier::subject() const {
  return {{"model", to_spec(model_).text()}, {"image", fmt::format("{} x {}", height_, width_)}};
}

ImageModel ImageClassifier::with(Random* random) const {
  return [this, random](const at::Tensor& images) {  // grey images as three equal channels
    return net_.ptr()->forward(images.expand({images.size(0), 3, images.size(2), images.size(3)}), random);
  };
}

StepLoss ImageClassifier::loss(const ImageSet& set, const Augment& augment, int64_t step, uint64_t seed) const {
  constexpr uint64_t kPaths = 0x70617468;  // a stream of its own beside those of the batch
  Random paths(seed ^ kPaths, uint64_t(step));
  return classification_loss(with(&paths), set, augment, model_.batch, step, seed);
}

double ImageClassifier::top1(const ImageSet& set) const { return train::top1(with(nullptr), set, 250); }

double ImageClassifier::macs() const { return models::count_macs(net_->config(), height_, width_); }

}  // namespace foveate::train
