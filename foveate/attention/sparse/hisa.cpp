#include "foveate/attention/sparse/hisa.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/stack.h>

#include <bit>
#include <cmath>

#include "foveate/ops/index/training.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

using at::Tensor;

const Tensor& part(const Learned& parts, std::string_view name) {
  const auto found = parts.find(name);
  require(found != parts.end(), "hisa: the adapter must have {}, got none", name);
  return found->second;
}

// [B, Lq] each.
SeenKeys visible_keys(const Inputs& in) {
  const SeenKeys seen = seen_keys(in.rule, in.q.size(2), in.k.size(2), Hisa::name, /*causal=*/false);
  const auto of_batch = [&](const Tensor& t) { return t.expand({in.q.size(0), -1}).contiguous(); };
  return {of_batch(seen.start), of_batch(seen.end)};
}

// A list counted from `start` counted from key 0.
Tensor from_first_key(const Tensor& index, const Tensor& start) {
  return (index + start.unsqueeze(1).to(at::kInt)).masked_fill_(index.lt(0), -1);
}

}  // namespace

void Hisa::validate() const {
  check_options(*this);
  require(!force_ends || block_topk >= 2, "hisa: block_topk must be >= 2 where ends are forced, got {}", block_topk);
  require(!hadamard || std::has_single_bit(uint64_t(dim)),
          "hisa: dim must be a power of two where hadamard is on, got {}", dim);
  require(rope_dims % 2 == 0 && rope_dims <= dim, "hisa: rope_dims must be even and <= dim, got {} of {}", rope_dims,
          dim);
  require(!pooled_bf16 || dtype != ops::IndexType::fp32, "hisa: pooled_bf16 must be off where dtype is fp32");
}

std::vector<LearnedPart> Hisa::learned_parts(const LayerShape& shape) const {
  const Init normal{Init::Kind::normal, 0.02}, ones{Init::Kind::ones, 0};
  return {{"query", {heads * dim, shape.width}, normal},
          {"key", {dim, shape.width}, normal},
          {"key_norm", {dim}, ones},
          {"key_norm_bias", {dim}},
          {"weight", {heads, shape.width}, normal}};
}

IndexVectors Hisa::vectors(const Tensor& query_input, const Tensor& hidden, const Learned& parts,
                           const ops::Rotary* rotary, const Tensor& positions) const {
  const auto project = [&](const Tensor& x, std::string_view name) {
    const Tensor& weight = part(parts, name);
    const auto type = at::promote_types(at::promote_types(x.scalar_type(), weight.scalar_type()), at::kFloat);
    return at::linear(x.to(type), weight.to(type));
  };
  Tensor q = project(query_input, "query").unflatten(2, {heads, dim}), k = project(hidden, "key");
  const auto like_k = [&](std::string_view name) { return part(parts, name).to(k.scalar_type()); };
  k = at::layer_norm(k, {dim}, like_k("key_norm"), like_k("key_norm_bias"), 1e-6);
  if (rotary) {
    const ops::Rotary own = rotary->thinned(rope_dims ? rope_dims : std::min(dim, rotary->dim()));
    q = own.rotate(q.transpose(1, 2), positions).transpose(1, 2), k = own.rotate(k.unsqueeze(1), positions).squeeze(1);
  }
  if (hadamard) q = ops::hadamard(q), k = ops::hadamard(k);
  return {q, k, project(hidden, "weight") / std::sqrt(double(heads * dim))};
}

IndexVectors Hisa::vectors(const Inputs& in) const {
  require(in.learned, "hisa: has learned parts, got no adapter; give the file that training wrote");
  require(in.hidden.has_value(), "hisa: the indexer reads the layer's hidden state, got none");
  return vectors(*in.hidden, *in.hidden, *in.learned, in.rotary, text_positions(in, name));
}

ops::BlockedKeys Hisa::empty_keys() const {
  return {dim, {dtype, {.power_of_two = power_of_two}}, block, pooling, pooled_bf16};
}

ops::IndexQueries Hisa::queries(const IndexVectors& rows, int64_t b, const Tensor& start, const Tensor& end) const {
  const Tensor q = rows.q.select(0, b).detach(), weights = rows.weights.select(0, b).detach();
  if (dtype != ops::IndexType::e4m3) return {q, weights, start, end};
  const ops::Float8Rows codes = ops::quantise_float8(q, {.power_of_two = power_of_two});
  return {codes.codes, weights * codes.scales, start, end};
}

