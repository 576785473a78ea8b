#include "foveate/attention/window.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/broadcast_tensors.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "foveate/ops/merge/merge.h"
#include "foveate/plan/row_ranges.h"

namespace foveate::attention {

namespace {

// A call as its window sees it.  Positions count in the text; keys behind evicted ones stand `gap` earlier.
struct Place {
  int64_t start, first, gap;             // key index and position of query 0
  std::optional<at::Tensor> text_start;  // [B|1, Hq|1, Lq]: key index of a query's first key; unset: 0 for all

  explicit Place(const Inputs& in)
      : start(in.rule.query_start.value_or(in.k.size(2) - in.q.size(2))),
        first(in.first_position.value_or(start)),
        gap(first - start) {
    if (!in.rule.row_start && !in.rule.key_documents) return;
    const at::Tensor text = row_ranges(without_windows(in.rule), in.q.size(2), in.k.size(2)).start;
    if (text.gt(0).any().item<bool>()) text_start = text;
  }
  at::Tensor positions(int64_t queries) const { return at::arange(first, first + queries, at::kLong); }
};

bool is_narrower(const Rule& rule, const Window& window) { return rule.window_left && *rule.window_left < window.size; }

bool narrows_nothing(const Rule& rule, const Window& window, const std::optional<std::vector<bool>>& heads) {
  return is_narrower(rule, window) || (heads && std::ranges::count(*heads, true) == 0);
}

// [Hq] int64: window_left of each head.
std::optional<at::Tensor> head_window_of(const Rule& rule, const Window& window,
                                         const std::optional<std::vector<bool>>& heads) {
  require(!rule.head_window || (!heads && window.sinks == 0),
          "window: the model's rule must have no head_window of its own beside sinks; use sinks=0");
  if (!heads) return std::nullopt;
  std::vector<int64_t> left;
  for (const bool streams : *heads) left.push_back(streams ? window.size - 1 : -1);
  return at::tensor(left, at::kLong);
}

// The first key that the model's own window shows each query, [Lq]; by position.
at::Tensor own_start(const Rule& rule, const at::Tensor& positions) {
  return rule.window_left ? (positions - *rule.window_left).clamp_min_(0) : at::zeros_like(positions);
}

// What streams: everything, or heads [Hq] int64 window_left.
void narrow(Rule& rule, const Window& window, const std::optional<at::Tensor>& head_window) {
  if (head_window)
    rule.head_window = head_window;
  else
    rule.window_left = window.size - 1;
}

// One rule, where every text begins with key 0.
Rule windowed(const Window& window, const Inputs& in, const Place& place,
              const std::optional<at::Tensor>& head_window) {
  Rule rule = in.rule;
  if (rule.window_left && window.sinks > 0) {  // a state that evicted keys holds sinks at other distances
    const at::Tensor start = own_start(rule, place.positions(in.q.size(2))).clamp_max_(window.sinks).view({1, 1, -1});
    rule.row_start = rule.row_start ? at::maximum(start, *rule.row_start) : start;
  }
  narrow(rule, window, head_window);
  rule.sinks = window.sinks;
  return rule;
}

// Sinks and window as two parts: texts may begin anywhere, and queries may stand elsewhere for their sinks.
Attended attend_apart(const Window& window, const Inputs& in, const Place& place,
                      const std::optional<at::Tensor>& head_window, const at::Tensor& q_of_sinks) {
  const int64_t queries = in.q.size(2);
  const at::Tensor index = at::arange(place.start, place.start + queries, at::kLong).view({1, 1, -1});
  const at::Tensor text = place.text_start.value_or(at::zeros_like(index));
  Rule near = in.rule, far = in.rule;
  narrow(near, window, head_window);
  near.sinks = 0;
  at::Tensor latest = (index - (window.size - 1)).clamp_min_(0);  // first key of the window
  const at::Tensor own = own_start(in.rule, place.positions(queries)).view({1, 1, -1});
  at::Tensor begin = at::maximum(text, own), end = at::minimum(text + window.sinks, latest);
  if (head_window) {
    const at::Tensor is_full = head_window->lt(0).view({1, -1, 1});
    end = end.masked_fill(is_full, 0), latest = at::where(is_full, (own - place.gap).clamp_min(0), latest);
  }
  far.window_left = std::nullopt;
  far.row_start = in.rule.row_start ? at::maximum(begin, *in.rule.row_start) : begin;
  far.row_end = in.rule.row_end ? at::minimum(end, *in.rule.row_end) : end;
  ops::Score far_score = in.score;
  far_score.sink = std::nullopt;  // a sink logit joins one part only
  const ops::Attended parts[] = {ops::attend(q_of_sinks, in.k, in.v, far, far_score),
                                 ops::attend(in.q, in.k, in.v, near, in.score)};
  const ops::Attended both = ops::merge_by_lse(parts);
  RunPlan plan{.query_block = 1, .start = {}, .end = {}, .rule = in.rule};
  plan.rule.query_start = place.start, plan.rule.window_left = std::nullopt;
  const auto pair = [](const at::Tensor& a, const at::Tensor& b) {
    const auto both = at::broadcast_tensors({a, b});
    return at::stack(both, 3).to(at::kInt);
  };
  plan.start = pair(begin, latest), plan.end = pair(end, index + 1);
  return {both.out, both.lse, {{0, queries, std::move(plan)}}};
}

}  // namespace

void Window::validate() const {
  check_options(*this);
  require(size % block == 0 && sinks % block == 0,
          "window: size and sinks must be multiples of block, got {}, {} and {}", size, sinks, block);
  require(block == 1 || positions == Positions::original, "window: positions=cache goes by token, got block={}", block);
}

// Two ranges for each block of queries.
RunPlan Window::by_block(const Inputs& in) const {
  const int64_t queries = in.q.size(2);
  const Place place(in);
  // parts of a prompt may begin inside of a block, and so may texts; behind evicted keys the model's own window leaves
  // its sinks row by row
  const bool by_row = place.first % block != 0 || place.text_start || (place.gap > 0 && in.rule.window_left);
  const int64_t query_block = by_row ? 1 : block;
  at::Tensor position = at::arange(place.first, place.first + queries, query_block, at::kLong).view({1, 1, -1});
  const at::Tensor text = place.text_start.value_or(at::zeros_like(position));
  const at::Tensor own = (position - text).div(block, "floor");
  const at::Tensor begin = text + (own - size / block + 1).clamp_min(0).mul(block);
  at::Tensor sinks_start = text, sinks_end = at::minimum(begin, text + sinks);
  if (in.rule.window_left) sinks_start = at::maximum(text, own_start(in.rule, position));
  if (is_narrower(in.rule, *this)) sinks_end = at::zeros_like(begin);
  const auto runs = [&](const at::Tensor& a, const at::Tensor& b) { return at::stack({a, b}, 3).to(at::kInt); };
  RunPlan plan{.query_block = query_block,
               .start = runs(sinks_start, (begin - place.gap).clamp_min(0)),
               .end = runs(sinks_end, text + (own + 1).mul(block) - place.gap),
               .rule = in.rule};
  plan.rule.query_start = place.start;
  return plan;
}

Rule window_rule(const Window& window, const Inputs& in, const std::optional<std::vector<bool>>& heads) {
  if (narrows_nothing(in.rule, window, heads)) return in.rule;
  return windowed(window, in, Place(in), head_window_of(in.rule, window, heads));
}

Attended attend_window(const Window& window, const Inputs& in, const std::optional<std::vector<bool>>& heads) {
  const auto by_rule = [&](const Rule& rule) -> Attended {
    const ops::Attended attended = ops::attend(in.q, in.k, in.v, rule, in.score);
    return {attended.out, attended.lse, {{0, in.q.size(2), rule}}};
  };
  const Place place(in);
  const bool moves = window.positions == Window::Positions::cache;
  if (window.sinks == 0 || narrows_nothing(in.rule, window, heads) || (!moves && !place.text_start))
    return by_rule(window_rule(window, in, heads));
  const std::optional<at::Tensor> head_window = head_window_of(in.rule, window, heads);
  if (!moves) return attend_apart(window, in, place, head_window, in.q);
  // Only the distance to the sinks changes: inside the window, slots and positions differ by a constant, which rotary
  // embedding does not see.  A sink's slot is its position, so it is the query that moves, to slot
  // min(p, sinks + size - 1).
  require(in.rotary, "window: positions=cache needs a model with rotary embedding, got one without");
  const at::Tensor position = text_positions(in, Window::name);
  const at::Tensor moved = in.rotary->rotate(in.q, position.clamp_max(window.sinks + window.size - 1) - position);
  Attended attended = attend_apart(window, in, place, head_window, moved);
  attended.lse = std::nullopt;  // logits were changed
  return attended;
}

Attended Window::attend(const Inputs& in) const {
  validate();
  if (block == 1) return attend_window(*this, in);
  const RunPlan plan = by_block(in);
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
  return {attended.out, attended.lse, {{0, in.q.size(2), plan}}};
}

std::unique_ptr<State> Window::make_state(const StateOptions& options) const {
  CachedState::Bound bound{.head = sinks, .tail = size};
  if (const auto own = bound_of(options.rule); own && own->tail <= size) bound = *own;
  return std::make_unique<PlainState<Window>>(*this, bound, options);
}

}  // namespace foveate::attention
