// Speed of hierarchical indexing (HISA) beside the flat indexer, over the rows of a prefill, in one process.
#pragma once

#include <functional>

#include "foveate/ops/index/index.h"

namespace foveate::eval {

struct IndexBenchOptions {
  int64_t heads = 64, dim = 128, block = 128;
  ops::IndexType type = ops::IndexType::e4m3;
  ops::HisaOptions hisa;
  int64_t rows = 64;  // queries, evenly over the length: their mean is that of a whole prefill
  int64_t repeats = 5;
};

struct IndexTiming {
  int64_t length = 0;
  // Seconds a query, medians.  hierarchical: pooling included, its share of a prefill that pools once.
  double flat = 0, hierarchical = 0, pooling = 0;
  double products = 0;     // GFLOP/s of the flat scores, selection included
  double model_ratio = 0;  // products of flat over those of hierarchical, for the same rows: R(L) of the paper
};

// Checked first: enough blocks must give the flat lists.  Throws Error: numbers < 1, lists that differ.
IndexTiming bench_index(int64_t length, const IndexBenchOptions& options);

}  // namespace foveate::eval
