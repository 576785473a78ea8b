#include "foveate/attention/sparse/nsa.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "foveate/ops/parallel.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/select.h"
#include "foveate/ops/sums/sums.h"

namespace foveate::attention {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kRowsAtOnce = 512;  // of scores of windows and blocks: no matrix of all rows by all windows

at::ScalarType wide_type(const at::Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

// fp32 or wider, also of 8-bit rows.
at::Tensor wide(const at::Tensor& rows) {
  const at::Tensor x = ops::widened(rows, at::kFloat);
  return x.to(wide_type(x));
}

// The keys of the selected blocks and of the window, each once: what the two branches look at.
RunPlan union_of(const Nsa& o, const at::Tensor& index, const SeenKeys& seen, const Rule& rule) {
  const int64_t first = *rule.query_start;
  const at::Tensor position = at::arange(first, first + index.size(2), at::kLong).view({1, 1, -1, 1});
  const at::Tensor latest = (position + (1 - o.window)).clamp_min_(0), start = index * o.block;
  const at::Tensor end = at::minimum(start + o.block, latest).masked_fill_(index.lt(0), 0);
  const auto one = [&](const at::Tensor& t) {
    return t.expand({index.size(0), index.size(1), index.size(2), 1}).to(at::kInt);
  };
  const at::Tensor starts =
      at::cat({start.to(at::kInt), one(at::maximum(latest, seen.start.unsqueeze(1).unsqueeze(3)))}, 3);
  return {.query_block = 1, .start = starts, .end = at::cat({end.to(at::kInt), one(position + 1)}, 3), .rule = rule};
}

Rule windows_rule(const Nsa& o, const SeenKeys& seen) {
  Rule rule = Rule::full();
  rule.row_start = (seen.start + (o.stride - 1)).div(o.stride, "floor").unsqueeze(1);
  rule.row_end = (seen.end - o.compress).div(o.stride, "floor").add_(1).clamp_min_(0).unsqueeze(1);
  return rule;
}

template <class Use>
void by_type(const at::Tensor& t, Use&& use) {
  t.scalar_type() == at::kDouble ? use(double{}) : use(float{});
}

// Scores [B, Hkv, rows, blocks]: +inf where a row takes a block in any case, -inf where it sees nothing of it.  A row
// sees keys [low, high), the first blocks count from the start of its text: each [B|1, rows].
void mark_blocks(const Nsa& o, const at::Tensor& scores, const at::Tensor& low, const at::Tensor& high,
                 const at::Tensor& text_start) {
  const int64_t batch = scores.size(0), kv_heads = scores.size(1), rows = scores.size(2), all = scores.size(3);
  const auto numbers = [&](const at::Tensor& t) { return t.expand({batch, rows}).contiguous(); };
  const at::Tensor lows = numbers(low), highs = numbers(high), starts = numbers(text_start);
  by_type(scores, [&]<class T>(T) {
    T* score = scores.mutable_data_ptr<T>();
    for (int64_t n = 0; n < batch * kv_heads * rows; ++n, score += all) {
      const int64_t row = n / (kv_heads * rows) * rows + n % rows;
      const int64_t from = lows.const_data_ptr<int64_t>()[row], to = highs.const_data_ptr<int64_t>()[row];
      const int64_t first = starts.const_data_ptr<int64_t>()[row] / o.block;
      const int64_t earliest = from / o.block, own = to > from ? (to - 1) / o.block : -1;
      for (int64_t j = 0; j < all; ++j) {
        if (j < earliest || j > own)
          score[j] = T(-kInfinity);
        else if ((j >= first && j < first + o.first_blocks) || j > own - o.local_blocks)
          score[j] = T(kInfinity);
      }
    }
  });
}

// A window's bias is the mean of its tokens'.  Slopes are a bias at the middle of the window: what all windows of a row
// share, their distance from the row's position, changes no softmax.
ops::Score windows_score(const Nsa& o, const ops::Score& score, const at::Tensor& q, int64_t windows) {
  require(!score.relative && !score.landmarks && !score.leaky,
          "nsa: relative logits, landmarks and leaky logits have no meaning for summed-up windows");
  ops::Score of_windows = score;
  of_windows.scale = score.scale_of(q.size(3));
  of_windows.slopes = std::nullopt;
  if (score.bias && score.bias->size(3) != 1)
    of_windows.bias = windows > 0 ? score.bias->unfold(3, o.compress, o.stride).mean(-1) : score.bias->narrow(3, 0, 0);
  if (score.slopes && windows > 0) {
    const at::Tensor middle = at::arange(windows, score.slopes->options()) * o.stride + 0.5 * double(o.compress - 1);
    const at::Tensor bias = (score.slopes->unsqueeze(1) * middle).view({1, q.size(1), 1, windows});
    of_windows.bias = of_windows.bias ? *of_windows.bias + bias : bias;
  }
  return of_windows;
}

}  // namespace

void Nsa::validate() const {
  check_options(*this);
  require(compress % stride == 0, "nsa: compress must be a multiple of stride, got {} and {}", compress, stride);
  require(block % compress == 0, "nsa: block must be a multiple of compress, got {} and {}", block, compress);
  require(first_blocks + local_blocks <= blocks, "nsa: first_blocks + local_blocks must be <= blocks, got {} + {} > {}",
          first_blocks, local_blocks, blocks);
}

at::Tensor Nsa::summed(const at::Tensor& rows, const NsaPhi& parts) const {
  const at::Tensor x = wide(rows);
  const int64_t windows = windows_of(x.size(2)), strides = compress / stride;
  if (windows == 0) return x.narrow(2, 0, 0);
  // [B, H, windows + strides - 1, stride, D]: windows overlap, so each stride of tokens is read once for its place.
  const at::Tensor tokens = x.narrow(2, 0, (windows + strides - 1) * stride).unflatten(2, {-1, stride});
  const auto over_places = [&](auto&& part) {  // sum over the strides of a window
    at::Tensor sum;
    for (int64_t a = 0; a < strides; ++a) {
      const at::Tensor one = part(tokens.narrow(2, a, windows), a);
      sum = sum.defined() ? sum + one : one;
    }
    return sum;
  };
  if (phi == Phi::mean) {
    const at::Tensor sums = tokens.sum(3);
    return over_places([&](const at::Tensor&, int64_t a) { return sums.narrow(2, a, windows); }) / double(compress);
  }
  const at::Tensor places = parts.positions ? parts.positions->to(x.scalar_type()) : at::Tensor();  // [H, compress, D]
  if (phi == Phi::weighted) {
    const at::Tensor w = parts.weights->to(x.scalar_type());
    const at::Tensor sum = over_places([&](const at::Tensor& t, int64_t a) {
      return at::matmul(w.narrow(1, a * stride, stride).view({1, w.size(0), 1, 1, stride}), t).squeeze(3);
    });
    return places.defined() ? sum + at::matmul(w.unsqueeze(1), places).unsqueeze(0) : sum;
  }
  const at::Tensor w = parts.in->to(x.scalar_type()).unflatten(2, {compress, -1});  // [H, D', compress, D]
  at::Tensor sum = over_places([&](const at::Tensor& t, int64_t a) {
    return at::matmul(t.flatten(3), w.narrow(2, a * stride, stride).flatten(2).transpose(1, 2));
  });
  if (places.defined())
    sum = sum + at::matmul(places.flatten(1).unsqueeze(1), w.flatten(2).transpose(1, 2)).unsqueeze(0);
  if (phi == Phi::linear) return sum;
  return at::matmul(at::silu(sum), parts.out->to(x.scalar_type()).transpose(1, 2));
}

at::Tensor Nsa::block_scores(const at::Tensor& probabilities, int64_t kv_heads, int64_t all_blocks) const {
  const at::Tensor p = probabilities.contiguous();
  const int64_t heads = p.size(1), rows = p.size(2), windows = p.size(3), group = heads / kv_heads;
  const int64_t parts = compress / stride, per_block = block / stride;
  const at::Tensor scores = at::zeros({p.size(0), kv_heads, rows, all_blocks}, p.options());
  by_type(scores, [&]<class T>(T) {
    const T* from = p.const_data_ptr<T>();
    T* to = scores.mutable_data_ptr<T>();
    run_queue(ops::torch_pool(), p.size(0) * kv_heads, [&](int64_t of, int) {
      std::vector<T> sums(static_cast<size_t>(windows));
      for (int64_t row = 0; row < rows; ++row) {
        std::fill(sums.begin(), sums.end(), T{0});
        for (int64_t head = of * group; head < (of + 1) * group; ++head)
          for (int64_t w = 0; w < windows; ++w) sums[size_t(w)] += from[(head * rows + row) * windows + w];
        // window w covers strides [w, w + parts), a block its own: once for each in both
        for (int64_t j = 0; j < all_blocks; ++j)
          for (int64_t s = j * per_block; s < (j + 1) * per_block; ++s)
            for (int64_t w = std::max<int64_t>(s - parts + 1, 0); w <= std::min(s, windows - 1); ++w)
              to[(of * rows + row) * all_blocks + j] += sums[size_t(w)];
      }
    });
  });
  return scores;
}

at::Tensor Nsa::select(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& lse, int64_t length,
                       const Rule& rule, const ops::Score& score) const {
  const at::NoGradGuard no_gradients;
  const int64_t queries = q.size(2), kv_heads = keys.size(1), all = (length + block - 1) / block;
  const int64_t start = rule.query_start.value_or(length - queries);
  const SeenKeys seen_by = seen_keys(rule, queries, length, name);
  const at::Tensor text_start = seen_keys(without_windows(rule), queries, length, name).start;
  const Rule windows = windows_rule(*this, seen_by);
  std::vector<at::Tensor> chosen;
  for (int64_t first = 0; first < queries || first == 0; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, queries - first);
    const auto rows = [&](const at::Tensor& t) { return t.narrow(2, first, count); };
    const int64_t seen = std::clamp<int64_t>(windows_of(start + first + count), 0, keys.size(2));
    Rule part = windows;
    part.row_start = rows(*windows.row_start), part.row_end = rows(*windows.row_end);
    ops::Score part_score = score;
    if (score.bias && score.bias->size(2) != 1) part_score.bias = rows(*score.bias);
    if (score.bias && score.bias->size(3) != 1) part_score.bias = part_score.bias->narrow(3, 0, seen);
    const at::Tensor probabilities =
        ops::attention_sums(rows(q), keys.narrow(2, 0, seen), rows(lse), part, part_score,
                            {.by = ops::SumBy::block, .query_block = 1, .key_block = 1});  // [B, Hq, count, windows]
    const at::Tensor scores = block_scores(probabilities, kv_heads, all);
    const auto of_rows = [&](const at::Tensor& t) { return t.narrow(1, first, count); };
    mark_blocks(*this, scores, of_rows(seen_by.start), of_rows(seen_by.end), of_rows(text_start));
    chosen.push_back(ops::select_top(scores, blocks));
  }
  return chosen.size() == 1 ? chosen[0] : at::cat(chosen, 2);
}

