#include "foveate/attention/routing/flux.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "foveate/attention/registry.h"
#include "foveate/attention/routing/grouping.h"
#include "foveate/attention/routing/objectives.h"

namespace foveate::attention {
namespace {

at::ScalarType wide_type(const at::Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

// Queries as they were before rotation.
at::Tensor raw_queries(const Inputs& in, int64_t first, int64_t count) {
  const at::Tensor q = in.q.narrow(2, first, count);
  if (!in.rotary) return q;
  return in.rotary->rotate(q, -text_positions(in, Flux::name).narrow(1, first, count));
}

// [B, count, D]
at::Tensor head_means(const Inputs& in, int64_t first, int64_t count) {
  const at::Tensor q = raw_queries(in, first, count);
  return q.mean(1, /*keepdim=*/false, wide_type(q));
}

// What the router reads of a prompt that comes in parts.
class PromptPool {
 public:
  void add(const Flux& o, const Inputs& in) {
    const int64_t rows = in.q.size(2), room = std::min(o.pool_size, rows);
    const auto join = [](at::Tensor& held, const at::Tensor& more) {
      held = held.defined() ? at::cat({held, more}, 1) : more;
    };
    if (o.pooling == Flux::Pooling::first && count_ == 0) head_ = head_means(in, 0, 1);
    if (o.pooling == Flux::Pooling::all) {
      const at::Tensor sum = head_means(in, 0, rows).sum(1, /*keepdim=*/true);
      head_ = head_.defined() ? head_ + sum : sum;
    }
    if (o.pooling == Flux::Pooling::ends) {
      if (count_ < o.pool_size) join(head_, head_means(in, 0, std::min(o.pool_size - count_, rows)));
      join(tail_, head_means(in, rows - room, room));
      if (tail_.size(1) > o.pool_size) tail_ = tail_.slice(1, tail_.size(1) - o.pool_size);
    }
    count_ += rows;
  }

  at::Tensor pooled(const Flux& o) const {  // [B, D]
    if (o.pooling == Flux::Pooling::ends) return at::cat({head_, tail_}, 1).mean(1);
    return head_.sum(1) / double(o.pooling == Flux::Pooling::all ? count_ : 1);
  }

 private:
  at::Tensor head_, tail_;  // [B, rows, D]: the first rows and the latest (all: the sum)
  int64_t count_ = 0;
};

// First and last row of every prompt of a padded batch, [B, 2]: of the text of the last row.
at::Tensor prompt_ranges(const Inputs& in) {
  const int64_t batch = in.q.size(0), rows = in.q.size(2);
  const int64_t start = in.rule.query_start.value_or(in.k.size(2) - rows);
  const SeenKeys text = shown_keys(without_windows(narrow_rows(in, rows - 1, 1).rule), 1, in.k.size(2), Flux::name);
  const auto rows_of = [&](const at::Tensor& t) { return (t.select(1, 0) - start).expand({batch}); };
  return at::stack({rows_of(text.start).clamp_min(0), rows_of(text.end).clamp_max(rows) - 1}, 1);
}

FluxRouter router_of(const Inputs& in) {
  const auto part = [&](const char* name) { return learned(in, Flux::name, name); };
  return {part("encoder_in"), part("encoder_in_bias"), part("encoder_out"), part("encoder_out_bias"),
          part("head_in"),    part("head_in_bias"),    part("head_middle"), part("head_middle_bias"),
          part("head_out"),   part("head_out_bias")};
}

at::Tensor choose(const Flux& o, const Inputs& in, const at::Tensor& pooled) {
  const at::Tensor logits = flux_logits(pooled, router_of(in));
  if (o.phase == Flux::Phase::deploy) return logits.select(1, 1).gt(logits.select(1, 0)).to(logits.scalar_type());
  std::optional<at::Tensor> noise;
  if (o.noise) noise = gumbel(uniform(logits.sizes(), uint64_t(o.seed), uint64_t(in.layer)));
  return flux_choice(logits, noise, o.tau, o.blend);
}

// A call for a nested mechanism, whose learned parts are those behind `prefix`.
class Nested {
 public:
  Nested(const Inputs& in, std::string_view prefix) : in_(in) {
    if (!in.learned) return;
    for (const auto& [name, part] : *in.learned)
      if (name.starts_with(prefix)) learned_[name.substr(prefix.size())] = part;
    in_.learned = learned_.empty() ? nullptr : &learned_;
  }
  Nested(const Nested&) = delete;
  const Inputs& inputs() const { return in_; }

 private:
  Learned learned_;
  Inputs in_;
};

constexpr std::string_view kFull = "full.", kCheap = "cheap.";

// Sequences of each kind, from decisions [B].
struct Groups {
  explicit Groups(const at::Tensor& decision)
      : full(decision.gt(0.5).nonzero().flatten()), cheap(decision.gt(0.5).logical_not().nonzero().flatten()) {}
  bool is_mixed() const { return full.numel() > 0 && cheap.numel() > 0; }
  at::Tensor full, cheap;  // int64
};

// Rows of both groups in the batch's order.  Plans of a mixed batch: all that the model itself shows.
Attended joined(const Inputs& in, const Groups& groups, const Attended& full, const Attended& cheap) {
  const at::Tensor order = at::cat({groups.full, groups.cheap}).argsort();
  Attended all{
      .out = at::cat({full.out, cheap.out}).index_select(0, order), .lse = {}, .plans = {{0, in.q.size(2), in.rule}}};
  if (full.lse && cheap.lse) all.lse = at::cat({*full.lse, *cheap.lse}).index_select(0, order);
  return all;
}

// run(is_full, inputs) for each group that there is.
template <class Run>
Attended by_group(const Inputs& in, const at::Tensor& decision, Run&& run) {
  const Groups groups(decision);
  if (!groups.is_mixed()) return run(groups.full.numel() > 0, in);
  const Attended full = run(true, select_sequences(in, groups.full));
  return joined(in, groups, full, run(false, select_sequences(in, groups.cheap)));
}

at::Tensor fixed(const Flux& o, const Inputs& in) {
  return at::full({in.q.size(0)}, o.route == Flux::Route::full ? 1.0 : 0.0, in.q.options().dtype(wide_type(in.q)));
}

}  // namespace

at::Tensor flux_pool(const at::Tensor& q, const std::optional<at::Tensor>& ranges, Flux::Pooling pooling,
                     int64_t pool_size) {
  const int64_t length = q.size(2);
  std::vector<at::Tensor> all;
  for (int64_t b = 0; b < q.size(0); ++b) {
    const int64_t first = ranges ? (*ranges)[b][0].item<int64_t>() : 0;
    const int64_t last = ranges ? (*ranges)[b][1].item<int64_t>() : length - 1;
    require(0 <= first && first <= last && last < length, "flux: a prompt must be tokens within 0 .. {}, got {} .. {}",
            length - 1, first, last);
    const int64_t tokens = last - first + 1, room = std::min(pool_size, tokens);
    const at::Tensor prompt = q[b].narrow(1, first, tokens).mean(0, false, wide_type(q));  // [tokens, D]
    if (pooling == Flux::Pooling::all) all.push_back(prompt.mean(0));
    if (pooling == Flux::Pooling::first) all.push_back(prompt[0]);
    if (pooling == Flux::Pooling::ends)
      all.push_back(at::cat({prompt.narrow(0, 0, room), prompt.narrow(0, tokens - room, room)}).mean(0));
  }
  return at::stack(all);
}

at::Tensor flux_logits(const at::Tensor& x, const FluxRouter& r) {
  const auto layer = [&](const at::Tensor& in, const at::Tensor& w, const at::Tensor& b) {
    return at::linear(in, w.to(x.scalar_type()), b.to(x.scalar_type()));
  };
  const at::Tensor encoded =
      layer(at::silu(layer(x, r.encoder_in, r.encoder_in_bias)), r.encoder_out, r.encoder_out_bias);
  const at::Tensor middle =
      layer(at::silu(layer(encoded, r.head_in, r.head_in_bias)), r.head_middle, r.head_middle_bias);
  return layer(at::silu(middle), r.head_out, r.head_out_bias);
}

at::Tensor flux_choice(const at::Tensor& logits, const std::optional<at::Tensor>& noise, double tau,
                       Flux::Blend blend) {
  const at::Tensor noisy = noise ? logits + noise->to(logits.scalar_type()) : logits;
  const at::Tensor y = (noisy / tau).softmax(-1).select(1, 1);
  if (blend == Flux::Blend::soft) return y;
  return noisy.select(1, 1).gt(noisy.select(1, 0)).to(y.scalar_type()) + (y - y.detach());
}

at::Tensor flux_blend(const at::Tensor& full, const at::Tensor& cheap, const at::Tensor& z) {
  const at::Tensor share = z.view({-1, 1, 1, 1});
  return (share * full + (1 - share) * cheap).to(full.scalar_type());
}

at::Tensor flux_decision(const Flux& o, const Inputs& in) {
  require(in.q.size(2) > 0, "flux: a prompt must have tokens, got none");
  if (o.route != Flux::Route::learned) return fixed(o, in);
  if (cuts_texts(in.rule))
    return choose(o, in, flux_pool(raw_queries(in, 0, in.q.size(2)), prompt_ranges(in), o.pooling, o.pool_size));
  PromptPool pool;
  pool.add(o, in);
  return choose(o, in, pool.pooled(o));
}

void Flux::validate() const {
  check_options(*this);
  make_mechanism(parse_spec(full));
  make_mechanism(parse_spec(cheap));
  require(phase == Phase::deploy || route == Route::learned, "flux: phase=train trains a router, so route=learned");
}

int64_t Flux::chunk_multiple() const {
  return std::lcm(make_mechanism(parse_spec(full)).chunk_multiple(),
                  make_mechanism(parse_spec(cheap)).chunk_multiple());
}

std::vector<LearnedPart> Flux::learned_parts(const LayerShape& shape) const {
  std::vector<LearnedPart> parts;
  const int64_t f = shape.head_dim;
  const auto add = [&](const std::string& part, int64_t outputs, int64_t inputs, Init weight, Init bias) {
    parts.push_back({part, {outputs, inputs}, std::move(weight)});
    parts.push_back({part + "_bias", {outputs}, std::move(bias)});
  };
  const auto uniform = [](int64_t inputs) {  // as torch's linear layers begin, and kaiming_uniform(a = sqrt 5)
    return Init{.kind = Init::Kind::uniform, .scale = 1 / std::sqrt(double(inputs))};
  };
  if (route == Route::learned) {
    add("encoder_in", 8 * f, f, uniform(f), uniform(f));
    add("encoder_out", 2 * f, 8 * f, uniform(8 * f), uniform(8 * f));
    add("head_in", 4 * f, 2 * f, uniform(2 * f), {});
    add("head_middle", f, 4 * f, uniform(4 * f), {});
    add("head_out", 2, f, {}, {.kind = Init::Kind::listed, .listed = {0, 4.5}});  // P(full) = 0.989: begins dense
  }
  for (const auto& [prefix, spec] : {std::pair{kFull, full}, {kCheap, cheap}})
    for (LearnedPart& part : make_mechanism(parse_spec(spec)).learned_parts(shape)) {
      part.name = std::string(prefix) + part.name;
      parts.push_back(std::move(part));
    }
  return parts;
}

namespace {

// run(is_full, inputs): one of the two mechanisms with its own learned parts.
auto runner(const Flux& o) {
  return [much = make_mechanism(parse_spec(o.full)), little = make_mechanism(parse_spec(o.cheap))](bool is_full,
                                                                                                   const Inputs& in) {
    const Nested nested(in, is_full ? kFull : kCheap);
    return (is_full ? much : little).attend(nested.inputs());
  };
}

}  // namespace

Attended Flux::attend(const Inputs& in) const {
  validate();
  const at::Tensor z = flux_decision(*this, in);
  if (phase == Phase::deploy) return attend_decided(in, z);
  const auto run = runner(*this);
  const Attended a = run(true, in), b = run(false, in);
  return {flux_blend(a.out, b.out, z), std::nullopt, a.plans};
}

Attended Flux::attend_decided(const Inputs& in, const at::Tensor& z) const { return by_group(in, z, runner(*this)); }

namespace {

// One memory for the sequences of each kind; both for all of them until the prompt has ended.
class FluxState final : public State {
 public:
  FluxState(const Flux& flux, const StateOptions& options)
      : flux_(flux),
        much_(make_mechanism(parse_spec(flux.full))),
        little_(make_mechanism(parse_spec(flux.cheap))),
        options_(options) {
    reset();
  }

