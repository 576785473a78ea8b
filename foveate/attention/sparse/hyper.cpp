#include "foveate/attention/sparse/hyper.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/hyper_groups.h"
#include "foveate/base/random.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using Residual = Hyper::Residual;

// Random numbers of a layer: stream 0 projections, then one for each group of rectangles and sample of the batch.
uint64_t stream_of(int64_t layer, uint64_t group) { return uint64_t(layer) << 40 | group << 32; }

struct Result {
  ops::Attended attended;
  std::vector<Plan> plans;
  bool is_estimate;  // keys were sampled
};

bool hides_nothing(const Rule& rule, int64_t keys) { return !rule.window_left || *rule.window_left >= keys; }

// The rule's start, once it is one that rectangles can serve.
int64_t checked_start(const Hyper& o, const Inputs& in) {
  const Rule& rule = in.rule;
  const int64_t start = rule.query_start.value_or(in.k.size(2) - in.q.size(2));
  require(!rule.query_documents && !rule.row_start && !rule.row_end && !rule.head_window && !rule.query_order,
          "hyper: rules with documents, row ranges, head windows or ordered queries are not supported for more than {} "
          "tokens, raise min_seq_len to attend exactly",
          o.min_seq_len);
  require(rule.window_right.value_or(0) == 0, "hyper: the rule must be causal or show all later keys, got {} of them",
          rule.window_right.value_or(0));
  require(!rule.window_right || start >= 0, "hyper: queries must not come before the first key, got position {}",
          start);
  require(!in.score.landmarks, "hyper: landmarks are not supported, got some; leave them out");
  const ops::Score& s = in.score;
  require(o.residual != Residual::capped || !(s.bias || s.slopes || s.relative || s.leaky || s.dropout > 0),
          "hyper: residual=capped bounds plain products, got a bias, slopes, relative logits, leaky logits or dropout");
  return start;
}

// Rows that attend exactly: each to its own leaf's past; late ones to all from `start` on; others to nothing.
Rule leaf_rule(const HyperCut& cut, const Inputs& in, int64_t start) {
  Rule rule = in.rule;
  rule.query_start = start;
  if (cut.leaves.size() <= 1 && cut.late.length == 0 && start == 0) return rule;
  const Tensor begin = at::full({1, 1, in.q.size(2)}, in.k.size(2), at::kLong);
  for (const ops::Segment& leaf : cut.leaves) begin.narrow(2, leaf.first, leaf.length).fill_(start + leaf.first);
  if (cut.late.length > 0) begin.narrow(2, cut.late.first, cut.late.length).fill_(start);
  rule.row_start = begin;
  return rule;
}

// One layer's call under hyper_attention, no key of which is padding.
class HyperCall {
 public:
  HyperCall(const Hyper& o, const Inputs& in, const HyperDraws& draws, int64_t batch)
      : o_(o), in_(in), draws_(draws), batch_(batch) {}

  Result run() {
    const int64_t queries = in_.q.size(2), keys = in_.k.size(2);
    require(keys > 0 || queries == 0, "hyper: there must be a key, got 0 for {} queries", queries);
    const bool is_causal = in_.rule.window_right.has_value();
    const bool is_short = queries < o_.min_seq_len || (is_causal && keys <= o_.min_seq_len);
    if (is_short || !hides_nothing(in_.rule, keys)) return exact();
    const int64_t start = checked_start(o_, in_);
    const HyperCut cut = cut_call(o_, start, queries, keys, is_causal);
    if (cut.groups.empty()) return exact();
    in_.rule.query_start = start;
    in_.rule.window_left.reset();
    if (is_causal) add({leaf_rule(cut, in_, start), {}, {}});
    add_groups(cut);
    if (!parts_.empty())
      done_.push_back(ops::attend_parts(in_.q, in_.k, in_.v, parts_, in_.score));
    else if (in_.score.sink)
      done_.push_back(sink_alone());
    return {done_.size() == 1 ? done_[0] : ops::merge_by_lse(done_), std::move(plans_), is_estimate_};
  }

 private:
  Result exact() const { return {ops::attend(in_.q, in_.k, in_.v, in_.rule, in_.score), {in_.rule}, false}; }

  // One key of the sink's logit and a value of 0.
  ops::Attended sink_alone() const {
    const ops::Attended& like = done_[0];
    const Tensor lse = in_.score.sink->to(like.lse.scalar_type()).view({1, -1, 1}).expand(like.lse.sizes());
    return {at::zeros_like(like.out), lse};
  }

  void add(ops::Part part) {
    plans_.push_back(part.plan);
    parts_.push_back(std::move(part));
  }