Tensor Hisa::select(const ops::IndexQueries& queries, const ops::BlockedKeys& keys) const {
  if (indexer == Indexer::flat) return ops::index_top(queries, keys.keys(), topk);
  return ops::hisa_index(queries, keys, {block_topk, topk, force_ends});
}

Attended Hisa::attend_over(const Inputs& in, const IndexVectors& rows,
                           const std::vector<ops::BlockedKeys>& keys) const {
  const int64_t queries_count = in.q.size(2), batch = in.q.size(0);
  const SeenKeys visible = visible_keys(in);
  // Leading rows that see no more than topk keys take them all: a rule says that without lists.
  const Tensor seen = (visible.end - visible.start).amax(0).contiguous();
  int64_t dense = 0, widest = 0;
  while (dense < queries_count && seen.const_data_ptr<int64_t>()[dense] <= topk) ++dense;
  for (int64_t i = dense; i < queries_count; ++i) widest = std::max(widest, seen.const_data_ptr<int64_t>()[i]);
  Attended attended{.out = {}, .lse = {}, .plans = {}};
  std::vector<Tensor> outs, lses;
  const auto run = [&](int64_t first, int64_t count, const auto& plan_of) {
    if (count == 0 && queries_count > 0) return;
    const Inputs some = narrow_rows(in, first, count);
    Plan plan = plan_of(some.rule);
    const ops::Attended done = ops::attend(some.q, some.k, some.v, plan, some.score);
    outs.push_back(done.out), lses.push_back(done.lse);
    attended.plans.push_back({first, count, std::move(plan)});
  };
  run(0, dense, [](const Rule& rule) -> Plan { return rule; });
  if (dense < queries_count)
    run(dense, queries_count - dense, [&](const Rule& rule) -> Plan {
      const int64_t count = queries_count - dense;
      std::vector<Tensor> lists;
      for (int64_t b = 0; b < batch; ++b) {
        const auto cut = [&](const Tensor& t) { return t.narrow(1, dense, count); };
        const Tensor start = cut(visible.start).select(0, b).contiguous(),
                     end = cut(visible.end).select(0, b).contiguous();
        const Tensor list = select(queries({cut(rows.q), rows.k, cut(rows.weights)}, b, start, end), keys[size_t(b)]);
        lists.push_back(from_first_key(list, start).narrow(1, 0, std::min(topk, widest)));
      }
      return TokenPlan{1, at::stack(lists).unsqueeze(1), rule};
    });
  attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  attended.lse = lses.size() == 1 ? lses[0] : at::cat(lses, 2);
  return attended;
}

namespace {

void append(std::vector<ops::BlockedKeys>& keys, const Hisa& hisa, const Tensor& k) {  // [B, L, dim]
  while (std::ssize(keys) < k.size(0)) keys.push_back(hisa.empty_keys());
  for (int64_t b = 0; b < k.size(0); ++b) keys[size_t(b)].append(k.select(0, b).detach());
}

void check_hidden(const Inputs& in) {
  if (!in.hidden) return;  // said by vectors()
  const Tensor& x = *in.hidden;
  require(
      x.dim() == 3 && x.size(0) == in.q.size(0) && x.size(1) == in.k.size(2) && in.q.size(2) == in.k.size(2),
      "hisa: without a state queries, keys and hidden [{}, tokens, width] must be of the same tokens, got {}, {} and "
      "[{}]",
      in.q.size(0), in.q.size(2), in.k.size(2), fmt::join(x.sizes().begin(), x.sizes().end(), ", "));
}

}  // namespace

Attended Hisa::attend(const Inputs& in) const {
  validate();
  check_hidden(in);
  IndexVectors rows;
  std::vector<ops::BlockedKeys> keys;
  {
    const at::NoGradGuard no_grad;
    rows = vectors(in);
    append(keys, *this, rows.k);
  }
  return attend_over(in, rows, keys);
}

