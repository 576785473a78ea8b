#include "foveate/train/backbone.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "foveate/base/error.h"
#include "foveate/base/hash.h"
#include "foveate/base/spec.h"
#include "foveate/models/vision/nat.h"
#include "foveate/models/vision/state_dict.h"
#include "foveate/train/image_classifier.h"

namespace foveate::train {
namespace {

constexpr std::string_view kCommand = "image-classifier";

// "28 x 28" as height and width.
std::pair<int64_t, int64_t> image_size(const std::string& text, const std::string& path) {
  const size_t between = text.find(" x ");
  std::pair<int64_t, int64_t> size{0, 0};
  constexpr int64_t kMost = 1 << 14;
  const bool is_size = between != text.npos && detail::parse_value(text.substr(0, between), size.first) &&
                       detail::parse_value(text.substr(between + 3), size.second);
  require(is_size && std::min(size.first, size.second) >= 1 && std::max(size.first, size.second) <= kMost,
          "{}: image must be HEIGHT x WIDTH, each 1 .. {}, got {}", path, kMost, text);
  return size;
}

std::string hash_of(const io::Safetensors& file) {
  Hash hash;
  for (const io::StoredTensor& tensor : file.tensors()) hash.add(tensor.bytes.data(), tensor.bytes.size());
  return fmt::format("{:016x}", hash.value());
}

}  // namespace

std::string text_of(const io::Safetensors& weights, const std::string& key, std::string_view command) {
  const auto found = weights.metadata().find(key);
  require(found != weights.metadata().end(),
          "{}: must be weights that foveate train {} wrote, got none that say their {}", weights.path(), command, key);
  const std::string& text = found->second;
  const bool is_plain = std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; });
  require(is_plain, "{}: {} must be printable ASCII, got {}", weights.path(), key, io::printable(text));
  return text;
}

Backbone load_backbone(const std::string& path) {
  const io::Safetensors file = io::Safetensors::open(path);
  const std::string model_text = text_of(file, "model", kCommand);
  const Spec spec = parse_spec(model_text);
  require(spec.name == ClassifierModel::name, "{}: model must be {}, got {}", path, ClassifierModel::name, spec.name);
  const auto model = parse_options<ClassifierModel>(spec);
  require(model.is_nat(), "{}: a backbone's kind must be nat or dinat, got {}", path, model_text);
  const auto [height, width] = image_size(text_of(file, "image", kCommand), path);
  const auto& head = file.tensor("head.weight").shape;
  require(head.size() == 2, "{}: head.weight must have two axes, got {}", path, head.size());
  const models::NatConfig config = model.nat(height, width, int64_t(head[0]));
  models::Nat net(config, std::nullopt);
  models::load_state_dict(*net, file.tensors(), path);
  const size_t last = config.depths.size() - 1;
  return {.channels = config.channels(last),
          .patch = config.patch << last,
          .identity = hash_of(file),
          .features = [net](const at::Tensor& images) {
            const at::NoGradGuard no_grad;
            return net.ptr()->features(images).contiguous();
          }};
}

}  // namespace foveate::train
