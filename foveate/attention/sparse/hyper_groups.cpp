#include "foveate/attention/sparse/hyper_groups.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::attention {
namespace {

using at::Tensor;

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [first, first + length) of a causal square whose first key is `key`.
void halve(const Hyper& o, int64_t first, int64_t length, int64_t key, size_t depth, HyperCut& cut) {
  const int64_t half = divided_up(length, 2);
  if (length <= o.min_seq_len || half < o.min_seq_len) {
    if (length > 0) cut.leaves.push_back({first, length});
    return;
  }
  if (cut.groups.size() <= depth) cut.groups.resize(depth + 1);
  cut.groups[depth].push_back({first + half, length - half, key, half});
  halve(o, first, half, key, depth + 1, cut);
  halve(o, first + half, length - half, key + half, depth + 1, cut);
}

}  // namespace

HyperCut cut_call(const Hyper& o, int64_t start, int64_t queries, int64_t keys, bool is_causal) {
  HyperCut cut;
  const bool is_long = queries >= o.min_seq_len;
  if (!is_causal) {
    if (is_long) cut.groups.push_back({{0, queries, 0, keys}});
    return cut;
  }
  const int64_t own = std::clamp<int64_t>(keys - start, 0, queries), late = queries - own;
  if (start > 0 && !is_long) return cut;
  if (start > 0) cut.groups.push_back({{0, queries, 0, std::min(start, keys)}});
  if (late >= o.min_seq_len && keys > start)
    cut.groups.push_back({{own, late, start, keys - start}});
  else
    cut.late = {own, late};
  halve(o, 0, own, start, cut.groups.size(), cut);
  return cut;
}

HyperGroup sort_group(const Hyper& o, std::vector<Rectangle> rectangles, const Tensor& query_buckets,
                      const Tensor& key_buckets) {
  HyperGroup g{std::move(rectangles), o.block_size, o.block_size, 1, {}, {}};
  std::vector<ops::Segment> queries, keys;
  int64_t most_queries = 0, most_keys = 0;
  for (const Rectangle& r : g.rectangles) {
    queries.push_back({r.first_query, r.queries}), keys.push_back({r.first_key, r.keys});
    most_queries = std::max(most_queries, r.queries), most_keys = std::max(most_keys, r.keys);
  }
  if (o.block_size == 0) {
    g.query_block = most_queries, g.key_block = most_keys;
  } else {
    g.blocks = divided_up(most_keys, o.block_size);
    // as many blocks of queries as of keys; in the halves of a causal call they are equally long
    if (most_queries > most_keys || most_queries + 1 < most_keys)
      g.query_block = divided_up(divided_up(most_queries, o.block_size) * o.block_size, g.blocks);
  }
  const int64_t buckets = int64_t{1} << o.lsh_num_projs;
  g.query_order = ops::sort_buckets(query_buckets, buckets, queries, g.blocks * g.query_block);
  g.key_order = ops::sort_buckets(key_buckets, buckets, keys, g.blocks * g.key_block);
  return g;
}

namespace {

// Every key of a list is visible: the rule keeps positions alone.
Rule listed_rule(const HyperGroup& g, const Rule& rule) {
  return {.query_start = rule.query_start, .window_right = std::nullopt, .query_order = g.query_order.flatten(2)};
}

}  // namespace

TokenPlan block_plan(const HyperGroup& g, const Rule& rule) {
  const Tensor lists = g.key_order.unflatten(3, {g.blocks, g.key_block}).flatten(2, 3);
  return {g.query_block, lists.to(at::kInt), listed_rule(g, rule)};
}

namespace {

// `count` numbers below `limit`.
void draw_uniform(Random& random, int64_t limit, int64_t count, bool replacement, int64_t* out) {
  if (replacement) {
    for (int64_t i = 0; i < count; ++i) out[i] = int64_t(random.below(uint64_t(limit)));
    return;
  }
  std::vector<int64_t> all(static_cast<size_t>(limit));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    std::swap(all[size_t(i)], all[size_t(i + int64_t(random.below(uint64_t(limit - i))))]);
    out[i] = all[size_t(i)];
  }
}

