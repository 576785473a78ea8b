// Chooses the next token from logits.
#pragma once

#include <cstdint>
#include <span>

#include "foveate/base/random.h"

namespace foveate::models {

// Filters apply in this order: temperature, top_k, top_p, min_p.  temperature 0 takes the best token (lowest id of
// equals).
struct Sampling {
  double temperature = 0;
  int64_t top_k = 0;  // the k best tokens; 0: all
  double top_p = 1;   // the fewest best tokens whose probabilities reach p (Holtzman et al., 1904.09751)
  double min_p = 0;   // tokens at least min_p as likely as the best one (Nguyen et al., 2407.01082)

  void validate() const;  // Throws Error: temperature < 0, top_k < 0, top_p outside (0, 1], min_p outside [0, 1]
};

// logits: one per token, finite or -inf.  Throws Error: none, or NaN among them.
int32_t sample(std::span<const float> logits, const Sampling& sampling, Random& random);

}  // namespace foveate::models
