// A decoder's parameters as training from nothing begins.
#pragma once

#include "foveate/models/language/weights.h"

namespace foveate::models {

// Of Llama's architecture with biases of queries, keys and values.  fp32, the same numbers for the same seed: matrices
// normal with variance 1 / inputs, those that write into the residual stream with 1 / (2 layers inputs), embeddings
// with 1 / width, norms 1, biases 0. Throws Error: another architecture.
DecoderWeights random_weights(const DecoderConfig& config, uint64_t seed);

}  // namespace foveate::models