Attended nsa(const at::Tensor& q, const NsaBranches& branches, const std::optional<at::Tensor>& gates, const Nsa& o,
             const Rule& rule, const ops::Score& score) {
  o.validate();
  const int64_t queries = q.size(2), keys = branches.selected.k.size(2);
  Rule placed = rule;
  placed.query_start = rule.query_start.value_or(keys - queries);
  const SeenKeys seen_by = seen_keys(placed, queries, keys, Nsa::name);
  const NsaBranch& c = branches.compressed;
  const ops::Score of_windows = windows_score(o, score, q, c.k.size(2));
  const ops::Attended windows = ops::attend(q, c.k, c.v, windows_rule(o, seen_by), of_windows);
  const at::Tensor index = o.select(q.detach(), c.k.detach(), windows.lse.detach(), keys, placed, of_windows);
  const BlockPlan plan{.query_block = 1,
                       .key_block = o.block,
                       .count = index.ge(0).sum(3).to(at::kInt),
                       .index = index,
                       .full_count = {},
                       .full_index = {},
                       .rule = placed};
  const ops::Attended selected = ops::attend(q, branches.selected.k, branches.selected.v, plan, score);
  if (!gates) return {selected.out, selected.lse, {{0, queries, plan}}};
  Rule latest = placed;
  latest.window_left = std::min(placed.window_left.value_or(o.window - 1), o.window - 1);
  latest.sinks = 0;
  const ops::Attended window = ops::attend(q, branches.window.k, branches.window.v, latest, score);
  const RunPlan seen = union_of(o, index, seen_by, placed);
  const auto weighed = [&](const at::Tensor& out, int64_t branch) { return out * gates->narrow(3, branch, 1); };
  const at::Tensor out = weighed(windows.out, 0) + weighed(selected.out, 1) + weighed(window.out, 2);
  return {out.to(q.scalar_type()), std::nullopt, {{0, queries, seen}}};
}

