// How close a mechanism's predictions are to dense attention's, and how good they are: two runs in lockstep.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "foveate/models/language/decoder.h"

namespace foveate::eval {

// Per scored token, in text order.
struct Agreement {
  std::vector<float> nll, dense_nll;  // nats
  std::vector<float> kl;              // KL(dense || mechanism) in nats
  std::vector<uint8_t> same_top1;

  double nats_vs_dense() const;  // mean difference; NaN where nothing was scored
  double top1_agreement() const;
  double mean_kl() const;
};

// hidden, dense_hidden [n, width]: last hidden states at n consecutive positions; targets: the n tokens that follow
// each. Logits are made for a few positions at a time: vocabularies are large.
Agreement compare_predictions(const models::Decoder& decoder, const at::Tensor& hidden, const at::Tensor& dense_hidden,
                              std::span<const int32_t> targets);

// Negative log-likelihood of each target, in nats; targets as above.
std::vector<float> token_nll(const models::Decoder& decoder, const at::Tensor& hidden,
                             std::span<const int32_t> targets);

}  // namespace foveate::eval
