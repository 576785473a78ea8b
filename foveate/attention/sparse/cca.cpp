#include "foveate/attention/sparse/cca.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/routing/grouping.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/pool.h"

namespace foveate::attention {
namespace {

using at::Tensor;

// The query's softmax over its own group, [B, Hq|Hkv, groups, g].  The mean query of a group of heads scores the mean
// of what its heads do.
Tensor group_weights(const Cca& cca, const Tensor& q, const Tensor& k, double scale) {
  const int64_t groups = q.size(2);
  const Tensor index = at::arange(groups * cca.group, at::kLong).view({1, 1, groups, cca.group});
  Tensor scores = ops::pair_scores(q, k, index, scale);
  if (cca.gqa_pool == Cca::GqaPool::per_kv_head)
    scores = scores.unflatten(1, {k.size(1), q.size(1) / k.size(1)}).mean(2);
  const Tensor weights = scores.softmax(-1);
  return cca.weight_gradient ? weights : weights.detach();
}

// x [B, Hkv, L, D] by weights [B, Hq|Hkv, groups, g] -> [B, Hq|Hkv, groups, D].
Tensor weighted(const Tensor& x, const Tensor& weights, std::span<const int64_t> cuts) {
  const int64_t repeats = weights.size(1) / x.size(1);
  const Tensor by_head = weights.flatten(2, 3).unflatten(1, {x.size(1), repeats});
  std::vector<Tensor> heads;
  for (int64_t r = 0; r < repeats; ++r) heads.push_back(ops::weigh_segments(x, by_head.select(2, r), cuts));
  return repeats == 1 ? heads[0] : at::stack(heads, 2).flatten(1, 2);
}

Tensor pooled(const Cca& cca, const Tensor& x, const Tensor& weights, std::span<const int64_t> cuts) {
  switch (cca.pool) {
    case Cca::Pool::cca:
      return weighted(x, weights, cuts);
    case Cca::Pool::mean:
      return ops::pool_segments(x, cuts, ops::Pooling::mean);
    case Cca::Pool::max:
      return ops::pool_segments(x, cuts, ops::Pooling::max);
    case Cca::Pool::last:
      return x.unflatten(2, {x.size(2) / cca.group, cca.group}).select(3, cca.group - 1);
  }
  fail("cca: unknown pool");
}

// What a call reads: the tokens at hand, of which `evicted` are missing behind the first sink_groups groups, and the
// cores of the groups from the first on.
struct Held {
  Tensor k, v;
  int64_t evicted, first_query;  // query 0 is this token
  CcaCores cores;                // of at least the groups that some row reads
};

void check_score(const ops::Score& score) {
  require(!(score.bias && score.bias->size(3) != 1) && !score.slopes && !score.relative && !score.landmarks,
          "cca: a core token has no place of its own, got a bias by key, slopes, relative logits or landmarks; use "
          "another mechanism with this model");
}

// Rows see `tokens` [Lq] tokens each, counted from the first.
Attended fuse(const Cca& cca, const Inputs& in, const Held& held, const Tensor& tokens) {
  const int64_t most = tokens.numel() ? cca.cores_of(tokens.max().item<int64_t>()) : 0;
  const int64_t sinks = std::min(cca.sink_groups * cca.group, held.k.size(2));
  const Tensor cores = (tokens - cca.window).div(cca.group, "floor").clamp_min(0);
  const auto by_row = [](const Tensor& t) { return t.view({1, 1, -1}); };
  Rule raw = in.rule;
  raw.query_start = held.first_query - held.evicted;
  raw.row_start = by_row(most > 0 ? cores * cca.group - held.evicted : at::zeros_like(cores)).clamp_min(0);
  raw.row_end = by_row(tokens - held.evicted).clamp_min(0);
  const ops::Attended latest = ops::attend(in.q, held.k, held.v, raw, in.score);
  Attended attended{latest.out, latest.lse, {{0, in.q.size(2), raw}}};
  if (most == 0) return attended;

  check_score(in.score);
  ops::Score score = in.score;
  score.sink = std::nullopt;  // it joins one part only
  const Tensor positions = at::arange(held.first_query, held.first_query + in.q.size(2), at::kLong);
  const Tensor first =
      in.rule.window_left ? (positions - *in.rule.window_left).clamp_min(0) : at::zeros_like(positions);
  std::vector<ops::Attended> parts = {latest};
  if (sinks > 0) {
    Rule rule{.query_start = held.first_query, .window_right = std::nullopt};
    rule.row_start = by_row(first);
    rule.row_end = by_row((cores * cca.group).clamp_max(sinks));
    parts.push_back(ops::attend(in.q, held.k.narrow(2, 0, sinks), held.v.narrow(2, 0, sinks), rule, score));
  }
  if (cca.log_count_bias) {
    const Tensor count = at::full({1, 1, 1, 1}, std::log(double(cca.group)), in.q.options());
    score.bias = score.bias ? *score.bias + count : count;
  }
  Rule rule{.query_start = held.first_query, .window_right = std::nullopt};
  rule.row_start = by_row((first + cca.group - 1).div(cca.group, "floor").clamp_min(cca.sink_groups));
  rule.row_end = by_row(cores);
  parts.push_back(ops::attend(in.q, held.cores.k.narrow(2, 0, most), held.cores.v.narrow(2, 0, most), rule, score));
  const ops::Attended merged = ops::merge_by_lse(parts);
  return {merged.out, std::nullopt, attended.plans};
}

bool sees_no_core(const Cca& cca, const Rule& rule) { return rule.window_left && *rule.window_left < cca.window; }

}  // namespace

CcaCores cca_pool(const Cca& cca, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                  const ops::Rotary* rotary, int64_t first_position) {
  const int64_t groups = q.size(2), g = cca.group, keys = groups * g;
  require(k.size(2) == keys && v.size(2) == keys,
          "cca: pooling takes {} keys for each of {} queries, got {} keys and {} values", g, groups, k.size(2),
          v.size(2));
  const Tensor wide_k = ops::widened(k, q.scalar_type()), wide_v = ops::widened(v, q.scalar_type());
  const auto cuts = ops::even_cuts(keys, g);
  CcaCores cores;
  if (cca.pool == Cca::Pool::cca) cores.weights = group_weights(cca, q, wide_k, scale);
  if (cca.pool_stage == Cca::PoolStage::post_rope) {
    cores.k = pooled(cca, wide_k, cores.weights, cuts).to(q.scalar_type());
  } else {
    require(rotary != nullptr, "cca: pool_stage=pre_rope needs a model with rotary embedding, got one without");
    const Tensor positions = at::arange(first_position, first_position + keys, at::kLong);
    const int64_t place = cca.core_position == Cca::CorePosition::last ? g - 1 : g / 2;
    const Tensor plain = pooled(cca, rotary->rotate(wide_k, -positions), cores.weights, cuts);
    cores.k = rotary->rotate(plain, positions.slice(0, 0, keys, g) + place).to(q.scalar_type());
  }
  cores.v = pooled(cca, wide_v, cores.weights, cuts).to(q.scalar_type());
  return cores;
}

namespace {

// One batch element, or several whose rows all see everything before them.  Keys begin at `origin`.
Attended attend_from(const Cca& cca, const Inputs& in, int64_t origin, const Tensor& tokens) {
  const int64_t keys = in.k.size(2) - origin, start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2));
  Held held{in.k.narrow(2, origin, keys), in.v.narrow(2, origin, keys), 0, start - origin, {}};
  const int64_t groups = tokens.numel() ? cca.cores_of(tokens.max().item<int64_t>()) : 0, g = cca.group;
  if (groups > 0) {
    const int64_t first_last = g - 1 - held.first_query;  // row of the first group's last token
    require(first_last >= 0 || cca.pool != Cca::Pool::cca,
            "cca: pool=cca scores a group by the query of its last token, got rows from token {} on only; keep a state",
            held.first_query);
    const Tensor rows = (at::arange(groups, at::kLong) * g + first_last).clamp_min(0);
    const int64_t position = in.first_position ? *in.first_position - start + origin : 0;  // a text begins with it
    held.cores = cca_pool(cca, in.q.index_select(2, rows), held.k.narrow(2, 0, groups * g),
                          held.v.narrow(2, 0, groups * g), in.score.scale_of(in.q.size(3)), in.rotary, position);
  }
  return fuse(cca, in, held, tokens);
}

