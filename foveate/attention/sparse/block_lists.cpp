#include "foveate/attention/sparse/block_lists.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {

using at::Tensor;

BlockGrid::BlockGrid(const Inputs& in, int64_t query_block, int64_t key_block)
    : query_block_(query_block),
      key_block_(key_block),
      queries_(in.q.size(2)),
      keys_(in.k.size(2)),
      start_(in.rule.query_start.value_or(keys_ - queries_)),
      sinks_(in.rule.sinks),
      window_left_(in.rule.window_left) {}

BlockGrid::Span BlockGrid::span_of(const Tensor& begin, const Tensor& end) const {
  const auto block = [&](const Tensor& position) { return position.div(key_block_, "floor"); };
  return {begin, end, block(begin), block(end - 1).clamp_max_(key_blocks() - 1),
          window_left_ ? block((begin - *window_left_).clamp_min_(0)) : at::zeros_like(begin)};
}

BlockGrid::Span BlockGrid::span(int64_t first, int64_t count) const {
  const Tensor begin = at::arange(first, first + count, at::kLong).mul_(query_block_).add_(start_).unsqueeze(1);
  return span_of(begin, (begin + query_block_).clamp_max_(start_ + queries_));
}

BlockGrid::Span BlockGrid::span_of_last(int64_t queries) const {
  const Tensor end = at::arange(start_ + queries_, start_ + queries_ + 1, at::kLong).unsqueeze(1);
  return span_of(end - queries, end);
}

Tensor BlockGrid::columns() const { return at::arange(key_blocks(), at::kLong); }

Tensor BlockGrid::seen(const Span& s) const {
  const Tensor column = columns();
  return column.le(s.latest).logical_and_(column.ge(s.oldest).logical_or_(column.lt(sink_blocks())));
}

Tensor BlockGrid::own_blocks(const Span& s) const {
  const Tensor column = columns();
  return column.ge(s.own).logical_and_(column.le(s.latest));
}

Tensor BlockGrid::first_block(const Span& s) const { return columns().lt(1).logical_and(columns().le(s.latest)); }

void check_block_rule(const Rule& rule, std::string_view name) {
  require(!rule.key_lengths && !rule.query_order,
          "{}: padded keys and ordered queries are not supported, choose rows of one length", name);
  require(rule.window_right == 0, "{}: the rule must be causal, got one that shows later keys", name);
}

BlockScores scores_by_means(const BlockGrid& grid, const Tensor& q, const Tensor& means, bool by_group) {
  return [&grid, q = q.detach(), means, by_group](int64_t first, int64_t count) {
    const int64_t from = first * grid.query_block(), queries = std::min(count * grid.query_block(), q.size(2) - from);
    return ops::score_blocks(q.narrow(2, from, queries), means, ops::even_cuts(queries, grid.query_block()),
                             ops::Pooling::mean, by_group);
  };
}

Tensor select_blocks(const BlockGrid& grid, const BlockScores& scores, const ForcedBlocks& forced, const Tensor& takes,
                     int64_t first, int64_t lists) {
  constexpr int64_t kMostScores = int64_t{1} << 21;  // held at a time
  const int64_t most_rows = std::max<int64_t>(1, kMostScores / std::max<int64_t>(1, lists * grid.key_blocks()));
  const int64_t count = takes.size(0);
  const Tensor kept_counts = at::maximum(forced(grid.span(first, count)).sum(-1), takes).contiguous();
  const int64_t* counts = kept_counts.const_data_ptr<int64_t>();
  const int64_t longest = std::min(*std::max_element(counts, counts + count), grid.key_blocks());
  std::vector<Tensor> parts;
  for (int64_t row = 0; row < count;) {  // rows that keep equally many, a few at a time
    int64_t end = row + 1;
    while (end < count && end - row < most_rows && counts[end] == counts[row]) ++end;
    const BlockGrid::Span span = grid.span(first + row, end - row);
    const Tensor kept = ops::select_top(scores(first + row, end - row), counts[row],
                                        {.forced = forced(span), .banned = grid.seen(span).logical_not_()});
    parts.push_back(at::constant_pad_nd(kept, {0, longest - kept.size(3)}, -1));
    row = end;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 2);
}

namespace {

bool shows_all_before(const Rule& rule) {
  return !rule.window_left && !rule.head_window && !rule.key_lengths && !rule.query_documents && !rule.row_start &&
         !rule.row_end;
}

}  // namespace

BlockPlan plan_of_blocks(const BlockGrid& grid, const Tensor& index, int64_t first, const Rule& rule) {
  BlockPlan plan{
      .query_block = grid.query_block(), .key_block = grid.key_block(), .count = {}, .index = index, .rule = rule};
  const Tensor listed = index.ge(0), total = listed.sum(c10::IntArrayRef{-1}, false, at::kInt);
  plan.count = total;
  if (!shows_all_before(rule) || index.numel() == 0) return plan;
  const Tensor whole = (grid.span(first, index.size(2)).begin + 1).div(grid.key_block(), "floor");
  plan.full_index = index;
  plan.full_count = listed.logical_and(index.lt(whole)).sum(c10::IntArrayRef{-1}, false, at::kInt);
  plan.count = total - *plan.full_count;
  const int64_t longest = plan.count.max().item<int64_t>();
  const Tensor place = (plan.full_count->unsqueeze(-1) + at::arange(longest, at::kLong)).clamp_max_(index.size(3) - 1);
  plan.index = index.gather(-1, place);
  return plan;
}

Attended attend_blocks(const BlockGrid& grid, const Tensor& index, const Inputs& in) {
  BlockPlan plan = plan_of_blocks(grid, index, 0, in.rule);
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
  return {attended.out, attended.lse, {{0, in.q.size(2), std::move(plan)}}};
}

}  // namespace foveate::attention