  Attended prefill(const Inputs& in) override {
    return go_on(in, [](State& state, const Inputs& part) { return state.prefill(part); });
  }
  Attended decode(const Inputs& in) override {
    require(decision_.defined() || length() == 0,
            "flux: a prompt must end before tokens are generated, got {} open tokens", length());
    return go_on(in, [](State& state, const Inputs& part) { return state.decode(part); });
  }

  void truncate(int64_t length) override {
    require(length >= 0 && length <= this->length(), "truncate: length must be 0 .. {}, got {}", this->length(),
            length);
    if (length == 0) return reset();
    require(decision_.defined() || length == this->length(),
            "flux: an open prompt can only be forgotten as a whole, got {} of {} tokens; end it first", length,
            this->length());
    for (const auto& state : {cheap_.get(), full_.get()})  // what was evicted is refused before anything is forgotten
      if (state->length() > 0) state->truncate(length);
  }

  // Of one kind of sequences its tensors by their own names; of two those behind "full." and "cheap.".
  Snapshot save() const override {
    require(decision_.defined() || length() == 0,
            "flux: a state can be saved when its prompt has ended, got {} open tokens", length());
    if (length() == 0) return {};
    const bool both = full_->length() > 0 && cheap_->length() > 0;
    Snapshot all;
    for (const auto& [state, prefix] : {std::pair{full_.get(), kFull}, {cheap_.get(), kCheap}})
      if (state->length() > 0)
        for (auto& [part, tensor] : state->save()) all[(both ? std::string(prefix) : "") + part] = tensor;
    all["decision"] = decision_.to(at::kLong);
    return all;
  }