// One sequence of the batch; what it hides is said by the rows' counts of tokens.
Inputs sequence_of(const Inputs& in, int64_t b) {
  Inputs one = select_sequences(in, at::tensor({b}, at::kLong));
  for (auto* t : {&one.rule.key_lengths, &one.rule.row_start, &one.rule.row_end, &one.rule.query_documents,
                  &one.rule.key_documents})
    t->reset();
  one.rule.window_right = 0;
  one.first_position.reset();  // its text begins with its first key
  return one;
}

}  // namespace

Attended Cca::attend(const Inputs& in) const {
  validate();
  if (sees_no_core(*this, in.rule)) return Dense{}.attend(in);
  require(in.rule.sinks == 0, "cca: the model's rule must have no sinks, got {}; use dense", in.rule.sinks);
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  seen_keys(in.rule, queries, keys, name);  // one range each
  const SeenKeys text = seen_keys(without_windows(in.rule), queries, keys, name);
  if (queries == 0 || (text.end - text.start).max().item<int64_t>() <= window) return Dense{}.attend(in);
  if (!cuts_texts(in.rule)) return attend_from(*this, in, 0, text.end.select(0, 0));
  std::vector<Tensor> outs, starts, ends;
  const auto row = [](const Tensor& t, int64_t b) { return t.select(0, t.size(0) == 1 ? 0 : b); };
  for (int64_t b = 0; b < in.q.size(0); ++b) {
    const Tensor lo = row(text.start, b), hi = row(text.end, b), sees = hi.gt(lo);
    const Tensor begins = lo.masked_select(sees);
    const int64_t origin = begins.numel() ? begins.min().item<int64_t>() : 0;
    require(begins.numel() == 0 || begins.max().item<int64_t>() == origin,
            "cca: the keys of all rows must begin at one place, got {} and {}; use a window of the model's own", origin,
            begins.numel() ? begins.max().item<int64_t>() : 0);
    const Attended one = attend_from(*this, sequence_of(in, b), origin, (hi - origin).masked_fill(~sees, 0));
    const Rule& raw = std::get<Rule>(one.plans.front().plan);
    outs.push_back(one.out);
    starts.push_back(*raw.row_start + origin);
    ends.push_back(*raw.row_end + origin);
  }
  Rule raw = in.rule;
  raw.row_start = at::cat(starts, 0), raw.row_end = at::cat(ends, 0);
  return {at::cat(outs, 0), std::nullopt, {{0, in.q.size(2), raw}}};
}