Tensor Hisa::loss(const Inputs& in, Stage stage) const {
  validate();
  check_hidden(in);
  require(!in.score.bias && !in.score.slopes && !in.score.relative && !in.score.leaky && !in.score.landmarks &&
              !in.score.sink,
          "hisa: the loss knows scale and soft cap alone, got other score terms");
  Inputs given = in;
  if (in.hidden) given.hidden = in.hidden->detach();
  const IndexVectors rows = vectors(given);
  const SeenKeys visible = visible_keys(in);
  std::vector<ops::BlockedKeys> keys;
  if (stage == Stage::selected) append(keys, *this, rows.k);
  std::vector<Tensor> losses;
  for (int64_t b = 0; b < in.q.size(0); ++b) {
    const Tensor start = visible.start.select(0, b), end = visible.end.select(0, b);
    std::optional<Tensor> index;
    if (stage == Stage::selected) index = from_first_key(select(queries(rows, b, start, end), keys[size_t(b)]), start);
    const double scale = in.score.scale_of(in.q.size(3));
    losses.push_back(ops::indexer_loss(
        {rows.q.select(0, b), rows.k.select(0, b), rows.weights.select(0, b), start, end},
        {in.q.select(0, b), ops::widened(in.k, at::kFloat).select(0, b), scale, in.score.soft_cap}, index));
  }
  return at::stack(losses).mean();
}

namespace {

// Keeps index keys beside the cache.
class HisaState final : public CachedState {
 public:
  HisaState(const Hisa& hisa, const StateOptions& options) : CachedState(std::nullopt, options), hisa_(hisa) {}

  Attended prefill(const Inputs& in) override {
    const Inputs all = appended(in);
    const IndexVectors rows = hisa_.vectors(all);
    append(keys_, hisa_, rows.k);
    return hisa_.attend_over(all, rows, keys_);
  }

  Attended decode(const Inputs& in) override { return prefill(in); }  // row by row or at once: the same lists

  void truncate(int64_t length) override {
    CachedState::truncate(length);
    for (ops::BlockedKeys& keys : keys_) keys.truncate(length);
  }

  Snapshot save() const override {
    Snapshot snapshot = CachedState::save();
    std::vector<Tensor> keys, scales;
    for (const ops::BlockedKeys& all : keys_) {
      const ops::Float8Rows rows = all.keys().rows(0, length());
      keys.push_back(rows.codes), scales.push_back(rows.scales);
    }
    if (keys.empty()) return snapshot;
    snapshot["index"] = at::stack(keys).to(hisa_.dtype == ops::IndexType::fp32 ? at::kFloat : at::kBFloat16);  // exact
    if (hisa_.dtype == ops::IndexType::e4m3) snapshot["index_scales"] = at::stack(scales);
    return snapshot;
  }

  void load(const Snapshot& snapshot) override {
    keys_.clear();
    CachedState::load(snapshot);
    if (length() == 0) return;
    const bool scaled = hisa_.dtype == ops::IndexType::e4m3;
    const auto fits = [&](const char* name, int64_t axes, int64_t dim) {
      const auto found = snapshot.find(name);
      return found != snapshot.end() && found->second.dim() == axes && found->second.size(0) == cache_.k().size(0) &&
             found->second.size(1) == length() && (axes == 2 || found->second.size(2) == dim) &&
             found->second.is_floating_point();
    };
    if (!fits("index", 3, hisa_.dim) || (scaled && !fits("index_scales", 2, 0))) {
      CachedState::load({});
      fail("hisa: a saved state must have index [batch, length, {}]{}, got others", hisa_.dim,
           scaled ? " and index_scales [batch, length]" : "");
    }
    const Tensor& index = snapshot.at("index");
    for (int64_t b = 0; b < index.size(0); ++b) {
      keys_.push_back(hisa_.empty_keys());
      if (scaled)
        keys_.back().append(ops::Float8Rows{index.select(0, b).to(at::kFloat8_e4m3fn),
                                            snapshot.at("index_scales").select(0, b).to(at::kFloat)});
      else
        keys_.back().append(index.select(0, b));
    }
  }

  int64_t bytes() const override {
    int64_t sum = CachedState::bytes();
    for (const ops::BlockedKeys& keys : keys_) sum += keys.bytes();
    return sum;
  }

  int64_t read_bytes() const override {
    int64_t sum = std::min(length(), hisa_.topk) * cache_.token_bytes();
    if (length() <= hisa_.topk) return sum;
    for (const ops::BlockedKeys& keys : keys_) {
      const bool flat = hisa_.indexer == Hisa::Indexer::flat;
      const int64_t scored = flat ? length() : std::min(length(), hisa_.block_topk * hisa_.block);
      sum += scored * keys.keys().key_bytes();
      if (scored < length()) sum += keys.pooled().length() * keys.pooled().key_bytes();
    }
    return sum;
  }

 private:
  Hisa hisa_;
  std::vector<ops::BlockedKeys> keys_;  // of each batch entry
};

}  // namespace

std::unique_ptr<State> Hisa::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<HisaState>(*this, options);
}

}  // namespace foveate::attention
