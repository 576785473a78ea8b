#include "foveate/train/recall.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "foveate/attention/routing/flux.h"
#include "foveate/attention/routing/objectives.h"
#include "foveate/attention/sparse/landmark.h"
#include "foveate/attention/sparse/nsa.h"
#include "foveate/base/random.h"
#include "foveate/models/language/adapter.h"
#include "foveate/models/language/landmarks.h"
#include "foveate/models/language/random_weights.h"

namespace foveate::train {
namespace {

using at::Tensor;
using attention::Inputs;
using attention::Mechanism;

// Streams of random numbers under one seed: weights and learned parts use the first few hundred of their own seeds.
constexpr uint64_t kTextStream = uint64_t{1} << 32, kHeldOutStream = uint64_t{2} << 32,
                   kLambdaStream = uint64_t{3} << 32, kNoiseStream = uint64_t{4} << 32;
constexpr uint64_t kPartsSeed = 1'000'003;  // learned parts begin from seeds apart from the weights'

models::DecoderConfig config_of(const RecallTask& task, const RecallModel& m, bool has_landmarks) {
  models::DecoderConfig c;
  c.architecture = "llama", c.name = "recall";
  c.width = m.width, c.heads = m.heads, c.kv_heads = m.kv_heads, c.feed_forward = m.feed_forward;
  c.head_dim = c.value_dim = c.rope_dim = m.width / m.heads;
  c.vocabulary = task.vocabulary() + has_landmarks, c.context = 2 * task.length;  // landmarks are at most as many
  c.norm_epsilon = 1e-5, c.attention_scale = 1 / std::sqrt(double(c.head_dim));
  // Embeddings as large as what layers add, and biases with which a head can look for the token before: without either
  // the same runs stay at guessing among the text's values.
  c.embedding_scale = std::sqrt(double(m.width)), c.has_query_biases = true;
  c.layers.resize(size_t(m.layers));
  return c;
}

bool is_flux(const Mechanism& m) { return m.spec().name == attention::Flux::name; }

// Whether a router of the layer is to be trained.
bool is_routed(const Mechanism& m) {
  return is_flux(m) && parse_options<attention::Flux>(m.spec()).route == attention::Flux::Route::learned;
}

void check_flux(const std::string& attention, int64_t layers) {
  for (const Spec& spec : parse_layered_spec(attention, layers))
    for (const auto& [key, value] : spec.options)
      require(spec.name != attention::Flux::name || (key != "phase" && key != "tau" && key != "seed"),
              "recall: flux must leave phase, tau and seed to training, got {}={}; leave it out", key, value);
}

// The same flux as one step trains it.
Mechanism in_training(const Mechanism& m, int64_t step, int64_t steps, uint64_t seed,
                      const attention::LayerShape& shape) {
  auto flux = parse_options<attention::Flux>(m.spec());
  flux.phase = attention::Flux::Phase::train;
  flux.tau = attention::flux_temperature(step, steps);
  flux.seed = int64_t(Random(seed, kNoiseStream + uint64_t(step)).next_u64() >> 1);
  return Mechanism(flux).with(*m.learned(), shape);
}

// The landmarks that layers of `landmark` read, the last token of the vocabulary; none: there is no such layer.
std::optional<models::Landmarks> landmarks_of(const std::string& attention, const RecallTask& task, int64_t layers) {
  std::optional<models::Landmarks> landmarks;
  for (const Mechanism& m : attention::make_mechanisms(attention, layers)) {
    if (m.spec().name != attention::Landmark::name) continue;
    const int64_t block = parse_options<attention::Landmark>(m.spec()).block;
    require(!landmarks || landmarks->block == block,
            "recall: layers of landmark must have blocks of one length, got {} and {}", landmarks->block, block);
    landmarks = {.token = int32_t(task.vocabulary()), .block = block};
  }
  return landmarks;
}

// Landmark attention is trained with all blocks.
Mechanism as_trained(const Mechanism& m) {
  if (m.spec().name != attention::Landmark::name) return m;
  auto landmark = parse_options<attention::Landmark>(m.spec());
  landmark.mode = attention::Landmark::Mode::grouped;
  return Mechanism(landmark);
}

// Which of the keys places [B, N] rows asked [N] see by the plans of a call: [B, Hq, N] bool.  With all logits equal a
// value of 1 at the key and 0 elsewhere comes out above 0 where the key is seen.
Tensor seen(const Inputs& in, const attention::Attended& attended, const Tensor& asked, const Tensor& places) {
  const int64_t batch = in.q.size(0), keys = in.k.size(2), count = asked.size(0);
  const Tensor flat_q = at::zeros({batch, in.q.size(1), in.q.size(2), 8}),
               flat_k = at::zeros({batch, in.k.size(1), keys, 8});
  const Tensor marks = at::zeros({batch, keys, count}).scatter_(1, places.unsqueeze(1), 1.0);
  const Tensor v = marks.unsqueeze(1).expand({batch, in.k.size(1), keys, count}).contiguous();
  Tensor any = at::zeros({batch, in.q.size(1), in.q.size(2), count}, at::kBool);
  for (const attention::PlannedRows& part : attended.plans)
    any.narrow(2, part.first_row, part.rows)
        .logical_or_(ops::attend(flat_q.narrow(2, part.first_row, part.rows), flat_k, v, part.plan).out.gt(0));
  return any.index_select(2, asked).diagonal(0, 2, 3);
}

// What a mechanism selects, beside what it always sees: of nsa the selected blocks.
attention::Attended selection_of(const Mechanism& m, const Inputs& in, const attention::Attended& attended) {
  if (m.spec().name != attention::Nsa::name) return attended;
  auto nsa = parse_options<attention::Nsa>(m.spec());
  nsa.gates = attention::Nsa::Gates::selected;
  Inputs given = in;
  given.learned = m.learned();
  return nsa.attend(given);
}

Tensor answer_logits(const models::Decoder& decoder, const RecallBatch& batch, const Tensor& hidden) {
  return decoder.logits(hidden.index_select(1, batch.asked));  // [B, pairs, vocabulary]
}

double mean_of(const Tensor& t) { return t.to(at::kDouble).mean().item<double>(); }

// The mean over rows [B] bool of hits [B, ..]; none: there are none.
std::optional<double> mean_of(const Tensor& hits, const Tensor& rows) {
  const Tensor some = hits.index_select(0, rows.nonzero().flatten());
  return some.numel() == 0 ? std::nullopt : std::optional(mean_of(some));
}

}  // namespace

RecallBatch with_landmarks(const RecallBatch& batch, const models::Landmarks& landmarks) {
  std::vector<Tensor> rows;
  for (const Tensor& tokens : batch.tokens.to(at::kInt).unbind()) {
    const auto text = models::with_landmarks({tokens.const_data_ptr<int32_t>(), size_t(tokens.numel())}, landmarks);
    rows.push_back(at::tensor(std::vector<int64_t>(text.begin(), text.end()), at::kLong));
  }
  const auto moved = [&](const Tensor& places) { return places + places.div(landmarks.block - 1, "floor"); };
  return {at::stack(rows), moved(batch.asked), batch.answers, moved(batch.places), batch.is_near};
}

void RecallModel::validate() const {
  check_options(*this);
  require(width % (2 * heads) == 0, "recall: width must be a multiple of 2 heads, got {} and {}", width, heads);
  require(heads % kv_heads == 0, "recall: heads must be a multiple of kv_heads, got {} and {}", heads, kv_heads);
}

Recall::Recall(const RecallTask& task, const RecallModel& model, const std::string& attention, uint64_t seed)
    : task_(task), model_(model), attention_(attention), seed_(seed) {
  task.validate();
  model.validate();
  check_flux(attention, model.layers);
  landmarks_ = landmarks_of(attention, task, model.layers);
  const models::DecoderConfig config = config_of(task, model, landmarks_.has_value());
  decoder_ = std::make_unique<models::Decoder>(config, models::random_weights(config, seed));
  mechanisms_ = with_start();
  for (const Mechanism& m : mechanisms_) has_routes_ |= is_routed(m);
  lambda1_ = (attention::uniform({2}, seed, kLambdaStream) * 0.5).to(at::kFloat);
  lambda2_ = (attention::uniform({2}, seed, kLambdaStream + 1) * 0.5).to(at::kFloat);
  for (const Mechanism& m : mechanisms_) trained_.push_back(as_trained(m));
  for (const auto& [name, parameter] : parameters()) Tensor(parameter.value).requires_grad_();
}

RecallBatch Recall::texts(uint64_t seed, uint64_t stream) const {
  const RecallBatch batch = make_recall(task_, model_.batch, seed, stream);
  return landmarks_ ? with_landmarks(batch, *landmarks_) : batch;
}

std::vector<Mechanism> Recall::with_start() const {
  return models::equip_anew(attention::make_mechanisms(attention_, model_.layers), *decoder_, seed_ + kPartsSeed);
}

ParameterMap Recall::parameters() const {
  ParameterMap all;
  for (const auto& [name, value] : decoder_->weights().named())
    all[name] = {.value = value, .decays = value.dim() > 1 && !name.starts_with("token_embd")};
  for (size_t layer = 0; layer < mechanisms_.size(); ++layer) {
    const Mechanism& m = mechanisms_[layer];
    if (!m.learned()) continue;
    for (const auto& [name, value] : *m.learned())
      all[fmt::format("layers.{}.{}.{}", layer, m.spec().name, name)] = {.value = value, .decays = value.dim() > 1};
  }
  if (has_routes_)
    for (const auto& [name, value] : {std::pair{"flux.lambda1", lambda1_}, {"flux.lambda2", lambda2_}})
      all[name] = {.value = value, .decays = true, .ascends = true};
  return all;
}

std::map<std::string, std::string> Recall::subject() const {
  std::map<std::string, std::string> all{{"run", "recall"}, {"attention", attention_}};
  const auto add = [&](std::string_view name, const auto& value, Range, std::string_view) {
    all[std::string(name)] = fmt::format("{}", value);
  };
  RecallTask::fields(task_, add);
  RecallModel::fields(model_, add);
  return all;
}

StepLoss Recall::loss(int64_t step, int64_t steps, uint64_t seed) const {
  const RecallBatch batch = texts(seed, kTextStream + uint64_t(step));
  const attention::LayerShape shape = models::layer_shape(decoder_->config());
  std::vector<Tensor> decisions;  // [B] of every flux layer
  const Tensor hidden = decoder_->forward(batch.tokens, 0, [&](const Inputs& in) {
    const Mechanism& m = trained_[size_t(in.layer)];
    if (!is_routed(m)) return m.attend(in);
    const Mechanism training = in_training(m, step, steps, seed, shape);
    Inputs given = in;
    given.learned = training.learned();
    decisions.push_back(attention::flux_decision(parse_options<attention::Flux>(training.spec()), given));
    return training.attend(in);
  });
  const Tensor logits = answer_logits(*decoder_, batch, hidden);
  const Tensor entropy = at::cross_entropy_loss(logits.flatten(0, 1), batch.answers.flatten());
  const double accuracy = logits.argmax(-1).eq(batch.answers).to(at::kDouble).mean().item<double>();
  StepLoss made{entropy, batch.tokens.numel(), {{"accuracy", accuracy}}};
  if (!has_routes_) return made;
  const Tensor z = at::stack(decisions, 1).to(at::kFloat);
  const Tensor targets = at::where(batch.is_near.gt(0), at::full({}, model_.near_sparsity, at::kFloat),
                                   at::full({}, model_.sparsity, at::kFloat));
  made.loss = entropy + attention::flux_penalty(z, targets, batch.is_near, lambda1_, lambda2_);
  made.notes["answers"] = entropy.item<double>();
  made.notes["full"] = z.detach().mean().item<double>();
  return made;
}

RecallScore Recall::score(Scored scored, int64_t batches) const {
  require(batches >= 1, "recall: batches to score must be >= 1, got {}", batches);
  require(scored != Scored::shuffled_routes || has_routes_, "recall: no layer has routes to shuffle");
  const at::NoGradGuard no_grad;
  const std::vector<Mechanism> mechanisms = scored == Scored::untrained_parts ? with_start() : mechanisms_;
  std::vector<Tensor> hits, found, near, losses, full;  // [B, pairs], [B], scalars, [B]
  for (int64_t i = 0; i < batches; ++i) {
    const RecallBatch batch = texts(seed_, kHeldOutStream + uint64_t(i));
    std::vector<Tensor> decisions;
    const Tensor hidden = decoder_->forward(batch.tokens, 0, [&](const Inputs& in) {
      const Mechanism& m = mechanisms[size_t(in.layer)];
      Inputs given = in;
      given.learned = m.learned();
      const auto attend = [&] {
        if (!is_routed(m)) return m.attend(in);
        const auto flux = parse_options<attention::Flux>(m.spec());
        decisions.push_back(attention::flux_decision(flux, given));
        const bool is_shuffled = scored == Scored::shuffled_routes;
        return flux.attend_decided(given, is_shuffled ? decisions.back().roll(1, 0) : decisions.back());
      };
      const attention::Attended attended = attend();
      if (in.layer == decoder_->layers() - 1 && !is_flux(m))
        found.push_back(seen(in, selection_of(m, in, attended), batch.asked, batch.places).any(1));
      return attended;
    });
    const Tensor logits = answer_logits(*decoder_, batch, hidden);
    losses.push_back(at::cross_entropy_loss(logits.flatten(0, 1), batch.answers.flatten()));
    hits.push_back(logits.argmax(-1).eq(batch.answers));
    near.push_back(batch.is_near);
    if (has_routes_) full.push_back(at::stack(decisions, 1).mean(1));
  }
  const Tensor hit = at::cat(hits), is_near = at::cat(near).gt(0), is_far = is_near.logical_not();
  RecallScore result{.loss = mean_of(at::stack(losses)), .accuracy = mean_of(hit)};
  if (!found.empty()) result.found = mean_of(at::cat(found));
  result.far_accuracy = mean_of(hit, is_far), result.near_accuracy = mean_of(hit, is_near);
  if (!has_routes_) return result;
  const Tensor each = at::cat(full);
  result.far_full = mean_of(each, is_far), result.near_full = mean_of(each, is_near);
  return result;
}

}  // namespace foveate::train
