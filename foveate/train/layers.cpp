#include "foveate/train/layers.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/boundary_training.h"
#include "foveate/attention/sparse/dhsa.h"
#include "foveate/attention/sparse/hisa.h"
#include "foveate/base/hash.h"
#include "foveate/base/random.h"
#include "foveate/eval/kept_mass.h"

namespace foveate::train {

using attention::Attended;
using attention::Inputs;
using attention::Mechanism;

namespace {

// The layers up to the last that learns: those above change nothing.
models::Decoder below(const models::Decoder& decoder, const std::vector<Mechanism>& mechanisms) {
  const auto learns = [](const Mechanism& m) { return m.learned() != nullptr; };
  const auto last = std::find_if(mechanisms.rbegin(), mechanisms.rend(), learns);
  models::DecoderConfig config = decoder.config();
  models::DecoderWeights weights = decoder.weights();
  const size_t layers = std::max<size_t>(size_t(mechanisms.rend() - last), 1);
  config.layers.resize(layers), weights.layers.resize(layers);
  return {config, weights};
}

}  // namespace

LayerTraining::LayerTraining(const models::Decoder& decoder, std::vector<Mechanism> mechanisms,
                             std::vector<int32_t> tokens, std::optional<int32_t> first_token,
                             const TextOptions& options, LayerTask task)
    : decoder_(below(decoder, mechanisms)),
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
  const double scored = double(layers_trained_ * options_.held_out);
  for (int64_t window = 0; window < options_.held_out; ++window)
    read_window(std::ssize(tokens_) - options_.length * (window + 1), [&](const Inputs& in, const Attended& dense) {
      if (!mechanisms_[size_t(in.layer)].learned()) return;
      const Mechanism& m = mechanisms[size_t(in.layer)];
      score.loss += m.learned() ? task_.loss(m, in, dense).item<double>() / scored : std::nan("");
      if (m.learned() && task_.notes)
        for (const auto& [name, value] : task_.notes(m, in, dense)) score.notes[name] += value / scored;
      mass[size_t(in.layer)] += eval::kept_mass(in, m.attend(in)).value_or(std::nan("")) / double(options_.held_out);
    });
  for (size_t layer = 0; layer < mass.size(); ++layer) {
    if (!mechanisms_[layer].learned()) continue;
    score.kept_mass_by_layer.push_back(mass[layer]);
    score.kept_mass += mass[layer] / double(layers_trained_);
  }
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

namespace {

struct Gaps {
  at::Tensor logits, targets, valid;  // [1, L], [1, L] bool, [L] bool
};

attention::Dhsa dhsa_of(const Mechanism& m) { return parse_options<attention::Dhsa>(m.spec()); }

Gaps gaps_of(const Mechanism& m, const Inputs& in, const Attended& dense) {
  const attention::Dhsa dhsa = dhsa_of(m);
  const int64_t w = dhsa.half_window;
  return {attention::boundary_logits(in.k, *m.learned(), {w, dhsa.boundary_heads}),
          attention::boundary_ratios(in, *dense.lse, w).ge(2), attention::boundary_valid(in.k.size(2), w)};
}

}  // namespace

std::map<std::string, double> boundary_notes(const at::Tensor& logits, const at::Tensor& targets,
                                             const at::Tensor& valid) {
  const auto count = [&](const at::Tensor& which) {
    return which.logical_and(valid).sum().to(at::kDouble).item<double>();
  };
  const at::Tensor said = logits.gt(0);
  const double hits = count(said.logical_and(targets)), claims = count(said), all = count(targets);
  const auto ratio = [](double a, double b) { return b > 0 ? a / b : 0; };
  return {{"precision", ratio(hits, claims)},
          {"recall", ratio(hits, all)},
          {"f1", ratio(2 * hits, claims + all)},
          {"boundaries", ratio(all, count(at::ones_like(said)))}};
}

LayerTask boundaries_task() {
  return {"boundaries", std::string(attention::Dhsa::name),
          [](const Mechanism& m, const Inputs& in, const Attended& dense) {
            const Gaps gaps = gaps_of(m, in, dense);
            return attention::boundary_loss(gaps.logits, gaps.targets, gaps.valid);
          },
          [](const Mechanism& m, const Inputs& in, const Attended& dense) {
            const Gaps gaps = gaps_of(m, in, dense);
            auto notes = boundary_notes(gaps.logits, gaps.targets, gaps.valid);
            Inputs given = in;
            given.learned = m.learned();
            notes["chunks"] = double(dhsa_of(m).cuts_of(given).front().size() - 1);
            return notes;
          },
          [](const Mechanism& m) {
            attention::Dhsa even = dhsa_of(m);
            even.chunks = attention::Dhsa::Chunks::even;
            return Mechanism(even);
          }};
}

}  // namespace foveate::train