// `count` places with probability weight[keys[place]] / sum; where all weights are 0, all places alike.
void draw_weighted(Random& random, const double* weight, const int64_t* keys, int64_t limit, int64_t count,
                   int64_t* out) {
  std::vector<double> below(static_cast<size_t>(limit));
  double sum = 0;
  for (int64_t i = 0; i < limit; ++i) below[size_t(i)] = sum += weight[keys[i]];
  if (!(sum > 0)) return draw_uniform(random, limit, count, true, out);
  for (int64_t i = 0; i < count; ++i) {
    const auto found = std::upper_bound(below.begin(), below.end(), random.uniform() * sum);
    out[i] = std::min<int64_t>(found - below.begin(), limit - 1);
  }
}

}  // namespace

Tensor draw_places(const Hyper& o, const HyperGroup& g, const Tensor& norms, uint64_t stream, int64_t batch) {
  const int64_t heads = g.key_order.size(1), parts = g.key_order.size(2), room = g.key_order.size(3);
  const Tensor places = at::full({g.key_order.size(0), heads, parts, o.sample_size}, -1, at::kLong);
  int64_t* out = places.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < places.size(0); ++b) {
    Random random(uint64_t(o.seed), stream + uint64_t(batch + b));
    for (int64_t list = b * heads * parts; list < (b + 1) * heads * parts; ++list, out += o.sample_size) {
      const int64_t keys = g.rectangles[size_t(list % parts)].keys;
      const int64_t count = o.replacement ? o.sample_size : std::min(o.sample_size, keys);
      if (norms.defined())
        draw_weighted(random, norms.const_data_ptr<double>() + list / parts * norms.size(2),
                      g.key_order.const_data_ptr<int64_t>() + list * room, keys, count, out);
      else
        draw_uniform(random, keys, count, o.replacement, out);
    }
  }
  return places;
}

namespace {

// log(1 / (samples * probability)) of each key in its rectangle, [B, Hkv, Lk]; 0 outside and where nothing is drawn.
Tensor norm_weights(const HyperGroup& g, const Tensor& norms, int64_t samples) {
  const Tensor weights = at::zeros_like(norms);
  for (const Rectangle& r : g.rectangles) {
    const Tensor own = norms.narrow(2, r.first_key, r.keys), sum = own.sum(-1, true);
    const Tensor share = (own / sum).masked_fill(sum.eq(0), 1 / double(r.keys));
    weights.narrow(2, r.first_key, r.keys).copy_((share * double(samples)).log().neg().masked_fill(share.eq(0), 0));
  }
  return weights;
}

}  // namespace

ops::Part sampled_part(const Hyper& o, const HyperGroup& g, const Rule& rule, const Tensor& places, const Tensor& norms,
                       const Inputs& in) {
  const auto type = in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor keys = g.key_order.gather(3, places.clamp_min(0)).masked_fill_(places.lt(0), -1);  // [B, Hkv, R, m]
  const Tensor row_weight = at::zeros({1, 1, in.q.size(2)}, at::TensorOptions(type));
  for (size_t i = 0; i < g.rectangles.size(); ++i) {
    const Rectangle& r = g.rectangles[i];
    const Tensor own = keys.select(2, int64_t(i));
    if (o.block_size > 0 && r.keys <= o.block_size) own.fill_(-1);  // the one block has them all
    const int64_t drawn = places.select(2, int64_t(i)).select(1, 0).select(0, 0).ge(0).sum().item<int64_t>();
    row_weight.narrow(2, r.first_query, r.queries).fill_(std::log(double(r.keys) / double(drawn)));
  }
  keys = keys.unsqueeze(3).expand({-1, -1, -1, g.blocks, -1});
  if (o.block_size > 0 && o.same_block_mask) {
    const Tensor own_block =
        places.div(g.key_block, "floor").unsqueeze(3).eq(at::arange(g.blocks, at::kLong).view({1, 1, 1, g.blocks, 1}));
    keys = keys.masked_fill(own_block, -1);
  }
  ops::Part part{TokenPlan{g.query_block, keys.flatten(2, 3).to(at::kInt), listed_rule(g, rule)}, {}, {}};
  if (!norms.defined()) {
    part.row_weight = row_weight;
  } else {
    const int64_t group = in.q.size(1) / in.k.size(1);
    part.key_weight = norm_weights(g, norms, places.size(3)).to(type).repeat_interleave(group, 1).unsqueeze(2);
  }
  return part;
}

