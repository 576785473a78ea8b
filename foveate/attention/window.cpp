#include "foveate/attention/window.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/maximum.h>

#include <algorithm>

#include "foveate/ops/merge/merge.h"

namespace foveate::attention {

// The model's rule and this window at once.  Where the model has a wider window of its own, sinks stay inside it.
Rule Window::narrowed(const Inputs& in) const {
  Rule rule = in.rule;
  if (rule.window_left && *rule.window_left < size) return rule;
  if (rule.window_left &&
      sinks > 0) {  // by positions in the text: a state that evicted keys holds sinks at other distances
    const int64_t first = in.first_position.value_or(rule.query_start.value_or(in.k.size(2) - in.q.size(2)));
    at::Tensor start = at::arange(first, first + in.q.size(2), at::kLong) - *rule.window_left;
    start = start.clamp_(0, sinks).view({1, 1, -1});
    rule.row_start = rule.row_start ? at::maximum(start, *rule.row_start) : start;
  }
  rule.window_left = size - 1;
  rule.sinks = sinks;
  return rule;
}

Attended Window::attend(const Inputs& in) const {
  check_options(*this);
  const Rule rule = narrowed(in);
  if (positions == Positions::cache && rule.sinks > 0) return attend_repositioned(in, rule);
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, rule, in.score);
  return {attended.out, attended.lse, {{0, in.q.size(2), rule}}};
}

// Only the distance to the sinks changes: inside the window, slots and positions differ by a constant, which rotary
// embedding does not see.  A sink's slot is its position, so it is the query that moves, to slot min(p, sinks + size -
// 1).
Attended Window::attend_repositioned(const Inputs& in, const Rule& rule) const {
  require(in.rotary, "window: positions=cache needs a model with rotary embedding, got one without");
  const int64_t queries = in.q.size(2), keys = in.k.size(2), heads = std::min(rule.sinks, keys);
  const int64_t start = rule.query_start.value_or(keys - queries), first = in.first_position.value_or(start);
  const at::Tensor position = at::arange(first, first + queries, at::kLong);
  const at::Tensor moved = in.rotary->rotate(in.q, position.clamp_max(rule.sinks + size - 1) - position);
  Rule to_sinks = rule, to_window = rule;
  to_sinks.query_start = start;
  to_sinks.window_left = std::nullopt;
  to_window.query_start = start - heads;
  to_window.sinks = 0;
  if (rule.row_start) to_window.row_start = (*rule.row_start - heads).clamp_min_(0);
  if (rule.row_end) to_window.row_end = *rule.row_end - heads;
  if (rule.key_lengths) to_window.key_lengths = *rule.key_lengths - heads;
  if (rule.key_documents) {
    to_sinks.key_documents = rule.key_documents->narrow(1, 0, heads);
    to_window.key_documents = rule.key_documents->narrow(1, heads, keys - heads);
  }
  ops::Score score = in.score, rest_score = in.score;
  rest_score.sink = std::nullopt;  // a sink logit may join one part only
  if (score.bias && score.bias->size(3) != 1) {
    rest_score.bias = score.bias->narrow(3, heads, keys - heads);
    score.bias = score.bias->narrow(3, 0, heads);
  }
  const ops::Attended parts[] = {
      ops::attend(moved, in.k.narrow(2, 0, heads), in.v.narrow(2, 0, heads), to_sinks, score),
      ops::attend(in.q, in.k.narrow(2, heads, keys - heads), in.v.narrow(2, heads, keys - heads), to_window,
                  rest_score)};
  return {ops::merge_by_lse(parts).out, std::nullopt, {{0, queries, rule}}};
}

std::unique_ptr<State> Window::make_state(const StateOptions& options) const {
  CachedState::Bound bound{.head = sinks, .tail = size};
  if (const auto own = bound_of(options.rule); own && own->tail <= size) bound = *own;
  return std::make_unique<PlainState<Window>>(*this, bound, options);
}

}  // namespace foveate::attention