  void load(const Snapshot& snapshot) override {
    reset();
    if (snapshot.empty()) return;
    const auto found = snapshot.find("decision");
    require(found != snapshot.end() && found->second.scalar_type() == at::kLong && found->second.dim() == 1 &&
                found->second.numel() > 0,
            "flux: a saved state must have the decision of each sequence, got none");
    decision_ = found->second.to(at::kDouble);
    Snapshot rest = snapshot;
    rest.erase("decision");
    try {
      load_memories(rest);
    } catch (const Error&) {
      reset();
      throw;
    }
  }

  int64_t length() const override { return std::max(full_->length(), cheap_->length()); }
  int64_t bytes() const override { return full_->bytes() + cheap_->bytes(); }
  int64_t read_bytes() const override { return full_->read_bytes() + cheap_->read_bytes(); }

 private:
  void reset() {
    full_ = much_.make_state(options_), cheap_ = little_.make_state(options_);
    decision_ = at::Tensor(), pool_ = {}, holds_all_ = false;
  }

  void load_memories(const Snapshot& rest) {
    const Groups groups(decision_);
    if (!groups.is_mixed()) return (groups.full.numel() > 0 ? full_ : cheap_)->load(rest);
    Snapshot full, cheap;
    for (const auto& [part, tensor] : rest) {
      if (part.starts_with(kFull)) full[part.substr(kFull.size())] = tensor;
      if (part.starts_with(kCheap)) cheap[part.substr(kCheap.size())] = tensor;
    }
    full_->load(full), cheap_->load(cheap);
    require(full_->length() == cheap_->length() && full_->length() > 0,
            "flux: full and cheap sequences must have the same tokens, got {} and {}", full_->length(),
            cheap_->length());
    const auto key = full.find("k");
    holds_all_ = key != full.end() && key->second.size(0) == decision_.numel();
  }

