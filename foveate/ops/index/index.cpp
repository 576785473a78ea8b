#include "foveate/ops/index/index.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/ops/index/scores.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/select/top.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr int64_t kColumn = kernels::kIndexColumn;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Tensor empty_lists(int64_t rows, int64_t topk) {
  require(topk >= 1, "index: topk must be >= 1, got {}", topk);
  return at::full({rows, topk}, -1, at::kInt);
}

constexpr int64_t kRowsAtOnce = 4;      // queries that share a part of the keys while it is in the second-level cache
constexpr int64_t kColumnsAtOnce = 64;  // a quarter of it where a key has 256 bytes

// Calls use(worker, rows, scores of each row from its first column on) for every few queries.
template <class Use>
void for_flat_rows(const IndexQueries& queries, const IndexKeys& keys, const Use& use) {
  const RowRanges ranges(queries, keys.length());
  for_row_tiles(queries, keys, [&](const RowScores& scores, int64_t first_row, int64_t rows) {
    const Pool pool = torch_pool();
    std::vector<std::vector<float>> buffers(size_t(std::max(pool.threads, 1)));
    std::vector<ScoreScratch> scratches(buffers.size());
    run_queue(pool, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int worker) {
      const int64_t first = item * kRowsAtOnce, end = std::min(first + kRowsAtOnce, rows);
      const int64_t columns = (keys.length() + kColumn - 1) / kColumn, width = columns * kColumn;
      std::vector<float>& buffer = buffers[size_t(worker)];
      buffer.resize(size_t(kRowsAtOnce * width));
      for (int64_t part = 0; part < columns; part += kColumnsAtOnce)
        for (int64_t row = first; row < end; ++row) {
          const auto [from, to] = ranges.columns(first_row + row);
          const int64_t a = std::max(part, from), b = std::min(part + kColumnsAtOnce, to);
          if (a < b)
            scores.range(row, a, b, scratches[size_t(worker)], buffer.data() + (row - first) * width + a * kColumn);
        }
      for (int64_t row = first; row < end; ++row)
        use(worker, first_row + row, ranges, buffer.data() + (row - first) * width);
    });
  });
}

}  // namespace

Tensor index_logits(const IndexQueries& queries, const IndexKeys& keys) {
  const int64_t length = keys.length();
  const Tensor logits = at::full({queries.q.size(0), length}, kMinusInfinity, at::kFloat);
  float* to = logits.mutable_data_ptr<float>();
  for_flat_rows(queries, keys, [&](int, int64_t row, const RowRanges& ranges, const float* scores) {
    const int64_t start = ranges.start(row);
    std::copy(scores + start, scores + ranges.end(row), to + row * length + start);
  });
  return logits;
}

Tensor index_top(const IndexQueries& queries, const IndexKeys& keys, int64_t topk) {
  const Tensor index = empty_lists(queries.q.size(0), topk);
  int32_t* to = index.mutable_data_ptr<int32_t>();
  std::vector<TopOfRow> top(size_t(std::max(torch_pool().threads, 1)));
  for_flat_rows(queries, keys, [&](int worker, int64_t row, const RowRanges& ranges, const float* scores) {
    top[size_t(worker)]({scores + ranges.start(row), size_t(ranges.end(row) - ranges.start(row))}, topk,
                        to + row * topk);
  });
  return index;
}

Tensor index_top(const Tensor& logits, const Tensor& start, const Tensor& end, int64_t topk) {
  require(logits.dim() == 2 && logits.is_floating_point(),
          "index_top: logits must be floating point [M, N], got {} axes", logits.dim());
  const Tensor flat = logits.detach().to(at::kFloat).contiguous(), index = empty_lists(flat.size(0), topk);
  const RowRanges ranges(start, end, flat.size(0), flat.size(1));
  const float* scores = flat.const_data_ptr<float>();
  int32_t* to = index.mutable_data_ptr<int32_t>();
  const Pool pool = torch_pool();
  std::vector<TopOfRow> top(size_t(std::max(pool.threads, 1)));
  run_queue(pool, flat.size(0), [&](int64_t row, int worker) {
    const float* from = scores + row * flat.size(1) + ranges.start(row);
    top[size_t(worker)]({from, size_t(ranges.end(row) - ranges.start(row))}, topk, to + row * topk);
  });
  return index;
}

}  // namespace foveate::ops
