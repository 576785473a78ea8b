#include "foveate/attention/sparse/block_lists.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/maximum.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {

using at::Tensor;

namespace {

// The union of the ranges of every `block` queries.
SeenKeys by_block(const SeenKeys& seen, int64_t block, int64_t keys) {
  if (block == 1) return seen;
  const Tensor is_empty = seen.start.ge(seen.end);
  const auto reduced = [&](const Tensor& t, int64_t nothing) {
    const int64_t rows = (t.size(1) + block - 1) / block, missing = rows * block - t.size(1);
    return at::constant_pad_nd(t.masked_fill(is_empty, nothing), {0, missing}, double(nothing))
        .unflatten(1, {rows, block});
  };
  return {reduced(seen.start, keys).amin(2), reduced(seen.end, 0).amax(2)};
}

SeenKeys rows_of(const SeenKeys& seen, int64_t first, int64_t count) {
  return {seen.start.narrow(1, first, count), seen.end.narrow(1, first, count)};
}

}  // namespace

BlockGrid::BlockGrid(const Inputs& in, int64_t query_block, int64_t key_block, std::string_view owner)
    : query_block_(query_block),
      key_block_(key_block),
      queries_(in.q.size(2)),
      keys_(in.k.size(2)),
      start_(in.rule.query_start.value_or(keys_ - queries_)),
      sinks_(in.rule.window_left ? in.rule.sinks : 0) {
  Rule rule = in.rule;
  rule.sinks = 0;
  seen_ = text_ = shown_keys(rule, queries_, keys_, owner);
  if (rule.window_left) text_ = shown_keys(without_windows(rule), queries_, keys_, owner);
}

BlockGrid::Span BlockGrid::span_of(const Tensor& begin, const Tensor& end, SeenKeys seen, SeenKeys text) const {
  const auto block = [&](const Tensor& position) { return position.div(key_block_, "floor"); };
  return {begin, end, block(begin), block(end - 1).clamp_max_(key_blocks() - 1), std::move(seen), std::move(text)};
}

BlockGrid::Span BlockGrid::span(int64_t first, int64_t count) const {
  const Tensor begin = at::arange(first, first + count, at::kLong).mul_(query_block_).add_(start_).unsqueeze(1);
  const int64_t from = first * query_block_, queries = std::min(count * query_block_, queries_ - from);
  const auto of = [&](const SeenKeys& keys) { return by_block(rows_of(keys, from, queries), query_block_, keys_); };
  return span_of(begin, (begin + query_block_).clamp_max_(start_ + queries_), of(seen_), of(text_));
}

BlockGrid::Span BlockGrid::span_of_last(int64_t queries) const {
  const Tensor end = at::arange(start_ + queries_, start_ + queries_ + 1, at::kLong).unsqueeze(1);
  const auto of = [&](const SeenKeys& keys) {
    return by_block(rows_of(keys, queries_ - queries, queries), queries, keys_);
  };
  return span_of(end - queries, end, of(seen_), of(text_));
}

Tensor BlockGrid::columns() const { return at::arange(key_blocks(), at::kLong); }

Tensor BlockGrid::seen(const Span& s) const {
  const Tensor begin = columns() * key_block_;
  const auto meets = [&](const Tensor& start, const Tensor& end) {
    return begin.lt(end.unsqueeze(1).unsqueeze(3))
        .logical_and_((begin + key_block_).gt(start.unsqueeze(1).unsqueeze(3)))
        .logical_and_(start.lt(end).unsqueeze(1).unsqueeze(3));
  };
  const Tensor in_window = meets(s.seen.start, s.seen.end);
  return sinks_ == 0 ? in_window : in_window.logical_or(meets(s.text.start, s.text.end.clamp_max(sinks_)));
}

Tensor BlockGrid::own_blocks(const Span& s) const {
  const Tensor column = columns();
  return column.ge(s.own).logical_and_(column.le(s.latest));
}

Tensor BlockGrid::first_block(const Span& s) const {
  return columns().eq(s.text.start.div(key_block_, "floor").unsqueeze(1).unsqueeze(3));
}

bool shows_all_before(const Rule& rule) {
  return !rule.window_left && !rule.head_window && !rule.key_lengths && !rule.query_documents && !rule.row_start &&
         !rule.row_end;
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
  std::vector<Tensor> parts;
  int64_t longest = 0;
  for (int64_t row = 0; row < takes.size(2); row += most_rows) {
    const int64_t count = std::min(most_rows, takes.size(2) - row);
    const BlockGrid::Span span = grid.span(first + row, count);
    const Tensor kept = forced(span), counts = at::maximum(kept.sum(-1), takes.narrow(2, row, count));
    parts.push_back(ops::select_top(scores(first + row, count), counts,
                                    {.forced = kept, .banned = grid.seen(span).logical_not_()}));
    longest = std::max(longest, parts.back().size(3));
  }
  for (Tensor& part : parts) part = at::constant_pad_nd(part, {0, longest - part.size(3)}, -1);
  return parts.size() == 1 ? parts[0] : at::cat(parts, 2);
}

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