namespace {

// Rows [B, H, capacity, D] that grow in amortised steps.
struct Rows {
  Tensor store;
  int64_t held = 0;

  Tensor all() const { return store.narrow(2, 0, held); }
  int64_t bytes() const { return store.defined() ? int64_t(store.nbytes()) : 0; }
  int64_t row_bytes() const { return store.defined() ? bytes() / store.size(2) : 0; }
  void append(const Tensor& fresh) {
    const int64_t needed = held + fresh.size(2);
    if (!store.defined() || needed > store.size(2)) {
      const int64_t room = store.defined() ? std::max(needed, held + held / 2) : needed;
      const Tensor larger = at::empty({fresh.size(0), fresh.size(1), room, fresh.size(3)}, fresh.options());
      if (held > 0) larger.narrow(2, 0, held).copy_(all());
      store = larger;
    }
    store.narrow(2, held, fresh.size(2)).copy_(fresh);
    held = needed;
  }
};

// All cores, and the tokens behind the last one that a row may read.  A core is made when its group is whole, with the
// query at hand, and read once the window has moved past it.
class CcaState final : public State {
 public:
  CcaState(Cca cca, const StateOptions& options)
      : cca_(cca), window_left_(options.rule.window_left), rollback_(options.rollback), raw_(options.cache) {}

