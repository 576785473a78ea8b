#include "foveate/ops/attend/definition.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/ops/attend/storage.h"
#include "foveate/ops/attend/tiles.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

}  // namespace

namespace {

void check_heads(const Problem& p) {
  require(p.heads.keys || !p.heads.values, "attend: value_heads need key_heads, got them alone");
  const auto check = [&](const std::optional<Tensor>& map, std::string_view name, int64_t heads) {
    if (!map) return;
    require(map->scalar_type() == at::kLong && map->dim() == 1 && map->size(0) == p.q.size(1),
            "attend: {} must be int64 [{}], got {} [{}]", name, p.q.size(1), c10::toString(map->scalar_type()),
            fmt::join(map->sizes().begin(), map->sizes().end(), ", "));
    if (map->numel() == 0) return;
    const int64_t low = map->min().item<int64_t>(), high = map->max().item<int64_t>();
    require(low >= 0 && high < heads, "attend: {} must be 0 .. {}, got {}", name, heads - 1, low < 0 ? low : high);
  };
  check(p.heads.keys, "key_heads", p.k.size(1));
  check(p.heads.values, "value_heads", p.v.size(1));
}

}  // namespace

void check_problem(const Problem& given) {
  const auto text = [](const Tensor& t) {
    return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  };
  require(given.q.dim() == 4 && given.k.dim() == 4 && given.v.dim() == 4,
          "attend: q, k, v must be [batch, heads, length, dim], got {} {} {}", text(given.q), text(given.k),
          text(given.v));
  check_storage(given);
  const Problem p = shaped(given);
  const auto type = p.q.scalar_type();
  require((type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble) &&
              p.k.scalar_type() == type && p.v.scalar_type() == type,
          "attend: q, k, v must share one dtype of fp32, bf16, fp16, fp64, got {} {} {}", c10::toString(type),
          c10::toString(p.k.scalar_type()), c10::toString(p.v.scalar_type()));
  require(p.k.size(0) == p.q.size(0) && p.v.size(0) == p.q.size(0) && p.k.size(3) == p.q.size(3) &&
              (p.heads.values || p.v.size(1) == p.k.size(1)) && p.v.size(2) == p.k.size(2),
          "attend: q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv] must agree, got {} {} {}", text(p.q),
          text(p.k), text(p.v));
  require(p.heads.keys || (p.k.size(1) >= 1 && p.q.size(1) % p.k.size(1) == 0),
          "attend: query heads must be a multiple of key heads, got {} and {}", p.q.size(1), p.k.size(1));
  check_heads(p);
  require(p.q.size(3) >= 1, "attend: head dim must be >= 1, got {}", p.q.size(3));
  check_score(p);
  check_plan(p.plan, p.q, p.k);
}

