#include "foveate/ops/attend/logits.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr int64_t kMostAxes = 4;

std::string text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", ")); }

void check_relative(const Problem& p, const Relative& r) {
  const int64_t axes = std::ssize(r.sizes), queries = p.q.size(2), keys = p.k.size(2);
  require(axes >= 1 && axes <= kMostAxes, "attend: relative must have 1 .. {} axes, got {}", kMostAxes, axes);
  for (const int64_t size : r.sizes) require(size >= 1, "attend: relative sizes must be >= 1, got {}", size);
  const int64_t whole[] = {p.q.size(0), p.q.size(1), queries};
  const int64_t columns = std::accumulate(r.sizes.begin(), r.sizes.end(), int64_t{0});
  bool fits = r.logits.dim() == 4 && r.logits.is_floating_point() && r.logits.size(3) == columns;
  for (int axis = 0; fits && axis < 3; ++axis) fits = r.logits.size(axis) == 1 || r.logits.size(axis) == whole[axis];
  require(fits, "attend: relative logits must be floating point and broadcast to [{}, {}], got {}",
          fmt::join(whole, ", "), columns, text(r.logits));
  const auto check = [&](const Tensor& t, std::string_view name, int64_t length) {
    require(t.dim() == 2 && t.scalar_type() == at::kLong && t.size(0) == axes && t.size(1) == length,
            "attend: relative {} must be int64 [{}, {}], got {} {}", name, axes, length, c10::toString(t.scalar_type()),
            text(t));
  };
  check(r.queries, "queries", queries);
  check(r.keys, "keys", keys);
}

// base/random.h's dropout_row for every query.
Tensor dropout_rows(const Problem& p, int64_t query_start) {
  const int64_t batch = p.q.size(0), heads = p.q.size(1), queries = p.q.size(2);
  const Tensor rows = at::empty({batch, heads, queries, 2}, at::kLong);
  int64_t* to = rows.mutable_data_ptr<int64_t>();
  const uint64_t seed = p.score.seed();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < queries; ++i)
        for (const uint32_t word : dropout_row(seed, b, h, query_start + i)) *to++ = word;
  return rows;
}

}  // namespace

uint64_t Score::seed() const { return dropout_seed ? uint64_t(dropout_seed->item<int64_t>()) : 0; }

double Score::scale_of(int64_t dim) const { return scale.value_or(1 / std::sqrt(double(dim))); }

Tensor Score::capped(const Tensor& logits) const {
  return soft_cap ? logits.div(*soft_cap).tanh() * *soft_cap : logits;
}

void check_score(const Problem& p) {
  const Score& s = p.score;
  require(s.soft_cap.value_or(1) > 0, "attend: soft_cap must be > 0, got {}", s.soft_cap.value_or(1));
  require(s.leaky.value_or(1) > 0, "attend: leaky must be > 0, got {}", s.leaky.value_or(1));
  require(s.dropout >= 0 && s.dropout < 1, "attend: dropout must be in [0, 1), got {}", s.dropout);
  if (const auto& seed = s.dropout_seed)
    require(seed->scalar_type() == at::kLong && seed->numel() == 1,
            "attend: dropout_seed must be int64 of one element, got {} {}", c10::toString(seed->scalar_type()),
            text(*seed));
  if (s.bias) {
    const int64_t whole[] = {p.q.size(0), p.q.size(1), p.q.size(2), p.k.size(2)};
    bool fits = s.bias->dim() == 4 && s.bias->is_floating_point();
    for (int axis = 0; fits && axis < 4; ++axis) fits = s.bias->size(axis) == 1 || s.bias->size(axis) == whole[axis];
    require(fits, "attend: bias must be floating point and broadcast to [{}], got {}", fmt::join(whole, ", "),
            text(*s.bias));
  }
  const auto check_heads = [&](const std::optional<Tensor>& t, std::string_view name) {
    require(!t || (t->dim() == 1 && t->size(0) == p.q.size(1) && t->is_floating_point()),
            "attend: {} must be floating point [{}], got {}", name, p.q.size(1), text(t.value_or(Tensor(p.q))));
  };
  check_heads(s.sink, "sink");
  check_heads(s.slopes, "slopes");
  if (s.relative) check_relative(p, *s.relative);
  if (s.landmarks) {
    const Tensor& t = *s.landmarks;
    require(t.scalar_type() == at::kBool && t.dim() == 2 && (t.size(0) == 1 || t.size(0) == p.q.size(0)) &&
                t.size(1) == p.k.size(2),
            "attend: landmarks must be bool [{} or 1, {}], got {} {}", p.q.size(0), p.k.size(2),
            c10::toString(t.scalar_type()), text(t));
  }
}