  void add_groups(const HyperCut& cut) {
    const Tensor query_buckets = ops::angular_buckets(in_.q, draws_.projections, o_.gray),
                 key_buckets = ops::angular_buckets(in_.k, draws_.projections, o_.gray);
    Tensor norms;
    if (o_.residual == Residual::vnorm && o_.sample_size > 0) {
      const Tensor v = ops::widened(in_.v.detach(), at::kFloat).to(at::kDouble);
      norms = (v * v).sum(-1).contiguous();
    }
    require(draws_.samples.empty() || draws_.samples.size() == cut.groups.size(),
            "hyper: samples must be given for each of {} groups, got {}", cut.groups.size(), draws_.samples.size());
    for (size_t i = 0; i < cut.groups.size(); ++i) {
      const HyperGroup group = sort_group(o_, cut.groups[i], query_buckets, key_buckets);
      const bool samples = o_.sample_size > 0 && std::ranges::any_of(group.rectangles, [&](const Rectangle& r) {
                             return o_.block_size == 0 || r.keys > o_.block_size;
                           });
      is_estimate_ |= samples;
      const uint64_t stream = stream_of(in_.layer, i + 1);
      Tensor places;
      if (samples) places = draws_.samples.empty() ? draw_places(o_, group, norms, stream, batch_) : given(group, i);
      if (o_.residual == Residual::capped && samples)
        add_capped(group, places, stream);
      else
        add_group(group, places, norms);
    }
  }

  Tensor given(const HyperGroup& group, size_t number) const {
    const Tensor& places = draws_.samples[number];
    const int64_t parts = std::ssize(group.rectangles);
    require(places.dim() == 4 && places.scalar_type() == at::kLong && places.size(0) == in_.k.size(0) &&
                places.size(1) == in_.k.size(1) && places.size(2) == parts && places.size(3) > 0,
            "hyper: samples must be int64 [{}, {}, {}, at least 1], got [{}]", in_.k.size(0), in_.k.size(1), parts,
            fmt::join(places.sizes().begin(), places.sizes().end(), ", "));
    for (int64_t i = 0; i < parts; ++i) {
      const Tensor own = places.select(2, i);
      const int64_t keys = group.rectangles[size_t(i)].keys;
      require(own.min().item<int64_t>() >= 0 && own.max().item<int64_t>() < keys,
              "hyper: samples must be 0 .. {}, got {} .. {}", keys - 1, own.min().item<int64_t>(),
              own.max().item<int64_t>());
    }
    return places;
  }

  void add_group(const HyperGroup& group, const Tensor& places, const Tensor& norms) {
    if (o_.block_size > 0) add({block_plan(group, in_.rule), {}, {}});
    if (places.defined()) add(sampled_part(o_, group, in_.rule, places, norms, in_));
  }

  // The cap of a row depends on its own block: rectangles one by one, in plain ATen.
  void add_capped(const HyperGroup& group, const Tensor& places, uint64_t stream) {
    in_.k = ops::widened(in_.k, in_.q.scalar_type()), in_.v = ops::widened(in_.v, in_.q.scalar_type());
    const TokenPlan plan = block_plan(group, in_.rule);
    ops::Score score = in_.score;
    score.sink.reset();  // joins once, behind
    const ops::Attended block = ops::attend(in_.q, in_.k, in_.v, plan, score);
    done_.push_back(block);
    plans_.push_back(plan);
    plans_.push_back(sampled_part(o_, group, in_.rule, places, {}, in_).plan);
    constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
    Tensor out = at::zeros_like(block.out), lse = at::full_like(block.lse, kMinusInfinity);
    for (size_t i = 0; i < group.rectangles.size(); ++i) {
      if (group.rectangles[i].keys <= o_.block_size) continue;
      const SortedRectangle r = sorted_rectangle(group, i, in_);
      const Tensor drawn = places.select(2, int64_t(i));
      const Tensor valid = drawn.select(1, 0).select(0, 0).ge(0);
      const Tensor own = drawn.narrow(2, 0, valid.sum().item<int64_t>());
      const CappedResidual c =
          capped_residual(o_, r, block.lse.gather(2, r.queries), own,
                          draw_rows(o_, r.q.size(2), stream | uint64_t{0x80} << 32 | uint64_t(i)), score);
      const Tensor values = r.v.gather(2, own.unsqueeze(3).expand({-1, -1, -1, r.v.size(3)})).to(lse.scalar_type());
      const Tensor weights = c.logits.masked_fill(c.empty.unsqueeze(3), 0).softmax(-1);
      const Tensor mean =
          at::matmul(weights, values.repeat_interleave(in_.q.size(1) / in_.k.size(1), 1)).to(out.scalar_type());
      const Tensor wide = r.queries.unsqueeze(3).expand({-1, -1, -1, out.size(3)});
      out = out.scatter(2, wide, mean.masked_fill(c.empty.unsqueeze(3), 0));
      lse = lse.scatter(2, r.queries, c.lse.masked_fill(c.empty, kMinusInfinity));
    }
    done_.push_back({out, lse});
  }

  const Hyper& o_;
  Inputs in_;
  const HyperDraws& draws_;
  int64_t batch_;  // which sample of the caller's batch is the first here
  std::vector<ops::Part> parts_;
  std::vector<ops::Attended> done_;
  std::vector<Plan> plans_;
  bool is_estimate_ = false;
};

