#include "foveate/attention/sparse/superlinear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/stripes.h"

namespace foveate::attention {

using at::Tensor;

int64_t Superlinear::stripe(int64_t i) const {
  constexpr double kMost = double(int64_t{1} << 53);
  const double inverse = 1 / search_power;
  const int64_t whole = std::llround(inverse);
  if (std::abs(inverse - double(whole)) > 1e-8)
    return int64_t(std::min(std::floor(std::pow(double(i), inverse)), kMost));
  int64_t f = 1;
  for (int64_t factor = 0; factor < whole; ++factor) {
    if (double(f) * double(i) > kMost) return int64_t(kMost);
    f *= i;
  }
  return f;
}

int64_t Superlinear::span_length(double factor, int64_t tokens) const {
  return tokens <= 0 ? 0 : int64_t(std::ceil(factor * std::pow(double(tokens), span_power)));
}

bool Superlinear::covers(int64_t tokens) const {
  const int64_t last = tokens - 1, backward = span_length(backward_factor, tokens),
                forward = span_length(forward_factor, tokens), window_start = std::max<int64_t>(tokens - window(), 0);
  int64_t reached = window_start;  // [reached, last] is seen
  for (int64_t i = sw_index + 1; reached > 0 && stripe(i) <= tokens; ++i) {
    const int64_t anchor = last - stripe(i) + 1;
    if (std::max(anchor, std::min(anchor + forward, window_start - 1)) < reached - 1) return false;
    reached = std::min(reached, std::max<int64_t>(anchor - backward, 0));
  }
  return reached <= 0;
}

std::vector<LearnedPart> Superlinear::learned_parts(const LayerShape& shape) const {
  if (search == Search::query) return {};
  return {{"search_query", {shape.heads * shape.head_dim, shape.width}, {Init::Kind::normal, 0.02}}};
}

namespace {

constexpr int64_t kFewRows = 8;       // decoding: every row its own ranges of keys
constexpr int64_t kKeyBlock = 128;    // rows sorted by their span's start are run by blocks of so many keys
constexpr double kNone = -1e9;        // the gate's logit of an anchor that is not there
constexpr double kEmptyPart = -1e30;  // in place of the lse -inf of a part without keys: no inf - inf

int64_t start_of(const Inputs& in) { return in.rule.query_start.value_or(in.k.size(2) - in.q.size(2)); }

SeenKeys seen_of(const Inputs& in) {
  require(!in.score.landmarks, "superlinear: landmarks have no meaning for spans, got some; use dense");
  const SeenKeys seen = seen_keys(in.rule, in.q.size(2), in.k.size(2), Superlinear::name);
  const int64_t batch = std::max(seen.start.size(0), seen.end.size(0));
  return {seen.start.expand({batch, -1}).contiguous(), seen.end.expand({batch, -1}).contiguous()};
}

// Distances of the anchors of a query that sees at most `most` keys.
std::vector<int64_t> distances_of(const Superlinear& o, int64_t most) {
  std::vector<int64_t> distances;
  for (int64_t i = o.sw_index + 1; o.stripe(i) <= most; ++i) distances.push_back(o.stripe(i) - 1);
  return distances;
}

// One row searches keys that lie far apart: of 8-bit rows these alone are widened.
Tensor search_one(const Superlinear& o, const Tensor& q, const Tensor& k, int64_t position,
                  std::span<const int64_t> distances, const SeenKeys& seen) {
  std::vector<int64_t> keys;
  for (auto distance = distances.rbegin(); distance != distances.rend(); ++distance)
    if (position - *distance >= 0 && position - *distance < k.size(2)) keys.push_back(position - *distance);
  const Tensor at_keys = at::tensor(keys, at::kLong);
  const int64_t count = std::ssize(keys);
  std::vector<int64_t> near;
  for (int64_t i = 1; i <= count; ++i) near.push_back(i);
  const Tensor own = ops::widened(k.index_select(2, at_keys), q.scalar_type());
  const auto below = [&](const Tensor& bound) { return at_keys.view({1, -1}).lt(bound).sum(1, true); };
  const Tensor found = ops::search_stripes({q, own, near, count, below(seen.start), below(seen.end)}, o.num_spans);
  if (count == 0) return found;
  return at_keys.index({found.clamp_min(0)}).masked_fill(found.lt(0), -1);
}

}  // namespace

Spans choose_spans(const Superlinear& o, const Tensor& q_search, const Tensor& k_search, const Inputs& in) {
  const at::NoGradGuard no_grad;
  const SeenKeys seen = seen_of(in);
  const int64_t start = start_of(in), queries = in.q.size(2), window = o.window();
  const std::vector<int64_t> distances = distances_of(o, start + queries);
  Spans spans;
  if (ops::is_quantised(k_search) && queries == 1)
    spans.anchor = search_one(o, q_search, k_search, start, distances, seen);
  else
    spans.anchor = ops::search_stripes(
        {q_search, ops::widened(k_search, q_search.scalar_type()), distances, start, seen.start, seen.end},
        o.num_spans);
  spans.start = at::zeros_like(spans.anchor), spans.end = at::zeros_like(spans.anchor);
  const int64_t heads = in.q.size(1);
  const int64_t *firsts = seen.start.const_data_ptr<int64_t>(), *ends = seen.end.const_data_ptr<int64_t>();
  const int64_t* anchors = spans.anchor.const_data_ptr<int64_t>();
  int64_t *starts = spans.start.mutable_data_ptr<int64_t>(), *span_ends = spans.end.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < in.q.size(0); ++b)
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t seen_row = (seen.start.size(0) == 1 ? 0 : b) * queries + i;
      const int64_t first = firsts[seen_row], end = ends[seen_row], position = start + i;
      const int64_t tokens = position + 1 - first, backward = o.span_length(o.backward_factor, tokens),
                    forward = o.span_length(o.forward_factor, tokens), window_start = position + 1 - window;
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t r = 0; r < o.num_spans; ++r) {
          const int64_t place = ((b * heads + h) * queries + i) * o.num_spans + r;
          const int64_t anchor = anchors[place];
          if (anchor < 0) continue;
          starts[place] = std::max(first, anchor - backward);
          span_ends[place] = std::min({anchor + forward + 1, window_start, end});
        }
    }
  return spans;
}

