#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/broadcast_tensors.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "foveate/attention/mechanism.h"
#include "foveate/base/error.h"
#include "foveate/plan/row_ranges.h"

namespace foveate::attention {

Inputs narrow_rows(const Inputs& in, int64_t first, int64_t count) {
  Inputs part = in;
  part.q = in.q.narrow(2, first, count);
  if (in.hidden) part.hidden = in.hidden->narrow(1, first, count);
  part.rule.query_start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2)) + first;
  if (in.first_position) part.first_position = *in.first_position + first;
  const auto by_query = [&](std::optional<at::Tensor>& t, int64_t axis) {
    if (t && t->size(axis) != 1) t = t->narrow(axis, first, count);
  };
  by_query(part.rule.query_documents, 1);
  by_query(part.rule.row_start, 2);
  by_query(part.rule.row_end, 2);
  by_query(part.score.bias, 2);
  if (part.score.relative) {
    ops::Relative& relative = *part.score.relative;
    if (relative.logits.size(2) != 1) relative.logits = relative.logits.narrow(2, first, count);
    relative.queries = relative.queries.narrow(1, first, count);
  }
  return part;
}

namespace {

SeenKeys checked_ranges(const Rule& rule, int64_t queries, int64_t keys, std::string_view owner, bool whole,
                        bool causal) {
  require(!rule.query_order, "{}: ordered queries are not supported, give queries as they come", owner);
  require(rule.sinks == 0 || (!rule.window_left && !rule.head_window),
          "{}: every query must see one range of keys, got {} sinks beside a window; use dense", owner, rule.sinks);
  const RowRanges ranges = row_ranges(rule, queries, keys);
  require(!whole || ranges.whole,
          "{}: every query must see one range of keys, got documents or padding in pieces; use dense", owner);
  const int64_t heads = std::max(ranges.start.size(1), ranges.end.size(1));
  require(heads == 1, "{}: what a query sees must be the same for all heads, got ranges of {} heads; use dense", owner,
          heads);
  const SeenKeys seen{ranges.start.select(1, 0), ranges.end.select(1, 0)};
  if (!causal || rule.window_right == 0) return seen;
  const int64_t first = rule.query_start.value_or(keys - queries);
  const at::Tensor behind = at::arange(first + 1, first + queries + 1, at::kLong);
  require(seen.end.le(behind).logical_or_(seen.end.eq(seen.start)).all().item<bool>(),
          "{}: attention must be causal, got a rule that shows later keys; use dense", owner);
  return seen;
}

}  // namespace

SeenKeys shown_keys(const Rule& rule, int64_t queries, int64_t keys, std::string_view owner) {
  return checked_ranges(rule, queries, keys, owner, /*whole=*/false, /*causal=*/true);
}

SeenKeys seen_keys(const Rule& rule, int64_t queries, int64_t keys, std::string_view owner, bool causal) {
  return checked_ranges(rule, queries, keys, owner, /*whole=*/true, causal);
}

Rule without_windows(Rule rule) {
  rule.window_left = std::nullopt, rule.head_window = std::nullopt, rule.sinks = 0;
  return rule;
}

int64_t first_query_key(const Inputs& in, std::string_view owner) {
  const int64_t queries = in.q.size(2), keys = in.k.size(2), start = in.rule.query_start.value_or(keys - queries);
  require(start >= 0 && start + queries <= keys, "{}: queries must sit at keys 0 .. {}, got {} from {} on", owner,
          keys - 1, queries, start);
  return start;
}

at::Tensor keys_in_sight(const Inputs& in) {
  if (!cuts_texts(in.rule)) return in.k;
  const int64_t keys = in.k.size(2);
  const RowRanges ranges = row_ranges(without_windows(in.rule), in.q.size(2), keys);
  const auto both = at::broadcast_tensors({ranges.start, ranges.end});
  const at::Tensor start = both[0].flatten(1), end = both[1].flatten(1), one = at::ones_like(start);
  const at::Tensor edges = at::zeros({start.size(0), keys + 1}, at::kLong);
  edges.scatter_add_(1, start, one).scatter_add_(1, end, one.neg());
  at::Tensor seen = edges.cumsum(1).narrow(1, 0, keys).gt(0);
  if (in.rule.key_documents) {
    seen = seen.expand({in.k.size(0), keys}).clone();
    for (int64_t b = 0; b < in.k.size(0); ++b)
      seen[b].logical_and_(at::isin((*in.rule.key_documents)[b], (*in.rule.query_documents)[b]));
  }
  return in.k.detach().masked_fill(seen.logical_not().unsqueeze(1).unsqueeze(3), 0);
}

at::Tensor text_positions(const Inputs& in, std::string_view owner) {
  const int64_t queries = in.q.size(2), keys = in.k.size(2), start = in.rule.query_start.value_or(keys - queries);
  if (!in.rule.row_start && !in.rule.key_documents) {
    const int64_t first = in.first_position.value_or(start);
    return at::arange(first, first + queries, at::kLong).unsqueeze(0);
  }
  const SeenKeys text =
      checked_ranges(without_windows(in.rule), queries, keys, owner, /*whole=*/false, /*causal=*/false);
  return at::arange(start, start + queries, at::kLong) - text.start;
}

const at::Tensor& learned(const Inputs& in, std::string_view owner, std::string_view name) {
  require(in.learned, "{}: has learned parts, got no adapter; give the file that training wrote", owner);
  const auto found = in.learned->find(name);
  require(found != in.learned->end(), "{}: the adapter must have {}, got none", owner, name);
  return found->second;
}

}  // namespace foveate::attention
