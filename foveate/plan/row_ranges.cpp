#include "foveate/plan/row_ranges.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <unordered_map>

namespace foveate {
namespace {

struct Stretch {
  int64_t start = 0, end = 0;
  bool is_whole = true;  // all keys of the document lie here
};

// Where the documents of one sequence lie among its keys.
std::unordered_map<int64_t, Stretch> stretches_of(const int64_t* documents, int64_t keys) {
  std::unordered_map<int64_t, Stretch> found;
  for (int64_t start = 0, end = 0; start < keys; start = end) {
    while (end < keys && documents[end] == documents[start]) ++end;
    const auto [at, is_new] = found.try_emplace(documents[start], Stretch{start, end});
    if (!is_new) at->second = {at->second.start, end, false};
  }
  return found;
}

RowRanges ranges_of_documents(const at::Tensor& queries, const at::Tensor& keys) {
  const int64_t batch = queries.size(0), rows = queries.size(1);
  const at::Tensor ids = queries.contiguous(), key_ids = keys.contiguous();
  RowRanges ranges{at::zeros({batch, 1, rows}, at::kLong), at::zeros({batch, 1, rows}, at::kLong)};
  for (int64_t b = 0; b < batch; ++b) {
    const auto stretches = stretches_of(key_ids.const_data_ptr<int64_t>() + b * keys.size(1), keys.size(1));
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) {
      const auto own = stretches.find(ids.const_data_ptr<int64_t>()[i]);
      if (own == stretches.end()) continue;  // sees nothing
      if (!own->second.is_whole) ranges.whole = false;
      ranges.start.mutable_data_ptr<int64_t>()[i] = own->second.start;
      ranges.end.mutable_data_ptr<int64_t>()[i] = own->second.end;
    }
  }
  return ranges;
}

}  // namespace

RowRanges row_ranges(const Rule& rule, int64_t queries, int64_t keys) {
  const int64_t first = rule.query_start.value_or(keys - queries);
  const at::Tensor position = at::arange(first, first + queries, at::kLong).view({1, 1, -1});
  at::Tensor start = at::zeros_like(position), end = at::full_like(position, keys);
  bool whole = true;
  if (rule.window_left) start = at::maximum(start, position - *rule.window_left);
  if (rule.head_window) {
    const at::Tensor left = rule.head_window->view({1, -1, 1});
    start = at::maximum(start, at::where(left.lt(0), 0, position - left));
  }
  if (rule.window_right) end = at::minimum(end, position + (*rule.window_right + 1));
  if (rule.sinks > 0) {
    whole = start.le(rule.sinks).all().item<bool>();
    start = at::zeros_like(position);
  }
  if (rule.row_start) start = at::maximum(start, *rule.row_start);
  if (rule.row_end) end = at::minimum(end, *rule.row_end);
  if (rule.key_lengths) end = at::minimum(end, rule.key_lengths->view({-1, 1, 1}));
  if (rule.key_documents) {
    const RowRanges own = ranges_of_documents(*rule.query_documents, *rule.key_documents);
    start = at::maximum(start, own.start), end = at::minimum(end, own.end), whole = whole && own.whole;
  }
  start = start.clamp(0, keys);
  return {start, at::maximum(start, end), whole};
}

}  // namespace foveate