namespace {

// One span of every row.  Few rows take ranges as they are; many are sorted by where their spans start and run block by
// block, so that rows which read the same keys stand side by side.  Not as tiles of sorted rows: what a row gives would
// then depend, by a rounding, on its neighbours, and so on later tokens.
ops::Attended attend_span(const Inputs& in, const Tensor& start, const Tensor& end, const ops::Score& score) {
  const int64_t queries = in.q.size(2);
  Rule rule = in.rule;
  rule.query_start = start_of(in);
  if (queries <= kFewRows)
    return ops::attend(in.q, in.k, in.v,
                       RunPlan{1, start.unsqueeze(3).to(at::kInt), end.unsqueeze(3).to(at::kInt), rule}, score);
  const Tensor order = start.argsort(/*stable=*/true, 2);
  const Tensor from = start.gather(2, order), until = end.gather(2, order);
  const Tensor first = from.div(kKeyBlock, "floor");
  const Tensor count = ((until + (kKeyBlock - 1)).div(kKeyBlock, "floor") - first).masked_fill(until.le(from), 0);
  const int64_t most = std::max<int64_t>(count.numel() ? count.max().item<int64_t>() : 0, 1);
  const Tensor index = first.unsqueeze(3) + at::arange(most, at::kLong);
  rule.row_start = rule.row_start ? at::maximum(*rule.row_start, start) : start;
  rule.row_end = rule.row_end ? at::minimum(*rule.row_end, end) : end;
  rule.query_order = order;
  const int64_t blocks = (in.k.size(2) + kKeyBlock - 1) / kKeyBlock;
  return ops::attend(in.q, in.k, in.v,
                     BlockPlan{.query_block = 1,
                               .key_block = kKeyBlock,
                               .count = count.to(at::kInt),
                               .index = index.clamp_max(std::max<int64_t>(blocks - 1, 0)).to(at::kInt),
                               .full_count = {},
                               .full_index = {},
                               .rule = rule},
                     score);
}

// out = sum_r g_r merge(span_r, window), written as one mix of all parts: the weight of span_r is
// g_r exp(lse_r - lse of both), that of the window what is left of every g_r.
Tensor mix_spans(const std::vector<ops::Attended>& spans, const ops::Attended& window, const Tensor& values) {
  const auto finite = [](const Tensor& lse) { return lse.masked_fill(lse.detach().eq(-INFINITY), kEmptyPart); };
  const Tensor gates = values.to(window.lse.scalar_type()).log_softmax(3), window_lse = finite(window.lse);
  std::vector<Tensor> logits, rest;
  std::vector<ops::Attended> parts = spans;
  for (size_t r = 0; r < spans.size(); ++r) {
    const Tensor lse = finite(spans[r].lse), scaled = gates.select(3, int64_t(r)) - at::logaddexp(lse, window_lse);
    logits.push_back(scaled + lse);
    rest.push_back(scaled + window_lse);
  }
  logits.push_back(at::logsumexp(at::stack(rest), 0));
  parts.push_back(window);
  return ops::mix(parts, logits);
}

// All keys that a row reads, each once: spans that overlap count what the ones before them have not.
RunPlan plan_of(const Inputs& in, const Spans& spans, int64_t window) {
  const auto [start, order] = spans.start.sort(/*stable=*/std::optional<bool>(true), 3);
  const Tensor end = spans.end.gather(3, order), reached = std::get<0>(end.cummax(3));
  const Tensor before =
      at::cat({at::zeros_like(reached.narrow(3, 0, 1)), reached.narrow(3, 0, reached.size(3) - 1)}, 3);
  const int64_t first = start_of(in), queries = in.q.size(2);
  const Tensor behind = at::arange(first + 1, first + queries + 1, at::kLong).view({1, 1, -1, 1});
  const auto sizes = {start.size(0), start.size(1), start.size(2), int64_t{1}};
  Rule rule = in.rule;
  rule.query_start = first;
  return {1, at::cat({at::maximum(start, before), (behind - window).clamp_min(0).expand(sizes)}, 3).to(at::kInt),
          at::cat({end, behind.expand(sizes)}, 3).to(at::kInt), rule};
}

}  // namespace

