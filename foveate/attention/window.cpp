#include "foveate/attention/window.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

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

void Window::validate() const {
  check_options(*this);
  require(size % block == 0 && sinks % block == 0,
          "window: size and sinks must be multiples of block, got {}, {} and {}", size, sinks, block);
  require(block == 1 || positions == Positions::original, "window: positions=cache goes by token, got block={}", block);
}

// Two ranges for each block of queries.  Blocks are counted in the text; keys behind evicted ones stand `gap` earlier.
RunPlan Window::by_block(const Inputs& in) const {
  const int64_t queries = in.q.size(2), start = in.rule.query_start.value_or(in.k.size(2) - queries);
  const int64_t first = in.first_position.value_or(start), gap = first - start;
  const int64_t query_block = first % block == 0 ? block : 1;  // parts of a prompt may begin inside of a block
  const at::Tensor own = at::arange(first, first + queries, query_block, at::kLong).div(block, "floor");
  const at::Tensor begin = (own - size / block + 1).clamp_min(0).mul(block);
  const bool is_narrower = in.rule.window_left && *in.rule.window_left < size;  // the model's own window: no sinks
  const at::Tensor sinks_end = begin.clamp_max(is_narrower ? 0 : sinks);
  const auto runs = [&](const at::Tensor& a, const at::Tensor& b) {
    return at::stack({a, b}, 1).to(at::kInt).view({1, 1, -1, 2});
  };
  RunPlan plan{.query_block = query_block,
               .start = runs(at::zeros_like(begin), (begin - gap).clamp_min(0)),
               .end = runs(sinks_end, (own + 1).mul(block) - gap),
               .rule = in.rule};
  plan.rule.query_start = start;
  return plan;
}

Attended Window::attend(const Inputs& in) const {
  validate();
  if (block > 1) {
    const RunPlan plan = by_block(in);
    const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
    return {attended.out, attended.lse, {{0, in.q.size(2), plan}}};
  }
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