SortedRectangle sorted_rectangle(const HyperGroup& g, size_t number, const Inputs& in) {
  const Rectangle& r = g.rectangles[number];
  const auto take = [](const Tensor& x, const Tensor& ids) {
    return x.gather(2, ids.unsqueeze(3).expand({-1, -1, -1, x.size(3)}));
  };
  SortedRectangle s{g.query_order.select(2, int64_t(number)).narrow(2, 0, r.queries),
                    g.key_order.select(2, int64_t(number)).narrow(2, 0, r.keys),
                    {},
                    {},
                    {},
                    g.query_block,
                    g.key_block};
  s.q = take(in.q, s.queries), s.k = take(in.k, s.keys), s.v = take(in.v, s.keys);
  return s;
}

Tensor outside_lse(const SortedRectangle& r, const Tensor& q, const Tensor& blocks, int64_t rows_at_once,
                   const ops::Score& score) {
  const Tensor begin = blocks * r.key_block, end = begin + r.key_block;
  const Tensor first = at::zeros_like(begin), last = at::full_like(begin, r.k.size(2));
  const RunPlan plan{rows_at_once, at::stack({first, end}, 1).view({1, 1, -1, 2}).to(at::kInt),
                     at::stack({begin, last}, 1).view({1, 1, -1, 2}).to(at::kInt), Rule::full()};
  return ops::attend(q, r.k, r.k.detach().narrow(3, 0, 1), plan, score).lse;
}

CappedResidual capped_residual(const Hyper& o, const SortedRectangle& r, const Tensor& block_lse, const Tensor& places,
                               const Tensor& asked, const ops::Score& score) {
  const int64_t group = r.q.size(1) / r.k.size(1), keys = r.k.size(2), samples = places.size(2);
  const auto type = block_lse.scalar_type();
  const Tensor outside = outside_lse(r, r.q.index_select(2, asked), asked.div(r.query_block, "floor"), 1, score);
  const Tensor floor = o.kappa > 0 ? outside.amax(-1, true) - std::log(o.kappa) : outside.amin(-1, true);
  const double count = double(keys), share = double(samples) / (count * std::log(count));
  const Tensor cap = at::logaddexp(block_lse, floor) + std::log(o.epsilon * o.epsilon * share);
  const Tensor drawn = r.k.gather(2, places.unsqueeze(3).expand({-1, -1, -1, r.k.size(3)}));
  Tensor logits = at::matmul(r.q.to(type), drawn.to(type).repeat_interleave(group, 1).transpose(2, 3));
  logits = score.capped(logits * score.scale_of(r.q.size(3)));
  logits = at::minimum(logits, cap.unsqueeze(3));
  const Tensor own = at::arange(r.q.size(2), at::kLong).div(r.query_block, "floor").view({1, 1, -1, 1});
  const Tensor other = places.div(r.key_block, "floor").repeat_interleave(group, 1).unsqueeze(2);
  Tensor hidden = own.eq(other);
  if (!o.same_block_mask) hidden = at::zeros_like(hidden);
  const Tensor empty = hidden.all(3);  // no gradient must come from a sum over nothing
  const Tensor sum = logits.masked_fill(hidden.logical_and(empty.logical_not().unsqueeze(3)), kMinusInfinity)
                         .logsumexp(3)
                         .masked_fill(empty, kMinusInfinity);
  return {logits.masked_fill(hidden, kMinusInfinity), at::maximum(sum + std::log(count / double(samples)), floor),
          empty};
}

Tensor draw_rows(const Hyper& o, int64_t rows, uint64_t stream) {
  const Tensor places = at::empty({std::min(o.sample_size, rows)}, at::kLong);
  Random random(uint64_t(o.seed), stream);
  draw_uniform(random, rows, places.numel(), false, places.mutable_data_ptr<int64_t>());
  return places;
}

}  // namespace foveate::attention
