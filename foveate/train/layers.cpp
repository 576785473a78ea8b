#include "foveate/train/layers.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/hisa.h"
#include "foveate/base/hash.h"
#include "foveate/base/random.h"
#include "foveate/eval/kept_mass.h"

namespace foveate::train {

using attention::Attended;
using attention::Inputs;
using attention::Mechanism;

LayerTraining::LayerTraining(const models::Decoder& decoder, std::vector<Mechanism> mechanisms,
                             std::vector<int32_t> tokens, std::optional<int32_t> first_token,
                             const TextOptions& options, LayerTask task)
    : decoder_(decoder),
      mechanisms_(std::move(mechanisms)),
      tokens_(std::move(tokens)),
      first_token_(first_token),
      options_(options),
      task_(std::move(task)) {
  check_options(options_);
  require(options_.length <= decoder.config().context, "train: length must be <= the model's {} tokens, got {}",
          decoder.config().context, options_.length);
  const int64_t least = options_.length * (options_.held_out + 1);
  require(std::ssize(tokens_) >= least,
          "train: the text must have a window to learn from and {} to score, {} tokens, got {}", options_.held_out,
          least, tokens_.size());
  for (const Mechanism& m : mechanisms_) {
    if (!m.learned()) continue;
    require(m.spec().name == task_.mechanism, "train {}: learned parts must be those of {}, got {}", task_.name,
            task_.mechanism, m.spec().text());
    ++layers_trained_;
    for (const auto& [name, value] : *m.learned()) at::Tensor(value).requires_grad_();
  }
  require(layers_trained_ > 0, "train {}: some layer must have {} with learned parts, got none", task_.name,
          task_.mechanism);
}

ParameterMap LayerTraining::parameters() const {
  ParameterMap all;
  for (size_t layer = 0; layer < mechanisms_.size(); ++layer) {
    const Mechanism& m = mechanisms_[layer];
    if (!m.learned()) continue;
    for (const auto& [name, value] : *m.learned())
      all[fmt::format("layers.{}.{}.{}", layer, m.spec().name, name)] = {.value = value, .decays = value.dim() > 1};
  }
  return all;
}

void LayerTraining::read_window(int64_t first, const Visit& visit) const {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> ids(tokens_.begin() + first, tokens_.begin() + first + options_.length);
  if (first_token_) ids.insert(ids.begin(), *first_token_), ids.pop_back();
  decoder_.forward(at::tensor(ids, at::kLong).unsqueeze(0), 0, [&](const Inputs& in) {
    Attended dense = attention::Dense{}.attend(in);
    visit(in, dense);
    return dense;
  });
}

StepLoss LayerTraining::loss(int64_t step, uint64_t seed) const {
  Random random(seed, uint64_t(step));
  const int64_t places = std::ssize(tokens_) - options_.length * (options_.held_out + 1) + 1;
  std::vector<at::Tensor> losses;
  read_window(int64_t(random.below(uint64_t(places))), [&](const Inputs& in, const Attended& dense) {
    const Mechanism& m = mechanisms_[size_t(in.layer)];
    if (!m.learned()) return;
    const at::AutoGradMode grad(true);
    losses.push_back(task_.loss(m, in, dense));
  });
  return {at::stack(losses).mean(), options_.length, {}};
}

LayerScore LayerTraining::score(const std::vector<Mechanism>& mechanisms) const {
  LayerScore score;
  std::vector<double> mass(mechanisms.size(), 0);
  for (int64_t window = 0; window < options_.held_out; ++window)
    read_window(std::ssize(tokens_) - options_.length * (window + 1), [&](const Inputs& in, const Attended& dense) {
      const Mechanism& m = mechanisms[size_t(in.layer)];
      if (!m.learned()) return;
      score.loss += task_.loss(m, in, dense).item<double>();
      mass[size_t(in.layer)] += eval::kept_mass(in, m.attend(in)).value_or(std::nan(""));
    });
  for (size_t layer = 0; layer < mass.size(); ++layer) {
    if (!mechanisms[layer].learned()) continue;
    score.kept_mass_by_layer.push_back(mass[layer] / double(options_.held_out));
    score.kept_mass += score.kept_mass_by_layer.back() / double(layers_trained_);
  }
  score.loss /= double(layers_trained_ * options_.held_out);
  return score;
}

uint64_t LayerTraining::text_hash() const {
  Hash hash;
  hash.add(tokens_.data(), tokens_.size() * sizeof(int32_t));
  return hash.value();
}

LayerTask indexer_task() {
  return {"indexer", std::string(attention::Hisa::name),
          [](const Mechanism& mechanism, const Inputs& in, const Attended&) {
            Inputs given = in;
            given.learned = mechanism.learned();
            return parse_options<attention::Hisa>(mechanism.spec()).loss(given, attention::Hisa::Stage::dense);
          }};
}

}  // namespace foveate::train