// The sample b of the batch with its first `keys` keys.
Inputs narrow_sample(const Inputs& in, int64_t b, int64_t keys) {
  Inputs one = in;
  one.rule.query_start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2));
  one.rule.key_lengths.reset();
  one.q = in.q.narrow(0, b, 1), one.k = in.k.narrow(0, b, 1).narrow(2, 0, keys),
  one.v = in.v.narrow(0, b, 1).narrow(2, 0, keys);
  const auto by_batch = [&](Tensor t) { return t.size(0) == 1 ? t : t.narrow(0, b, 1); };
  if (auto& bias = one.score.bias) {
    *bias = by_batch(*bias);
    if (bias->size(3) != 1) *bias = bias->narrow(3, 0, keys);
  }
  if (auto& relative = one.score.relative) {
    relative->logits = by_batch(relative->logits);
    relative->keys = relative->keys.narrow(1, 0, keys);
  }
  return one;
}

Result run(const Hyper& o, const Inputs& in, const HyperDraws& draws) {
  o.validate();
  require(draws.projections.dim() == 2 && draws.projections.size(0) == in.q.size(3) &&
              draws.projections.size(1) == o.lsh_num_projs,
          "hyper: projections must be [{}, {}], got [{}]", in.q.size(3), o.lsh_num_projs,
          fmt::join(draws.projections.sizes().begin(), draws.projections.sizes().end(), ", "));
  const bool is_whole = in.q.size(2) < o.min_seq_len || !hides_nothing(in.rule, in.k.size(2));
  if (!in.rule.key_lengths || is_whole) return HyperCall(o, in, draws, 0).run();
  require(in.score.dropout == 0, "hyper: dropout needs rows of one length, got key_lengths; leave one of them out");
  require(draws.samples.empty(), "hyper: samples are drawn by the seed where there are key_lengths, got some");
  const Tensor lengths = in.rule.key_lengths->clamp(0, in.k.size(2)).contiguous();
  std::vector<Tensor> outs, lses;
  bool is_estimate = false;
  for (int64_t b = 0; b < in.q.size(0); ++b) {
    const int64_t keys = lengths.const_data_ptr<int64_t>()[b];
    const Inputs one = narrow_sample(in, b, keys);
    const Result r = keys > 0 ? HyperCall(o, one, draws, b).run()
                              : Result{ops::attend(one.q, one.k, one.v, one.rule, one.score), {}, false};
    outs.push_back(r.attended.out), lses.push_back(r.attended.lse);
    is_estimate |= r.is_estimate;
  }
  return {{at::cat(outs, 0), at::cat(lses, 0)}, {in.rule}, is_estimate};
}

}  // namespace

void Hyper::validate() const {
  check_options(*this);
  require(block_size > 0 || sample_size > 0, "hyper: block_size and sample_size must not both be 0, got {} and {}",
          block_size, sample_size);
  require(residual == Residual::uniform || sample_size > 0, "hyper: residual={} needs samples, got sample_size={}",
          enum_names(residual)[size_t(residual)], sample_size);
  require(residual != Residual::vnorm || replacement,
          "hyper: residual=vnorm draws with replacement, got replacement=false");
  require(residual != Residual::capped || (block_size > 0 && epsilon > 0 && (kappa == 0 || kappa >= 1)),
          "hyper: residual=capped needs blocks, epsilon > 0 and kappa 0 or >= 1, got block_size={}, {} and {}",
          block_size, epsilon, kappa);
  require(residual == Residual::capped || (epsilon == Hyper{}.epsilon && kappa == Hyper{}.kappa),
          "hyper: epsilon and kappa belong to residual=capped, got {} and {}", epsilon, kappa);
}

HyperDraws hyper_draws(const Hyper& o, int64_t dim, int64_t layer) {
  const Tensor projections = at::empty({dim, o.lsh_num_projs}, at::kDouble);
  Random random(uint64_t(o.seed), stream_of(layer, 0));
  for (int64_t i = 0; i < projections.numel(); ++i) projections.mutable_data_ptr<double>()[i] = random.normal();
  return {projections};
}

ops::Attended hyper_attention(const Hyper& o, const Inputs& in, const HyperDraws& draws) {
  return run(o, in, draws).attended;
}

Attended Hyper::attend(const Inputs& in) const { return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in); }

Attended Hyper::attend_prompt(const Inputs& in) const {
  const Result r = run(*this, in, hyper_draws(*this, in.q.size(3), in.layer));
  Attended attended{r.attended.out, std::nullopt, {}};
  if (!r.is_estimate) attended.lse = r.attended.lse;
  for (const Plan& plan : r.plans) attended.plans.push_back({0, in.q.size(2), plan});
  return attended;
}

std::unique_ptr<State> Hyper::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<Hyper>>(*this, options);
}

}  // namespace foveate::attention