std::vector<LearnedPart> Nsa::learned_parts(const LayerShape& shape) const {
  std::vector<LearnedPart> parts;
  const auto uniform = [](int64_t inputs) {  // as torch's linear layers begin
    return Init{.kind = Init::Kind::uniform, .scale = 1 / std::sqrt(double(inputs))};
  };
  if (gates == Gates::learned) parts.push_back({"gate", {shape.heads * 3, shape.width}, uniform(shape.width)});
  if (phi == Phi::mean) return parts;
  const int64_t heads = shape.kv_heads;
  parts.push_back({"key_positions", {heads, compress, shape.head_dim}, {.kind = Init::Kind::normal, .scale = 0.02}});
  for (const auto& [prefix, dim] : {std::pair{"key", shape.head_dim}, {"value", shape.value_dim}}) {
    const std::string name(prefix);
    if (phi == Phi::weighted)
      parts.push_back(
          {name + "_weights", {heads, compress}, {.kind = Init::Kind::constant, .scale = 1 / double(compress)}});
    else
      parts.push_back({name + "_in", {heads, dim, compress * dim}, uniform(compress * dim)});
    if (phi == Phi::mlp) parts.push_back({name + "_out", {heads, dim, dim}, uniform(dim)});
  }
  return parts;
}

namespace {

// [B|1, Lk]: keys without a query of their own count with the last query's text.
at::Tensor key_positions(const Inputs& in) {
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  const at::Tensor index = at::arange(keys, at::kLong).unsqueeze(0);
  if ((!in.rule.row_start && !in.rule.key_documents) || queries == 0) return index;
  const SeenKeys text = seen_keys(without_windows(in.rule), queries, keys, Nsa::name);
  return index - (queries == keys ? text.start : text.start.narrow(1, queries - 1, 1));
}

}  // namespace