Logits::Logits(const Problem& p, const PieceWalker& walker, at::ScalarType compute)
    : p_(p),
      walker_(walker),
      compute_(compute),
      batch_(p.q.size(0)),
      heads_(p.q.size(1)),
      queries_(p.q.size(2)),
      groups_(walker.groups()),
      repeats_(heads_ / groups_),
      query_start_(rule_of(p.plan).query_start.value_or(p.k.size(2) - queries_)) {
  if (p.score.dropout > 0) dropout_rows_ = dropout_rows(p, query_start_);
}

Tensor Logits::key_ids(const Piece& piece) const {
  if (piece.index.defined()) return piece.index.unsqueeze(3).unsqueeze(4);
  return at::arange(piece.first_key, piece.first_key + piece.keys, at::kLong).view({1, 1, 1, 1, 1, -1});
}

Tensor Logits::by_head(const Tensor& heads) const { return heads.to(compute_).view({1, groups_, 1, repeats_, 1, 1}); }

Tensor Logits::distance(const RowTile& tile, const Piece& piece) const {
  return (walker_.row_ids(tile) + query_start_ - key_ids(piece)).abs_().to(compute_);
}

c10::List<std::optional<Tensor>> Logits::index(const Tensor& whole, const RowTile& tile, const Tensor& columns) const {
  const auto axis = [&](int which, const Tensor& index) {
    return std::optional<Tensor>(whole.size(which) == 1 ? at::zeros_like(index) : index);
  };
  c10::List<std::optional<Tensor>> index;
  index.push_back(axis(0, at::arange(batch_, at::kLong).view({-1, 1, 1, 1, 1, 1})));
  index.push_back(axis(1, at::arange(heads_, at::kLong).view({1, groups_, 1, repeats_, 1, 1})));
  index.push_back(axis(2, walker_.row_ids(tile)));
  index.push_back(axis(3, columns));
  return index;
}

namespace {

// The bias [b|1, Hq|1, rows|1, n|1] of a contiguous piece.
Tensor bias_slice(const Tensor& bias, const RowTile& tile, const Piece& piece) {
  Tensor part = bias;
  if (part.size(2) != 1) part = part.narrow(2, tile.first_row, tile.block_rows);
  if (part.size(3) != 1) part = part.narrow(3, piece.first_key, piece.keys);
  return part;
}

}  // namespace

Tensor Logits::bias(const RowTile& tile, const Piece& piece) const {
  const Tensor& whole = *p_.score.bias;
  if (!contiguous(piece)) return whole.index(index(whole, tile, key_ids(piece))).to(compute_);
  const Tensor part = bias_slice(whole, tile, piece).to(compute_);
  if (part.size(1) == 1) return part.unsqueeze(1).unsqueeze(1);  // [b|1, 1, 1, 1, rows|1, n|1]
  return part.unflatten(1, {groups_, repeats_}).unsqueeze(2);
}

// [b, g, t, 1, m, n] int64
Tensor Logits::relative_columns(int64_t axis, const RowTile& tile, const Piece& piece) const {
  const Relative& r = *p_.score.relative;
  const auto take = [](const Tensor& of, const Tensor& ids) { return of.index({std::optional<Tensor>(ids)}); };
  const Tensor offset = take(r.keys[axis], key_ids(piece)) - take(r.queries[axis], walker_.row_ids(tile));
  const int64_t first = std::accumulate(r.sizes.begin(), r.sizes.begin() + axis, int64_t{0});
  return offset.clamp(0, r.sizes[size_t(axis)] - 1).add_(first);
}

