// Associative recall: pairs of a key and its value, much noise, and then keys whose values are to be said.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "foveate/base/options.h"

namespace foveate::train {

// A text of `length` tokens: a first token, `pairs` pairs at random places among noise, at least `gap` tokens of noise,
// and the pairs once more in another order: each key asks for its value.  Of a share `near` of the texts the pairs
// stand right before the questions, and the noise before them.  Keys are drawn without repetition, values with it.
// Source: multi-query associative recall (Arora et al., 2312.04927), with distance.
struct RecallTask {
  static constexpr std::string_view name = "recall";

  int64_t length = 256, pairs = 8, gap = 64, keys = 32, values = 32, noise = 16;
  double near = 0;

  static constexpr double kMost = 1 << 20;  // sums of a few of these numbers, and lists of them, must fit

  static void fields(auto& self, auto&& visit) {
    visit("length", self.length, between(8, kMost), "tokens of a text");
    visit("pairs", self.pairs, between(1, kMost), "pairs of key and value, all of which are asked for at the end");
    visit("gap", self.gap, between(0, kMost), "tokens of noise between the pairs and the questions, at least");
    visit("keys", self.keys, between(1, kMost), "different keys");
    visit("values", self.values, between(2, kMost), "different values");
    visit("noise", self.noise, between(1, kMost), "different tokens of noise");
    visit("near", self.near, between(0, 1), "share of texts whose pairs stand right before the questions");
  }
  // Throws Error: pairs, gap and questions that do not fit the length, fewer keys than pairs.
  void validate() const;
  int64_t vocabulary() const { return 1 + keys + values + noise; }
};

struct RecallBatch {
  at::Tensor tokens;   // [B, length] int64
  at::Tensor asked;    // [pairs] int64: where the keys of the questions stand
  at::Tensor answers;  // [B, pairs] int64: the values to be said there, which stand right behind
  at::Tensor places;   // [B, pairs] int64: where these values stand among the pairs
  at::Tensor is_near;  // [B] int64, 0 or 1
};

// The same texts for the same seed and stream.
RecallBatch make_recall(const RecallTask& task, int64_t batch, uint64_t seed, uint64_t stream);

}  // namespace foveate::train
