#include "foveate/attention/sparse/landmark.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "foveate/attention/sparse/landmark_retrieval.h"
#include "foveate/attention/sparse/landmark_state.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

// The position in the text of the call's first key.
int64_t first_key_position(const Inputs& in) {
  const int64_t start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2));
  return in.first_position.value_or(start) - start;
}

// Every landmark's key hidden by a bias, which joins the model's own.
ops::Score without_landmarks(ops::Score score, const at::Tensor& landmarks, at::ScalarType type) {
  const at::Tensor hides =
      at::zeros({landmarks.size(0), 1, 1, landmarks.size(1)}, landmarks.options().dtype(type))
          .masked_fill_(landmarks.unsqueeze(1).unsqueeze(1), -std::numeric_limits<double>::infinity());
  score.bias = score.bias ? *score.bias + hides : hides;
  return score;
}

}  // namespace

at::Tensor regular_landmarks(int64_t first, int64_t length, int64_t block) {
  return at::arange(first + 1, first + length + 1, at::kLong).remainder(block).eq(0).unsqueeze(0);
}

void Landmark::validate() const {
  check_options(*this);
  if (mode != Mode::landmark) {
    require(offload.empty(), "landmark: offload needs mode=landmark, got mode={}", enum_names(mode)[size_t(mode)]);
    return;
  }
  require(chunk > 0 || chunk_length() >= 1,
          "landmark: train_context must hold top_k + 2 blocks, got {} for {} blocks of {}; or set chunk", train_context,
          top_k + 2, block);
}

int64_t Landmark::chunk_length() const {
  return chunk > 0 ? chunk : train_context - train_context % block - (top_k + 1) * block;
}

Kind Landmark::own_kind() const {
  return mode == Mode::landmark && select == Select::max_over_tokens ? Kind::block : Kind::row;
}

int64_t Landmark::chunk_multiple() const { return own_kind() == Kind::block ? chunk_length() : 1; }

int64_t Landmark::candidates(int64_t before) const { return max_blocks > 0 ? std::min(before, max_blocks) : before; }

int64_t Landmark::blocks_before(int64_t position) const {
  const int64_t length = chunk_length();
  return position / length * length / block;
}

int64_t Landmark::local_start(int64_t position) const {
  const int64_t before = blocks_before(position), count = candidates(before);
  return (count > top_k ? before : before - count) * block;
}

void Landmark::check_retrieval(const Inputs& in, int64_t end) const {
  require(in.rule.window_right == 0 && in.rule.sinks == 0 && !in.rule.query_order,
          "landmark: fetching blocks needs a causal rule without sinks or order of queries; use mode=grouped");
  const ops::Score& s = in.score;
  require(!s.bias && !s.slopes && !s.relative && !s.leaky && s.dropout == 0,
          "landmark: fetched blocks know scale, soft cap and sink, got bias, slopes, relative, leaky or dropout; use "
          "mode=grouped");
  require(positions == Positions::text || in.rotary,
          "landmark: positions=stingy needs a model with rotary embedding, got one without; use positions=text");
  if (!s.landmarks) return;
  const int64_t marked = s.landmarks->size(1);
  const at::Tensor regular = regular_landmarks(end - marked, marked, block);
  require(s.landmarks->eq(regular).all().item<bool>(),
          "landmark: fetching blocks needs a landmark at the end of every {} tokens, got other places; use "
          "mode=grouped",
          block);
}

Attended Landmark::attend(const Inputs& in) const {
  validate();
  const int64_t first = first_key_position(in);
  if (mode != Mode::landmark) {
    ops::Score score = in.score;
    const at::Tensor landmarks = score.landmarks ? *score.landmarks : regular_landmarks(first, in.k.size(2), block);
    score.landmarks = mode == Mode::grouped ? std::optional(landmarks) : std::nullopt;
    if (mode == Mode::ignore_mem)
      score = without_landmarks(score, landmarks, in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const ops::Attended attended = ops::attend(in.q, in.k, in.v, in.rule, score);
    if (mode == Mode::grouped) return {attended.out, std::nullopt, {{0, in.q.size(2), in.rule}}};
    return {attended.out, attended.lse, {{0, in.q.size(2), in.rule}}};
  }
  check_retrieval(in, first + in.k.size(2));
  first_query_key(in, name);
  require(first % block == 0, "landmark: the first key must start a block of {}, got position {}", block, first);
  LandmarkRetrieval retrieval(*this);
  retrieval.set(ops::widened(in.k, in.q.scalar_type()).slice(2, block - 1, {}, block), first / block);
  return retrieval.attend(in, first, false, [&](const at::Tensor& chosen) {
    return LandmarkRetrieval::Fetched{in.k, in.v, chosen - first / block};
  });
}

std::unique_ptr<State> Landmark::make_state(const StateOptions& options) const {
  validate();
  if (mode != Mode::landmark) return std::make_unique<PlainState<Landmark>>(*this, std::nullopt, options);
  return make_landmark_state(*this, options);
}

}  // namespace foveate::attention