  Attended prefill(const Inputs& in) override {
    require(!cuts_texts(in.rule) && in.rule.window_right == 0,
            "cca: a state holds one causal text a row, got padding, documents or later keys; attend without a state");
    const int64_t start = raw_.length(), rows = in.q.size(2);
    raw_.append(in.k, in.v);
    scale_ = in.score.scale_of(in.q.size(3)), rotary_ = in.rotary, type_ = in.q.scalar_type();
    if (cca_.keep_raw && cca_.pool == Cca::Pool::cca) queries_.append(in.q);  // others pool without queries
    add_cores(in.q, start);
    const Held held{raw_.k(),
                    raw_.v(),
                    evicted(),
                    start,
                    {cores_k_.held ? cores_k_.all() : Tensor(), cores_v_.held ? cores_v_.all() : Tensor(), {}}};
    Attended attended = fuse(cca_, in, held, at::arange(start, start + rows, at::kLong) + 1);
    evict();
    return attended;
  }
  Attended decode(const Inputs& in) override { return prefill(in); }

  void truncate(int64_t length) override {
    raw_.truncate(length, length - std::min(length, first_raw(length)));
    cores_k_.held = cores_v_.held = std::min(cores_k_.held, length / cca_.group);
    queries_.held = std::min(queries_.held, length);
  }

  void change(int64_t group, int64_t window) {
    Cca to = cca_;
    to.group = group, to.window = window;
    to.validate();
    require(raw_.held() == raw_.length() && (to.pool != Cca::Pool::cca || queries_.held == raw_.length()),
            "cca: groups can only change where all tokens and queries are kept, got {} of {} and {}; set keep_raw=true",
            raw_.held(), raw_.length(), queries_.held);
    require(raw_.length() == 0 || scale_, "cca: groups can only change behind a call, got a cache just loaded");
    cca_ = to;
    cores_k_ = cores_v_ = {};
    if (raw_.length() > 0) add_cores(queries_.held ? queries_.all() : raw_.k(), 0);
  }

  Snapshot save() const override {
    Snapshot snapshot = raw_.save();
    if (snapshot.empty()) return snapshot;
    snapshot["group"] = at::tensor({cca_.group}, at::kLong);
    if (cores_k_.held > 0) snapshot["cores_k"] = cores_k_.all(), snapshot["cores_v"] = cores_v_.all();
    if (queries_.held > 0) snapshot["queries"] = queries_.all();
    return snapshot;
  }

  void load(const Snapshot& snapshot) override {
    cores_k_ = cores_v_ = queries_ = {};
    raw_.load(snapshot);
    if (snapshot.empty()) return;
    try {
      load_cores(snapshot);
    } catch (const Error&) {
      raw_.load({});
      cores_k_ = cores_v_ = queries_ = {};
      throw;
    }
  }

  int64_t length() const override { return raw_.length(); }
  int64_t bytes() const override { return raw_.bytes() + cores_k_.bytes() + cores_v_.bytes() + queries_.bytes(); }
  int64_t read_bytes() const override {
    const int64_t cores = cca_.cores_of(length()), sinks = std::min(cores, cca_.sink_groups);
    return (length() - (cores - sinks) * cca_.group) * raw_.token_bytes() +
           (cores - sinks) * (cores_k_.row_bytes() + cores_v_.row_bytes());
  }

 private:
  int64_t evicted() const { return raw_.length() - raw_.held(); }
  int64_t first_raw(int64_t length) const { return cca_.cores_of(length) * cca_.group; }