Attended superlinear(const Superlinear& o, const Tensor& q_search, const Tensor& k_search, const Inputs& in) {
  o.validate();
  const int64_t queries = in.q.size(2), window = o.window();
  if (queries == 0 || start_of(in) + queries < o.stripe(o.sw_index + 1)) {  // no query has an anchor
    seen_of(in);
    return Dense{}.attend(in);
  }
  const Spans spans = choose_spans(o, q_search, k_search, in);
  Inputs near = in;
  near.rule.query_start = start_of(in);
  near.rule.window_left = std::min(near.rule.window_left.value_or(window), std::max<int64_t>(window - 1, 0));
  near.rule.sinks = 0;
  if (window == 0) near.rule.row_end = at::zeros({1, 1, queries}, at::kLong);
  const ops::Attended latest = ops::attend(near.q, near.k, near.v, near.rule, near.score);
  ops::Score score = in.score;
  score.sink = std::nullopt;  // it joins every softmax once, by the window
  std::vector<ops::Attended> parts;
  for (int64_t r = 0; r < o.num_spans; ++r)
    parts.push_back(attend_span(in, spans.start.select(3, r), spans.end.select(3, r), score));
  const Tensor none = spans.anchor.lt(0);
  Tensor values;
  if (ops::is_quantised(k_search) && queries == 1) {  // the chosen keys alone are widened
    const Tensor index = spans.anchor.clamp_min(0).flatten(1, 3).unsqueeze(1).unsqueeze(3);
    const Tensor keys = k_search.gather(2, index.expand({-1, k_search.size(1), -1, k_search.size(3)}));
    const Tensor own = at::arange(spans.anchor[0].numel(), at::kLong).view({1, in.q.size(1), 1, o.num_spans});
    values = ops::pair_scores(q_search, ops::widened(keys, q_search.scalar_type()), own, o.search_scale);
  } else {
    values = ops::pair_scores(q_search, ops::widened(k_search, q_search.scalar_type()), spans.anchor, o.search_scale);
  }
  return {mix_spans(parts, latest, values.masked_fill(none, kNone)),
          std::nullopt,
          {{0, queries, plan_of(in, spans, window)}}};
}

Attended Superlinear::attend(const Inputs& in) const {
  if (search == Search::query) return superlinear(*this, in.q, in.k, in);
  const Tensor& weight = learned(in, name, "search_query");
  require(in.hidden.has_value(), "superlinear: search=learned needs what the layer's projections read, got none");
  require(weight.dim() == 2 && weight.size(0) == in.q.size(1) * in.q.size(3) && weight.size(1) == in.hidden->size(2),
          "superlinear: search_query must be [{}, {}], got {} axes of {} numbers", in.q.size(1) * in.q.size(3),
          in.hidden->size(2), weight.dim(), weight.numel());
  Tensor q_search = at::linear(*in.hidden, weight.to(in.hidden->scalar_type())).to(in.q.scalar_type());
  q_search = q_search.unflatten(2, {in.q.size(1), in.q.size(3)}).transpose(1, 2);
  if (in.rotary) q_search = in.rotary->rotate(q_search, text_positions(in, name));
  return superlinear(*this, q_search, in.k, in);
}

namespace {

class SuperlinearState final : public CachedState {
 public:
  SuperlinearState(Superlinear options, const StateOptions& state) : CachedState(std::nullopt, state), o_(options) {}

  Attended prefill(const Inputs& in) override {
    repeats_ = in.q.size(1) / in.k.size(1);
    return o_.attend(appended(in));
  }
  Attended decode(const Inputs& in) override { return prefill(in); }

  // The window, the spans of all heads as if none shared a key, and the anchors' keys.
  int64_t read_bytes() const override {
    const int64_t tokens = length(),
                  span = o_.span_length(o_.backward_factor, tokens) + o_.span_length(o_.forward_factor, tokens) + 1;
    if (tokens == 0) return 0;
    const int64_t keys = std::min(tokens, o_.window() + repeats_ * o_.num_spans * span);
    const int64_t anchors = std::ssize(distances_of(o_, tokens)), key = int64_t(cache_.k()[0].narrow(1, 0, 1).nbytes());
    return std::min(keys * cache_.token_bytes() + anchors * key * cache_.k().size(0), tokens * cache_.token_bytes());
  }

 private:
  Superlinear o_;
  int64_t repeats_ = 1;
};

}  // namespace

std::unique_ptr<State> Superlinear::make_state(const StateOptions& options) const {
  validate();
  if (options.rule.window_left && *options.rule.window_left < window()) return Dense{}.make_state(options);
  return std::make_unique<SuperlinearState>(*this, options);
}

}  // namespace foveate::attention
