#include "foveate/ops/index/scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "foveate/base/error.h"
#include "foveate/ops/level.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr int64_t kColumn = kernels::kIndexColumn;

// Scores of all keys in plain ATen: the definition.
Tensor defined_scores(const Tensor& q, const Tensor& weights, const IndexKeys& keys) {
  const Tensor k = keys.values(0, keys.length());
  Tensor logits = at::zeros({q.size(0), keys.length()}, at::kFloat);
  for (int64_t head = 0; head < q.size(1); ++head)
    logits.add_(at::relu(at::matmul(q.select(1, head), k.t())) * weights.narrow(1, head, 1));
  return logits;
}

}  // namespace

RowRanges::RowRanges(const Tensor& start, const Tensor& end, int64_t rows, int64_t keys)
    : start_(start.contiguous()), end_(end.contiguous()) {
  for (const Tensor* t : {&start, &end})
    require(t->scalar_type() == at::kLong && t->dim() == 1 && t->size(0) == rows,
            "index: start and end must be int64 [{}], got {} [{}]", rows, c10::toString(t->scalar_type()),
            fmt::join(t->sizes(), ", "));
  for (int64_t row = 0; row < rows; ++row)
    require(this->start(row) >= 0 && this->start(row) <= this->end(row) && this->end(row) <= keys,
            "index: ranges must be 0 <= start <= end <= {}, got [{}, {}) of query {}", keys, this->start(row),
            this->end(row), row);
}

RowScores::RowScores(const Tensor& q, const Tensor& weights, const IndexKeys& keys)
    : keys_(keys),
      heads_(q.size(1)),
      units_(keys.units(q.scalar_type() == at::kFloat8_e4m3fn ? q.to(at::kBFloat16) : q)),
      weights_(weights.to(at::kFloat).contiguous()) {
  if (kernel_table()) return;
  logits_ = defined_scores(units_, weights_, keys);
}

RowScores::RowScores(const RowScores& queries, const IndexKeys& keys)
    : keys_(keys), heads_(queries.heads_), units_(queries.units_), weights_(queries.weights_) {
  if (!kernel_table()) logits_ = defined_scores(units_, weights_, keys);
}

template <class Id>
void RowScores::run(int64_t row, int64_t count, const Id& id, ScoreScratch& scratch, float* to) const {
  if (!kernel_table()) {
    const float* from = logits_.const_data_ptr<float>() + row * keys_.length();
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(from + id(i) * kColumn, std::min(kColumn, keys_.length() - id(i) * kColumn), to + i * kColumn);
    return;
  }
  scratch.columns.resize(size_t(count)), scratch.scales.resize(size_t(count));
  const float* scales = keys_.scales();
  for (int64_t i = 0; i < count; ++i) {
    scratch.columns[size_t(i)] = keys_.column(id(i));
    if (scales) scratch.scales[size_t(i)] = scales + id(i) * kColumn;
  }
  kernels::IndexTile tile;
  tile.heads = int(heads_), tile.steps = int(keys_.steps());
  tile.q = units_.const_data_ptr<float>() + row * heads_ * keys_.steps();
  tile.weights = weights_.const_data_ptr<float>() + row * heads_;
  tile.columns = scratch.columns.data(), tile.scales = scales ? scratch.scales.data() : nullptr;
  tile.column_count = int(count), tile.to = to;
  kernel_table()->index_scores[keys_.has_pairs()](tile);
}

void RowScores::columns(int64_t row, std::span<const int64_t> ids, ScoreScratch& scratch, float* to) const {
  run(
      row, std::ssize(ids), [&](int64_t i) { return ids[size_t(i)]; }, scratch, to);
}

void RowScores::range(int64_t row, int64_t first, int64_t end, ScoreScratch& scratch, float* to) const {
  run(
      row, end - first, [&](int64_t i) { return first + i; }, scratch, to);
}

void for_row_tiles(const IndexQueries& queries, const IndexKeys& keys,
                   const std::function<void(const RowScores&, int64_t first_row, int64_t rows)>& use) {
  const Tensor &q = queries.q, &weights = queries.weights;
  require(q.dim() == 3 && (q.is_floating_point()) && q.size(1) >= 1 && q.size(2) == keys.dim(),
          "index: q must be floating point [M, HI >= 1, {}], got {} [{}]", keys.dim(), c10::toString(q.scalar_type()),
          fmt::join(q.sizes(), ", "));
  require(
      weights.dim() == 2 && weights.is_floating_point() && weights.size(0) == q.size(0) && weights.size(1) == q.size(1),
      "index: weights must be floating point [{}, {}], got {} [{}]", q.size(0), q.size(1),
      c10::toString(weights.scalar_type()), fmt::join(weights.sizes(), ", "));
  constexpr int64_t kElements = int64_t{1} << 22;  // of q in the kernels' units at a time
  const int64_t rows = std::max<int64_t>(kElements / (q.size(1) * q.size(2)), 16);
  for (int64_t first = 0; first < q.size(0); first += rows) {
    const int64_t some = std::min(rows, q.size(0) - first);
    use(RowScores(q.detach().narrow(0, first, some), weights.detach().narrow(0, first, some), keys), first, some);
  }
}

}  // namespace foveate::ops
