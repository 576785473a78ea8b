// Sums of attention probabilities over raw views, without ever holding them all; ops/sums makes the arguments of
// tensors.
#pragma once

#include "foveate/kernels/attend.h"

namespace foveate::kernels {

struct SumRequest {
  SumBy by = SumBy::key;
  bool squared = false;
  float farthest = 0;
  int64_t query_block = 1, key_block = 1;  // by block
  int64_t places(const Arguments& a) const;
  int64_t columns(const Arguments& a) const;
};

// Adds to out [B, Hq, places, columns].  arguments: wants_places, and v without a dim (value_dim 0).  lse [B, Hq, Lq].
void sums(const Table& table, const Arguments& arguments, const float* lse, const SumRequest& request, float* out,
          const Pool& pool);

}  // namespace foveate::kernels