void check_gradients(const Problem& p, const Attended& attended, const Tensor& d_out, const Tensor& d_lse) {
  require(!p.pages && !is_quantised(p.k), "attend_backward: {} keys have no gradient, they are for decoding",
          p.pages ? "paged" : "8-bit");
  const int64_t shape[] = {p.q.size(0), p.q.size(1), p.q.size(2), p.v.size(3)};
  const at::IntArrayRef whole(shape), rows(shape, 3);
  const auto lse_type = p.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto check = [](const Tensor& t, std::string_view name, at::IntArrayRef sizes, at::ScalarType type) {
    require(t.sizes() == sizes && t.scalar_type() == type, "attend_backward: {} must be {} [{}], got {} [{}]", name,
            c10::toString(type), fmt::join(sizes.begin(), sizes.end(), ", "), c10::toString(t.scalar_type()),
            fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  };
  check(attended.out, "out", whole, p.q.scalar_type());
  check(d_out, "d_out", whole, p.q.scalar_type());
  check(attended.lse, "lse", rows, lse_type);
  if (d_lse.defined()) check(d_lse, "d_lse", rows, lse_type);
}

void cast_score_gradients(const Problem& p, Gradients& g) {
  const auto as = [](bool wanted, Tensor& gradient, const auto& like) {
    if (wanted) gradient = gradient.to(like().scalar_type());
  };
  as(p.wants_bias(), g.bias, [&] { return *p.score.bias; });
  as(p.wants_sink(), g.sink, [&] { return *p.score.sink; });
  as(p.wants_slopes(), g.slopes, [&] { return *p.score.slopes; });
  as(p.wants_relative(), g.relative, [&] { return p.score.relative->logits; });
}

namespace {

// The problem with a key and a value head for every query head, where it has a head map, and without landmarks' values.
Problem simplified(const Problem& given) {
  const Problem p = whole(given);
  Problem wide = p;
  if (p.score.landmarks)  // whose values never count, not even NaN
    wide.v = p.v.masked_fill(p.score.landmarks->unsqueeze(1).unsqueeze(3), 0);
  if (!p.heads.keys) return wide;
  wide.k = p.k.index_select(1, *p.heads.keys);
  wide.v = wide.v.index_select(1, p.heads.values.value_or(*p.heads.keys));
  wide.heads = {};
  const auto widen = [&](Tensor& lists) {
    if (lists.size(1) != 1 && lists.size(1) != p.q.size(1)) lists = lists.index_select(1, *p.heads.keys);
  };
  if (auto* blocks = std::get_if<BlockPlan>(&wide.plan)) {
    widen(blocks->count), widen(blocks->index);
    if (blocks->full_index) widen(*blocks->full_count), widen(*blocks->full_index);
  } else if (auto* tokens = std::get_if<TokenPlan>(&wide.plan)) {
    widen(tokens->index);
  } else if (auto* runs = std::get_if<RunPlan>(&wide.plan)) {
    widen(runs->start), widen(runs->end);
  }
  return wide;
}

}  // namespace

Attended attend_definition(const Problem& given) {
  const Problem p = simplified(given);
  const Tiles tiles(p);
  const int64_t value_dim = p.v.size(3);
  const auto options = p.q.options();
  const int64_t rows = tiles.queries + 1;
  const Tensor out = at::zeros({tiles.batch, tiles.heads, rows, value_dim}, options);
  const Tensor lse = at::full({tiles.batch, tiles.heads, rows, 1}, kMinusInfinity, options.dtype(tiles.compute));
  if (p.score.sink) lse.copy_(p.score.sink->to(tiles.compute).view({1, -1, 1, 1}).expand(lse.sizes()));
  const auto result = [&]() -> Attended {
    return {out.narrow(2, 0, tiles.queries).contiguous(), lse.narrow(2, 0, tiles.queries).squeeze(3).contiguous()};
  };
  if (tiles.batch * tiles.heads * tiles.queries == 0) return result();
  tiles.walker.for_each_tile([&](const RowTile& tile) {
    const Tensor q = tiles.rows(p.q, tile).mul(tiles.scale);
    const auto state = [&](int64_t dim, double value) {
      return at::full({tiles.batch, tiles.groups, tile.blocks, q.size(3), dim}, value, options.dtype(tiles.compute));
    };
    Tensor top = state(1, kMinusInfinity), sum = state(1, 0), acc = state(value_dim, 0);
    if (p.score.sink) {  // starts as if one key with the sink's logit and value 0 had been seen
      const Tensor sink = p.score.sink->to(tiles.compute).view({1, tiles.groups, 1, tiles.repeats, 1, 1});
      top = sink.expand({tiles.batch, -1, tile.blocks, -1, tile.block_rows, 1}).reshape(top.sizes()).clone();
      sum.fill_(1);
    }
    const Grouped::Tile blocks = tiles.survey(q, tile);
    tiles.walker.for_each_piece(tile, [&](const Piece& piece) {
      if (piece.keys == 0) return;
      Tensor s = tiles.logits(q, tiles.gather(p.k, piece), tile, piece);
      if (tiles.grouped.any()) s = tiles.grouped.shifted(s, piece, blocks);
      s = s.flatten(3, 4);
      const Tensor new_top = at::maximum(top, s.amax(-1, true));
      const Tensor safe_top = new_top.masked_fill(new_top.eq(kMinusInfinity), 0);
      const Tensor weights = s.sub_(safe_top).exp_();
      const Tensor shrink = (top - safe_top).exp_();
      sum.mul_(shrink).add_(weights.sum(-1, true));
      tiles.drop(weights, tiles.score.keep(tile, piece), tile);
      acc.mul_(shrink).add_(tiles.weigh(weights, tiles.gather(p.v, piece), tile, piece));
      top = new_top;
    });
    tiles.write_rows(acc.div_(sum.masked_fill(sum.eq(0), 1)), tile, out);
    tiles.write_rows(sum.log_().add_(top.masked_fill(top.eq(kMinusInfinity), 0)), tile, lse);
  });
  return result();
}

namespace {

struct TileRows {  // [b, g, t, r * m, d]
  Tensor q, d_out, lse, delta;
};

// d loss / d logit = P (dP - delta) of a piece, [b, g, t, r, m, n], and what else follows from its logits.
struct PieceGradient {
  Tensor k, logits, kept, d_s;  // logits before landmarks; kept: weights behind dropout
  Logits::Factors factors;
};

PieceGradient piece_gradient(const Tiles& tiles, const Problem& p, const TileRows& rows, const RowTile& tile,
                             const Piece& piece, const Grouped::Tile& blocks) {
  PieceGradient g;
  g.k = tiles.gather(p.k, piece);
  g.logits = tiles.logits(rows.q, g.k, tile, piece, &g.factors);
  const Tensor s = tiles.grouped.any() ? tiles.grouped.shifted(g.logits, piece, blocks) : g.logits;
  const Tensor weights = (s.flatten(3, 4) - rows.lse).exp_(), keep = tiles.score.keep(tile, piece);
  g.kept = keep.defined() ? weights.clone() : weights;
  tiles.drop(g.kept, keep, tile);
  Tensor d_s = at::matmul(rows.d_out, tiles.gather(p.v, piece).transpose(-1, -2));
  tiles.drop(d_s, keep, tile);
  g.d_s = d_s.sub_(rows.delta).mul_(weights).unflatten(3, {tiles.repeats, tile.block_rows});
  if (piece.visible.defined()) g.d_s.masked_fill_(piece.visible.logical_not(), 0);  // 0 * NaN of an invisible value
  return g;
}

}  // namespace

Gradients attend_backward_definition(const Problem& given, const Attended& attended, const Tensor& d_out,
                                     const Tensor& d_lse) {
  const Problem p = simplified(given);
  const Tiles tiles(p);
  const auto compute = p.q.options().dtype(tiles.compute);
  const Tensor d_q = at::zeros({tiles.batch, tiles.heads, tiles.queries + 1, p.q.size(3)}, p.q.options());
  const Tensor d_k = at::zeros(p.k.sizes(), compute), d_v = at::zeros(p.v.sizes(), compute);
  Gradients sums = tiles.score.zeros();
  const Tensor lse = attended.lse.unsqueeze(3);
  // d loss / d logit = P (dP - delta)
  Tensor delta = (d_out.to(tiles.compute) * attended.out.to(tiles.compute)).sum(-1, true);
  if (d_lse.defined()) delta = delta - d_lse.unsqueeze(3).to(tiles.compute);
  if (p.wants_sink()) {
    const Tensor weight = (p.score.sink->to(tiles.compute).view({1, -1, 1, 1}) - lse).exp_();
    sums.sink = weight.mul_(delta).neg_().sum(c10::IntArrayRef{0, 2, 3});
  }
  if (tiles.batch * tiles.heads * tiles.queries > 0)
    tiles.walker.for_each_tile([&](const RowTile& tile) {
      const Tensor q = tiles.rows(p.q, tile).mul(tiles.scale), tile_d_out = tiles.rows(d_out, tile);
      const Tensor tile_lse = tiles.rows(lse, tile), tile_delta = tiles.rows(delta, tile);
      const Tensor finite_lse = tile_lse.masked_fill(tile_lse.eq(kMinusInfinity), 0);
      const Tensor tile_d_q = at::zeros_like(q);
      Grouped::Tile blocks = tiles.survey(q, tile);
      const auto gradient_of = [&](const Piece& piece) {
        return piece_gradient(tiles, p, {q, tile_d_out, finite_lse, tile_delta}, tile, piece, blocks);
      };
      if (tiles.grouped.any())
        tiles.walker.for_each_piece(tile, [&](const Piece& piece) {
          if (piece.keys > 0) tiles.grouped.add_block_gradients(gradient_of(piece).d_s, piece, blocks);
        });
      tiles.walker.for_each_piece(tile, [&](const Piece& piece) {
        if (piece.keys == 0) return;
        PieceGradient g = gradient_of(piece);
        tiles.scatter_add(at::matmul(g.kept.transpose(-1, -2), tile_d_out), piece, d_v);
        if (tiles.grouped.any()) g.d_s = tiles.grouped.gradient(g.d_s, g.logits, piece, blocks);
        tiles.score.add_gradients(g.factors.added.defined() ? g.d_s * g.factors.added : g.d_s, tile, piece, sums);
        if (g.factors.product.defined()) g.d_s = g.d_s * g.factors.product;
        const Tensor d_scaled = g.d_s.flatten(3, 4);
        tile_d_q.add_(tiles.weigh(d_scaled, g.k, tile, piece));
        tiles.scatter_add(at::matmul(d_scaled.transpose(-1, -2), q), piece, d_k);
      });
      tiles.write_rows(tile_d_q.mul_(tiles.scale), tile, d_q);
    });
  sums.q = d_q.narrow(2, 0, tiles.queries).contiguous();
  const auto shrink = [](const Tensor& d, const std::optional<Tensor>& heads, const Tensor& like) {
    if (!heads) return d.to(like.scalar_type());
    return at::zeros(like.sizes(), d.options()).index_add_(1, *heads, d).to(like.scalar_type());
  };
  sums.k = shrink(d_k, given.heads.keys, given.k);
  sums.v = shrink(d_v, given.heads.values ? given.heads.values : given.heads.keys, given.v);
  cast_score_gradients(p, sums);
  return sums;
}

}  // namespace foveate::ops
