#include "foveate/models/language/landmarks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "foveate/attention/sparse/landmark.h"
#include "foveate/base/error.h"

namespace foveate::models {

using at::Tensor;

std::vector<int32_t> with_landmarks(std::span<const int32_t> tokens, const Landmarks& landmarks, int64_t read) {
  require(landmarks.block >= 2, "landmarks: block must be >= 2, got {}", landmarks.block);
  std::vector<int32_t> all;
  for (const int32_t token : tokens) {
    require(token != landmarks.token, "landmarks: a text must not hold the landmark, got {} among its tokens", token);
    all.push_back(token);
    if ((read + std::ssize(all) + 1) % landmarks.block == 0) all.push_back(landmarks.token);
  }
  return all;
}

std::vector<int64_t> landmark_targets(std::span<const int32_t> tokens, const Landmarks& landmarks) {
  const bool skips = landmarks.logits == Landmarks::Logits::before;
  std::vector<int64_t> targets(tokens.size(), kNoTarget);
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    if (skips && tokens[i] == landmarks.token) continue;
    const size_t next = skips && tokens[i + 1] == landmarks.token ? i + 2 : i + 1;
    if (next < tokens.size()) targets[i] = tokens[next];
  }
  return targets;
}

int32_t find_landmark(const io::Tokenizer& tokenizer, std::string_view text) {
  const std::optional<int32_t> id = tokenizer.find(text);
  require(id.has_value(), "landmarks: the vocabulary must hold '{}', got none; train a model with it (add_landmark)",
          text);
  return *id;
}

Decoder add_landmark(const Decoder& decoder) {
  DecoderWeights weights = decoder.weights();
  require(weights.embedding.defined() && weights.head.defined(),
          "landmarks: a token can be added to dense weights alone, got packed ones; use --weights dense");
  DecoderConfig config = decoder.config();
  const bool is_shared = weights.head.is_same(weights.embedding);
  const auto grown = [](const Tensor& rows) {
    const Tensor mean = rows.detach().mean(0, true, at::kFloat).to(rows.scalar_type());
    return at::cat({rows.detach(), mean}).requires_grad_(rows.requires_grad());
  };
  weights.embedding = grown(weights.embedding);
  weights.head = is_shared ? weights.embedding : grown(weights.head);
  ++config.vocabulary;
  return Decoder(std::move(config), std::move(weights));
}

LandmarkSession::LandmarkSession(Session& session, const Landmarks& landmarks)
    : session_(session), landmarks_(landmarks) {
  const int64_t vocabulary = session.decoder().config().vocabulary;
  require(landmarks.token >= 0 && landmarks.token < vocabulary,
          "landmarks: the token must be in the model's vocabulary of {}, got {}; add_landmark adds one", vocabulary,
          landmarks.token);
  for (const attention::Mechanism& m : session.mechanisms()) {
    if (m.spec().name != attention::Landmark::name) continue;
    const int64_t block = parse_options<attention::Landmark>(m.spec()).block;
    require(block == landmarks.block, "landmarks: blocks must be those of the mechanism, got {} for {}",
            landmarks.block, m.spec().text());
  }
}

Tensor LandmarkSession::prefill(std::span<const int32_t> tokens, bool ends_prompt) {
  return run(tokens, true, ends_prompt);
}

Tensor LandmarkSession::decode(std::span<const int32_t> tokens) { return run(tokens, false, true); }

Tensor LandmarkSession::run(std::span<const int32_t> tokens, bool is_prompt, bool ends_prompt) {
  const std::vector<int32_t> all = with_landmarks(tokens, landmarks_, session_.length());
  const Tensor hidden = is_prompt ? session_.prefill(all, ends_prompt) : session_.decode(all);
  if (all.size() == tokens.size()) return hidden;
  std::vector<int64_t> rows;  // of hidden, for each token given
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] == landmarks_.token) continue;
    const bool closed = i + 1 < all.size() && all[i + 1] == landmarks_.token;
    rows.push_back(int64_t(closed && landmarks_.logits == Landmarks::Logits::own ? i + 1 : i));
  }
  return hidden.index_select(1, at::tensor(rows, at::kLong));
}

Tensor LandmarkSession::logits(const Tensor& hidden) const {
  Tensor logits = session_.decoder().logits(hidden).clone();
  logits.select(-1, landmarks_.token).fill_(-std::numeric_limits<double>::infinity());
  return logits;
}

}  // namespace foveate::models
