// The best keys at given distances before each query: search on stripes, whose keys for neighbouring queries are
// neighbours too.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace foveate::ops {

struct StripeProblem {
  at::Tensor q, k;                     // [B, Hq, Lq, D], [B, Hkv, Lk, D], one dtype of fp32, bf16, fp16, fp64
  std::span<const int64_t> distances;  // ascending, >= 0: the candidates of a query at p are the keys p - distance
  int64_t query_start = 0;             // query i sits at query_start + i
  at::Tensor first, end;               // [B|1, Lq] int64: of them those in [first, end), end <= Lk
};

// For each query its `count` candidates of highest q . k, best first, [B, Hq, Lq, count] int64; -1 where there are
// fewer.  Equal scores: the larger distance (the lower key) first; NaN is never chosen.  Scores in fp32 (fp64 for
// fp64). Query head h reads key head h / (Hq / Hkv).  No gradient.  No memory of queries times candidates; the same on
// any number of threads.  Throws Error: shapes that do not fit.   Source: Superlinear attention, 2601.18401, span
// search.
at::Tensor search_stripes(const StripeProblem& problem, int64_t count);

}  // namespace foveate::ops
