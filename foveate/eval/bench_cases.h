// The problems that `foveate bench attention` measures; see bench_attention.h.
#pragma once

#include "foveate/eval/bench_attention.h"

namespace foveate::eval {

// Lists of the same length for every query block, spread over the keys at random; shared by all heads.
BlockPlan random_blocks(int64_t queries, int64_t keys, int64_t block, double density);
// `count` distinct keys for each block of 64 queries.
TokenPlan random_tokens(int64_t queries, int64_t keys, int64_t count);

}  // namespace foveate::eval