  template <class Run>
  Attended go_on(const Inputs& in, Run&& attend_new) {
    const auto run = [&](bool is_full, const Inputs& part) {
      const Nested nested(part, is_full ? kFull : kCheap);
      return attend_new(is_full ? *full_ : *cheap_, nested.inputs());
    };
    if (decision_.defined()) return holds_all_ ? by_sequence(in, decision_, run) : by_group(in, decision_, run);
    const bool is_known = flux_.route != Flux::Route::learned || (length() == 0 && in.ends_prompt);
    const at::Tensor decision = decide(in);
    if (is_known) {
      decision_ = decision;
      return by_group(in, decision_, run);
    }
    const Attended attended = by_sequence(in, decision, run);
    if (in.ends_prompt) settle(decision);
    return attended;
  }

  at::Tensor decide(const Inputs& in) {
    require(in.q.size(2) > 0, "flux: a prompt must have tokens, got none");
    if (flux_.route != Flux::Route::learned || (cuts_texts(in.rule) && length() == 0 && in.ends_prompt))
      return flux_decision(flux_, in);
    require(!cuts_texts(in.rule), "flux: a prompt in chunks must have no padding");
    Inputs placed = in;
    placed.first_position = length();
    pool_.add(flux_, placed);
    return choose(flux_, in, pool_.pooled(flux_));
  }

