// Scores of an indexer row by row: the kernels on packed keys, or the definition where none run.
#pragma once

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "foveate/kernels/tile.h"
#include "foveate/ops/index/index.h"

namespace foveate::ops {

// The keys of each query, checked.
class RowRanges {
 public:
  // Throws Error: start or end that are not [rows] int64, or no range of `keys` keys.
  RowRanges(const at::Tensor& start, const at::Tensor& end, int64_t rows, int64_t keys);
  RowRanges(const IndexQueries& queries, int64_t keys)
      : RowRanges(queries.start, queries.end, queries.q.size(0), keys) {}

  int64_t start(int64_t row) const { return start_.const_data_ptr<int64_t>()[row]; }
  int64_t end(int64_t row) const { return end_.const_data_ptr<int64_t>()[row]; }
  std::pair<int64_t, int64_t> columns(int64_t row) const {  // of 16 keys, [first, last)
    return units(row, kernels::kIndexColumn);
  }
  std::pair<int64_t, int64_t> units(int64_t row, int64_t size) const {
    if (start(row) == end(row)) return {0, 0};
    return {start(row) / size, (end(row) + size - 1) / size};
  }

 private:
  at::Tensor start_, end_;
};

struct ScoreScratch {
  std::vector<const float*> columns, scales;
};

// Some rows of queries against all keys.
class RowScores {
 public:
  RowScores(const at::Tensor& q, const at::Tensor& weights, const IndexKeys& keys);
  // The same queries against other keys of the same units, as those of BlockedKeys are.
  RowScores(const RowScores& queries, const IndexKeys& keys);

  // to[i][16] of columns ids[i]
  void columns(int64_t row, std::span<const int64_t> ids, ScoreScratch& scratch, float* to) const;
  void range(int64_t row, int64_t first, int64_t end, ScoreScratch& scratch, float* to) const;

 private:
  template <class Id>
  void run(int64_t row, int64_t count, const Id& id, ScoreScratch& scratch, float* to) const;

  const IndexKeys& keys_;
  int64_t heads_;
  at::Tensor units_, weights_;
  at::Tensor logits_;  // [rows, N], where no kernel runs
};

// Calls use(scores, first row, rows) for parts of the queries that fit into memory once more.  Throws Error: queries
// that do not fit the keys.
void for_row_tiles(const IndexQueries& queries, const IndexKeys& keys,
                   const std::function<void(const RowScores&, int64_t first_row, int64_t rows)>& use);

}  // namespace foveate::ops
