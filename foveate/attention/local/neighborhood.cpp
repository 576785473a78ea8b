#include "foveate/attention/local/neighborhood.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>

#include <algorithm>

namespace foveate::attention {
namespace {

using at::Tensor;

// Queries in the order of their dilation groups, groups apart, and the keys that each block of them may see.
TokenPlan by_group(int64_t start, int64_t queries, const NeighborhoodWindow& window, const Rule& rule) {
  const int64_t d = window.dilation, block = std::min<int64_t>(64, (queries + d - 1) / d);
  std::vector<std::vector<int64_t>> groups;  // of at most `block` queries, by key index
  for (int64_t first = start; first < std::min(start + d, start + queries); ++first) {
    for (int64_t key = first, in_block = 0; key < start + queries; key += d, in_block = (in_block + 1) % block) {
      if (in_block == 0) groups.emplace_back();
      groups.back().push_back(key);
    }
  }
  const int64_t blocks = std::ssize(groups), capacity = window.kernel + block - 1;
  TokenPlan plan{.query_block = block, .index = at::full({1, 1, blocks, capacity}, -1, at::kInt), .rule = rule};
  Tensor order = at::full({1, 1, blocks * block}, -1, at::kLong);
  for (int64_t i = 0; i < blocks; ++i) {
    const std::vector<int64_t>& own = groups[size_t(i)];
    for (size_t n = 0; n < own.size(); ++n) order.mutable_data_ptr<int64_t>()[i * block + int64_t(n)] = own[n] - start;
    const int64_t first = std::max(own.front() - d * (window.kernel - 1), own.front() % d);
    int32_t* to = plan.index.mutable_data_ptr<int32_t>() + i * capacity;
    for (int64_t key = first; key <= own.back(); key += d) *to++ = int32_t(key);
  }
  plan.rule.query_order = order;
  return plan;
}

}  // namespace

void NeighborhoodWindow::validate() const {
  check_options(*this);
  require(stride <= kernel, "neighborhood: stride must be <= kernel, got {} > {}", stride, kernel);
}

Attended NeighborhoodWindow::attend(const Inputs& in) const {
  validate();
  const int64_t queries = in.q.size(2), start = first_query_key(in, name);
  const Tensor place = text_positions(in, name).div(dilation, "floor");  // in the dilation group
  const Tensor leader = place.div(stride, "floor").mul(stride) + (stride - 1);
  const Tensor back = place - (leader - (kernel - 1)).clamp_min(0);  // keys before its own that a query sees
  const Tensor key = at::arange(start, start + queries, at::kLong);
  const Tensor first = (key - back * dilation).clamp_min(0).unsqueeze(1);  // [B|1, 1, Lq]
  Rule rule = in.rule;
  rule.query_start = start;
  rule.row_start = rule.row_start ? at::maximum(*rule.row_start, first) : first;
  const Plan plan = dilation == 1 ? Plan(rule) : Plan(by_group(start, queries, *this, rule));
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
  return {attended.out, attended.lse, {{0, queries, plan}}};
}

std::unique_ptr<State> NeighborhoodWindow::make_state(const StateOptions& options) const {
  CachedState::Bound bound{.head = 0, .tail = dilation * (kernel - 1) + 1};
  if (const auto own = bound_of(options.rule); own && own->head == 0 && own->tail <= bound.tail) bound = *own;
  return std::make_unique<PlainState<NeighborhoodWindow>>(*this, bound, options);
}

}  // namespace foveate::attention