NsaBranch Nsa::compressed(const Inputs& in, int64_t first) const {
  NsaPhi keys, values;
  if (phi != Phi::mean) keys.positions = learned(in, name, "key_positions");
  for (const auto& [prefix, parts] : {std::pair{"key", &keys}, {"value", &values}}) {
    const std::string part(prefix);
    if (phi == Phi::weighted) parts->weights = learned(in, name, part + "_weights");
    if (phi >= Phi::linear) parts->in = learned(in, name, part + "_in");
    if (phi == Phi::mlp) parts->out = learned(in, name, part + "_out");
  }
  const int64_t from = std::min(first * stride, in.k.size(2)), rows = in.k.size(2) - from;
  const at::Tensor v = in.v.narrow(2, from, rows);
  at::Tensor k = in.k.narrow(2, from, rows);
  const bool turns = rope == Rope::after && in.rotary;
  at::Tensor positions;  // of the rows in their texts
  if (turns) {
    positions = key_positions(in).narrow(1, from, rows);
    k = in.rotary->rotate(wide(k), -positions);
  }
  at::Tensor summed_k = summed(k, keys);
  if (turns) summed_k = in.rotary->rotate(summed_k, positions.slice(1, 0, summed_k.size(2) * stride, stride));
  return {summed_k.to(in.q.scalar_type()), summed(v, values).to(in.q.scalar_type())};
}