  // Of the groups that have become whole; q are the rows from token `start` on.
  void add_cores(const Tensor& q, int64_t start) {
    const int64_t g = cca_.group, from = cores_k_.held, count = raw_.length() / g - from;
    if (count <= 0) return;
    const Tensor rows = ((at::arange(count, at::kLong) + from + 1) * g - 1 - start).clamp_min(0);
    const int64_t first = from * g - evicted();
    const Tensor last_queries = ops::widened(q.index_select(2, rows), type_);  // rows of keys where none are asked
    const CcaCores cores = cca_pool(cca_, last_queries, raw_.k().narrow(2, first, count * g),
                                    raw_.v().narrow(2, first, count * g), *scale_, rotary_, from * g);
    cores_k_.append(cores.k);
    cores_v_.append(cores.v);
  }

  void evict() {
    if (cca_.keep_raw) return;
    const int64_t sinks = cca_.sink_groups * cca_.group, first = first_raw(std::max<int64_t>(length() - rollback_, 0));
    const int64_t tail = length() - first;
    // A little more than needed stays, so that dropping copies a few tokens for each one that comes.
    if (first > sinks && raw_.held() > sinks + tail + std::max<int64_t>(4 * cca_.group, 64)) raw_.keep(sinks, tail);
  }

  // Takes what a snapshot holds beside the tokens.
  void load_cores(const Snapshot& snapshot) {
    const Tensor k = raw_.k(), v = raw_.v();
    const auto heads_of = [&](const char* name) {
      const auto found = snapshot.find(name);
      const int64_t heads = found != snapshot.end() && found->second.dim() == 4 ? found->second.size(1) : 0;
      require(heads > 0 && heads % k.size(1) == 0, "cca: a saved {} must have a multiple of {} heads, got {}", name,
              k.size(1), heads);
      return heads;
    };
    const auto group = snapshot.find("group");
    const int64_t groups = group != snapshot.end() && group->second.numel() == 1 ? group->second.item<int64_t>() : 0;
    require(groups == cca_.group, "cca: a saved cache must have groups of {}, got {}", cca_.group, groups);
    const int64_t cores = length() / cca_.group, sinks = cca_.sink_groups * cca_.group;
    const int64_t latest = length() - first_raw(length());
    require(evicted() == 0 || (raw_.head() == sinks && raw_.held() >= sinks + latest),
            "cca: later tokens see the first {} and the latest {} of the {} saved tokens, got {}", sinks, latest,
            length(), raw_.held());
    if (cores > 0) {
      const int64_t heads = heads_of("cores_k");
      cores_k_.append(saved_part(snapshot, "cca", "cores_k", {k.size(0), heads, cores, ops::row_dim(k)}));
      cores_v_.append(saved_part(snapshot, "cca", "cores_v", {v.size(0), heads, cores, ops::row_dim(v)}));
    }
    if (cca_.keep_raw && cca_.pool == Cca::Pool::cca)
      queries_.append(
          saved_part(snapshot, "cca", "queries", {k.size(0), heads_of("queries"), length(), ops::row_dim(k)}));
  }

  Cca cca_;
  std::optional<int64_t> window_left_;
  int64_t rollback_;
  KvCache raw_;
  Rows cores_k_, cores_v_, queries_;
  std::optional<double> scale_;  // of the latest call
  at::ScalarType type_ = at::kFloat;
  const ops::Rotary* rotary_ = nullptr;
};

}  // namespace

std::unique_ptr<State> Cca::make_state(const StateOptions& options) const {
  validate();
  if (sees_no_core(*this, options.rule)) return Dense{}.make_state(options);
  return std::make_unique<CcaState>(*this, options);
}

void change_granularity(State& state, int64_t group, int64_t window) {
  auto* own = dynamic_cast<CcaState*>(&state);
  require(own != nullptr, "cca: only a state of cca has groups to change, got another mechanism's");
  own->change(group, window);
}

}  // namespace foveate::attention