  // Both kinds of memory take the whole batch; each sequence's rows are those of its own kind.
  template <class Run>
  Attended by_sequence(const Inputs& in, const at::Tensor& decision, Run&& run) {
    const Attended full = run(true, in), cheap = run(false, in);
    const Groups groups(decision);
    if (!groups.is_mixed()) return groups.full.numel() > 0 ? full : cheap;
    const at::Tensor is_full = decision.gt(0.5);
    Attended all{.out = at::where(is_full.view({-1, 1, 1, 1}), full.out, cheap.out),
                 .lse = {},
                 .plans = {{0, in.q.size(2), in.rule}}};
    if (full.lse && cheap.lse) all.lse = at::where(is_full.view({-1, 1, 1}), *full.lse, *cheap.lse);
    return all;
  }

  // The prompt has ended: what no sequence needs is dropped.
  void settle(const at::Tensor& decision) {
    decision_ = decision;
    const Groups groups(decision_);
    holds_all_ = groups.is_mixed();
    if (!holds_all_)
      (groups.full.numel() > 0 ? cheap_ : full_) = (groups.full.numel() > 0 ? little_ : much_).make_state(options_);
  }

  Flux flux_;
  Mechanism much_, little_;
  StateOptions options_;
  std::unique_ptr<State> full_, cheap_;
  at::Tensor decision_;  // [B], 1 where full; undefined: the prompt is open
  PromptPool pool_;
  bool holds_all_ = false;  // both memories hold all sequences: a prompt in chunks ended with mixed decisions
};

}  // namespace

std::unique_ptr<State> Flux::make_state(const StateOptions& options) const {
  validate();
  require(phase == Phase::deploy, "flux: generation needs phase=deploy, got train");
  return std::make_unique<FluxState>(*this, options);
}

}  // namespace foveate::attention