at::Tensor Nsa::learned_gates(const Inputs& in) const {
  require(in.hidden.has_value(), "nsa: gates need the layer's hidden state, got none; or gates=selected");
  const at::Tensor& w = learned(in, name, "gate");
  const at::Tensor x = in.hidden->to(wide_type(*in.hidden));
  const at::Tensor logits = at::matmul(x, w.to(x.scalar_type()).t());  // [B, Lq, 3 Hq]
  return logits.sigmoid().unflatten(2, {in.q.size(1), 3}).transpose(1, 2);
}

namespace {

Attended attend_with(const Nsa& o, const Inputs& in, const NsaBranch& windows) {
  std::optional<at::Tensor> gates;
  if (o.gates == Nsa::Gates::learned) gates = o.learned_gates(in);
  return nsa(in.q, {windows, {in.k, in.v}, {in.k, in.v}}, gates, o, in.rule, in.score);
}

// Keeps the summed-up windows beside the cache, so that a token reads them and its own keys only.
class NsaState final : public CachedState {
 public:
  NsaState(const Nsa& options, const StateOptions& state) : CachedState(std::nullopt, state), nsa_(options) {}

  Attended prefill(const Inputs& in) override {
    const Inputs all = appended(in);
    NsaBranch windows;
    if (windows_.length() < nsa_.windows_of(length()) || windows_.length() == 0) {
      windows = nsa_.compressed(all, windows_.length());
      if (windows.k.size(2) > 0) windows_.append(windows.k, windows.v);
    }
    if (windows_.length() > 0) windows = {windows_.k(), windows_.v()};
    return attend_with(nsa_, all, windows);
  }
  Attended decode(const Inputs& in) override { return prefill(in); }

  void truncate(int64_t length) override {
    CachedState::truncate(length);
    windows_.truncate(std::min(windows_.length(), nsa_.windows_of(length)), 0);
  }

  Snapshot save() const override {
    Snapshot all = CachedState::save();
    for (auto& [part, tensor] : windows_.save()) all["windows." + part] = tensor;
    return all;
  }
  void load(const Snapshot& snapshot) override {
    Snapshot windows;
    for (const auto& [part, tensor] : snapshot)
      if (part.starts_with("windows.")) windows[part.substr(8)] = tensor;
    windows_.load({});
    CachedState::load(snapshot);
    try {
      load_windows(windows);
    } catch (const Error&) {
      cache_.load({});
      windows_.load({});
      throw;
    }
  }

  int64_t bytes() const override { return CachedState::bytes() + windows_.bytes(); }
  int64_t read_bytes() const override {
    const int64_t latest = nsa_.gates == Nsa::Gates::learned ? nsa_.window : 0;
    return std::min(length(), nsa_.blocks * nsa_.block + latest) * cache_.token_bytes() +
           windows_.length() * windows_.token_bytes();
  }

 private:
  void load_windows(const Snapshot& saved) {
    const int64_t wanted = nsa_.windows_of(length());
    if (wanted > 0) {
      const at::Tensor k = cache_.k(), v = cache_.v();
      saved_part(saved, "nsa: windows", "k", {k.size(0), k.size(1), wanted, ops::row_dim(k)});
      saved_part(saved, "nsa: windows", "v", {v.size(0), v.size(1), wanted, ops::row_dim(v)});
    }
    windows_.load(saved);
    require(windows_.length() == wanted, "nsa: a saved state of these options must have {} windows, got {}", wanted,
            windows_.length());
  }

  Nsa nsa_;
  KvCache windows_{CacheType::model};
};

}  // namespace

Attended Nsa::attend(const Inputs& in) const {
  validate();
  return attend_with(*this, in, compressed(in));
}

std::unique_ptr<State> Nsa::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<NsaState>(*this, options);
}

}  // namespace foveate::attention