Tensor Logits::make(Tensor s, const RowTile& tile, const Piece& piece, Factors* factors) const {
  const Score& score = p_.score;
  const auto hide = [&](Tensor& t, double value) {
    if (piece.visible.defined()) t = t.masked_fill(piece.visible.logical_not(), value);
  };
  if (score.soft_cap) {
    const Tensor t = s.div_(*score.soft_cap).tanh_();
    if (factors) factors->product = 1 - t * t;
    s = t * *score.soft_cap;
  }
  if (score.bias) s = s + bias(tile, piece);
  for (int64_t axis = 0; score.relative && axis < std::ssize(score.relative->sizes); ++axis) {
    const Tensor& whole = score.relative->logits;
    s = s + whole.index(index(whole, tile, relative_columns(axis, tile, piece))).to(compute_);
  }
  if (score.slopes) s = s - by_head(*score.slopes) * distance(tile, piece);
  if (score.leaky) {
    const Tensor factor = at::ones_like(s).masked_fill_(s.le(0), *score.leaky);
    if (factors) {
      factors->added = factor;
      factors->product = factors->product.defined() ? factors->product * factor : factor;
    }
    s = s * factor;
  }
  if (factors && factors->product.defined()) hide(factors->product, 0);
  if (factors && factors->added.defined()) hide(factors->added, 0);
  hide(s, kMinusInfinity);
  return s;
}

Tensor Logits::keep(const RowTile& tile, const Piece& piece) const {
  if (p_.score.dropout == 0) return {};
  // base/random.h's dropout_bits on 64-bit integers, which wrap alike in their lower halves
  constexpr int64_t kLow = 0xffffffff;
  const auto low = [&](const Tensor& x) { return x.bitwise_and(kLow); };
  const auto word = [&](int64_t which) {
    return dropout_rows_.index(index(dropout_rows_, tile, at::zeros_like(key_ids(piece)).add_(which)));
  };
  const auto stir = [&](const Tensor& x, int64_t shift) { return x.bitwise_xor(x.bitwise_right_shift(shift)); };
  Tensor x = low(key_ids(piece) * int64_t{0x9e3779b1} + word(0));
  x = low(stir(x, 16) * int64_t{0x21f0aaad});
  x = low(stir(x, 15) + word(1));
  x = low(stir(x, 16) * int64_t{0x735a2d97});
  const Tensor kept = stir(x, 15).bitwise_right_shift(1).ge(int64_t{dropout_threshold(p_.score.dropout)});
  return kept.to(compute_).div_(1 - p_.score.dropout);
}

Gradients Logits::zeros() const {
  const auto options = p_.q.options().dtype(compute_);
  const auto like = [&](bool wanted, const auto& tensor) {
    return wanted ? at::zeros(tensor().sizes(), options) : at::empty({0}, options);
  };
  Gradients g;
  g.bias = like(p_.wants_bias(), [&] { return *p_.score.bias; });
  g.sink = like(p_.wants_sink(), [&] { return *p_.score.sink; });
  g.slopes = like(p_.wants_slopes(), [&] { return *p_.score.slopes; });
  g.relative = like(p_.wants_relative(), [&] { return p_.score.relative->logits; });
  return g;
}

void Logits::add_gradients(const Tensor& d_added, const RowTile& tile, const Piece& piece, Gradients& to) const {
  if (p_.wants_bias() && contiguous(piece)) {
    // [b, Hq, rows, n]: narrow, sum what the bias broadcasts, add.
    Tensor part = d_added.squeeze(2).flatten(1, 2);
    for (const int64_t axis : {0, 1, 2, 3})
      if (to.bias.size(axis) == 1) part = part.sum(c10::IntArrayRef{axis}, true);
    bias_slice(to.bias, tile, piece).add_(part);
  } else if (p_.wants_bias()) {
    to.bias.index_put_(index(to.bias, tile, key_ids(piece)), d_added, true);
  }
  if (p_.wants_slopes()) to.slopes.sub_((d_added * distance(tile, piece)).sum(c10::IntArrayRef{0, 2, 4, 5}).flatten());
  if (!p_.wants_relative()) return;
  for (int64_t axis = 0; axis < std::ssize(p_.score.relative->sizes); ++axis)
    to.relative.index_put_(index(to.relative, tile, relative_columns(axis, tile, piece)), d_added, true);
}

}  // namespace foveate::ops
