// The problems that `foveate bench attention` measures; see bench_attention.h.
#pragma once

#include "foveate/eval/bench_attention.h"

namespace foveate::eval {

// Lists of the same length for every query block, spread over the keys at random; shared by all heads.
BlockPlan random_blocks(int64_t queries, int64_t keys, int64_t block, double density);
// The same for every single query, `block` keys each.
BlockPlan random_blocks_by_query(int64_t queries, int64_t keys, int64_t block, double density);
// The latest `local` keys of each block of 64 queries and `lines` single keys shared by all: a vertical-slash pattern.
RunPlan local_and_lines(int64_t queries, int64_t keys, int64_t local, int64_t lines);
// `count` distinct keys for each block of 64 queries.
TokenPlan random_tokens(int64_t queries, int64_t keys, int64_t count);

}  // namespace foveate::eval
