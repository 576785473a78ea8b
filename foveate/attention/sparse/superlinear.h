// Each query searches few anchors, attends to a span around each of the best and to its window, and mixes what the
// spans give by the anchors' scores: Superlinear Multi-Step Attention (2601.18401), two steps.
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Stripes f_i = floor(i^(1 / search_power)), in whole numbers where 1 / search_power is one.  A query at q that sees
// the n keys [first, q] has a window of its latest f_{sw_index + 1} - 1 keys and, for i > sw_index, an anchor f_i - 1
// keys back; the num_spans anchors of highest search query . key win (of equals the older one).  Around anchor t lies
// the span [t - ceil(backward_factor * n^span_power), t + ceil(forward_factor * n^span_power)], cut at the window. Span
// r and the window share one softmax, which gives o_r; out = sum_r softmax_r(search_scale * search query . anchor) o_r.
// Every query head chooses for itself.  q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  A row that sees no anchor is dense.
// Choosing has no gradient; the gate's logits have one in search query and anchor keys, the rest in q, k, v.
// search=query: the search query is q itself, what a converted model's search projection begins as; learned: an
// adapter's `search_query` [Hq D, width] times the layer's input, rotated as q is.
// Defaults are the released model's; its kernels' own: num_spans 3, backward 2, forward 0, powers 1/2.
// covers() says whether some choice of anchors reaches every key: a configuration of which it is false may lose keys.
// Throws Error: a rule that seen_keys() does not take, landmarks.
struct Superlinear {
  static constexpr std::string_view name = "superlinear";
  static constexpr std::string_view summary =
      "spans around the best of n^p anchors and the latest keys, mixed by a gate (Superlinear)";
  static constexpr Kind kind = Kind::row;

  enum class Search { query, learned };
  friend constexpr auto enum_names(Search) { return std::array<std::string_view, 2>{"query", "learned"}; }

  int64_t num_spans = 3, sw_index = 65;
  double backward_factor = 3, forward_factor = 1, search_power = 0.55, span_power = 0.55, search_scale = 1;
  Search search = Search::query;

  static void fields(auto& self, auto&& visit) {
    visit("num_spans", self.num_spans, between(1, 64), "anchors whose spans are attended");
    visit("sw_index", self.sw_index, between(0, 1e6),
          "stripes that the window covers: 65 of power 0.55 are 2,032 keys");
    visit("backward_factor", self.backward_factor, between(1e-6, 1e6),
          "length of a span behind its anchor / n^span_power");
    visit("forward_factor", self.forward_factor, between(0, 1e6), "length of a span after its anchor / n^span_power");
    visit("search_power", self.search_power, between(0.1, 0.999), "a query at n has n^this anchors");
    visit("span_power", self.span_power, between(0.01, 0.999), "spans grow as n^this");
    visit("search_scale", self.search_scale, any(), "factor of the gate's logits");
    visit("search", self.search, any(), "what looks for anchors: the query itself, or an adapter's search query");
  }
  void validate() const { check_options(*this); }

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const;

  int64_t stripe(int64_t i) const;  // f_i, i >= 1; at most 2^53
  int64_t window() const { return stripe(sw_index + 1) - 1; }
  int64_t span_length(double factor, int64_t tokens) const;  // ceil(factor * tokens^span_power)
  // Whether window and candidate spans of a query that sees `tokens` keys reach all of them.
  bool covers(int64_t tokens) const;
};

// What a query chose: anchors -1 and empty spans where there are fewer; keys [start, end).
struct Spans {
  at::Tensor anchor, start, end;  // [B, Hq, Lq, num_spans] int64
};
// q_search [B, Hq, Lq, D] and k_search [B, Hkv, Lk, D] (perhaps 8-bit rows) in the place of in.q and in.k.
Spans choose_spans(const Superlinear& options, const at::Tensor& q_search, const at::Tensor& k_search,
                   const Inputs& in);

// The whole mechanism with search queries and keys of its own.
Attended superlinear(const Superlinear& options, const at::Tensor& q_search, const at::Tensor& k_search,
                     const Inputs& in);

}  // namespace foveate::attention
