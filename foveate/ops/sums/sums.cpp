#include "foveate/ops/sums/sums.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "foveate/base/error.h"
#include "foveate/kernels/sums.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/attend/storage.h"
#include "foveate/ops/attend/tiles.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;

// Which column of the sums a pair goes to, [b|1, g|1, t, 1, m|1, n]; outside [0, columns): none.
Tensor column_of(const SumOptions& o, const Tensor& positions, const Tensor& keys) {
  if (o.by == SumBy::row) return at::zeros_like(keys);
  if (o.by == SumBy::key) return keys;
  return o.by == SumBy::diagonal ? positions - keys : keys.div(o.key_block, "floor");
}

Tensor place_of(const SumOptions& o, const Tensor& queries) {
  if (o.by == SumBy::row) return queries;
  return o.by == SumBy::block ? queries.div(o.query_block, "floor") : at::zeros_like(queries);
}

// Adds to sums [B, Hq, places, columns].
void add_by_definition(const Problem& p, const Tensor& lse, const SumOptions& o, const Tensor& sums) {
  const Tiles tiles(p);
  const int64_t start = rule_of(p.plan).query_start.value_or(p.k.size(2) - p.q.size(2)), columns = sums.size(3);
  const Tensor batch = at::arange(tiles.batch, at::kLong).view({-1, 1, 1, 1, 1, 1});
  const Tensor head = at::arange(tiles.heads, at::kLong).view({1, tiles.groups, 1, tiles.repeats, 1, 1});
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  tiles.walker.for_each_tile([&](const RowTile& tile) {
    const Tensor q = tiles.rows(p.q, tile).mul(tiles.scale), row_lse = tiles.rows(lse.unsqueeze(3), tile);
    const Tensor empty = row_lse.eq(minus_infinity);
    const Tensor rows = tiles.walker.row_ids(tile), positions = rows + start;
    tiles.walker.for_each_piece(tile, [&](const Piece& piece) {
      if (piece.keys == 0) return;
      Tensor w = tiles.logits(q, tiles.gather(p.k, piece), tile, piece).flatten(3, 4);
      w = w.sub_(row_lse.masked_fill(empty, 0)).exp_().masked_fill_(empty, 0);
      w = w.unflatten(3, {tiles.repeats, tile.block_rows});
      w = w.masked_fill(tiles.walker.row_is_real(tile).logical_not(), 0);
      const Tensor keys = tiles.score.key_ids(piece);
      if (o.squared) w = w * w;
      if (o.distance) w = w * (positions - keys).abs().clamp_max(*o.distance);
      const Tensor column = column_of(o, positions, keys);
      const Tensor outside = column.lt(0).logical_or(column.ge(columns));
      sums.index_put_({batch, head, place_of(o, rows), column.masked_fill(outside, 0)}, w.masked_fill(outside, 0),
                      true);
    });
  });
}

}  // namespace

Tensor attention_sums(const Tensor& q, const Tensor& k, const Tensor& lse, const Plan& plan, const Score& given,
                      const SumOptions& o) {
  require(o.query_block >= 1 && o.key_block >= 1, "attention_sums: blocks must be >= 1, got {} and {}", o.query_block,
          o.key_block);
  require(o.distance.value_or(1) >= 1, "attention_sums: distance must be >= 1, got {}", o.distance.value_or(1));
  Score score = given;
  score.dropout = 0, score.sink.reset();
  const at::NoGradGuard no_gradients;
  const Problem p{q, k, k, plan, score, {}, {}};
  check_problem(p);
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  require(lse.dim() == 3 && lse.sizes() == q.sizes().slice(0, 3) && lse.scalar_type() == type,
          "attention_sums: lse must be {} [{}], got {} [{}]", c10::toString(type),
          fmt::join(q.sizes().slice(0, 3), ", "), c10::toString(lse.scalar_type()),
          fmt::join(lse.sizes().begin(), lse.sizes().end(), ", "));
  const Prepared prepared(p);
  kernels::Arguments a = prepared.arguments;
  const kernels::SumRequest request{o.by, o.squared, float(o.distance.value_or(0)), o.query_block, o.key_block};
  const Tensor sums = at::zeros({a.batch, a.heads, request.places(a), request.columns(a)}, q.options().dtype(type));
  const int64_t start = a.rule.query_start;
  constexpr int64_t kFar = int64_t{1} << 30;  // the kernels count distances in 32 bits
  if (start > -kFar && start < kFar && choose(p, Pass::forward)) {
    a.wants_places = true, a.value_dim = 0;
    const Tensor rows = lse.contiguous();
    kernels::sums(*kernel_table(), a, rows.data_ptr<float>(), request, sums.data_ptr<float>(), torch_pool());
    if (o.by == SumBy::diagonal) return sums.squeeze(2).flip(-1);  // the kernels count from the farthest
  } else if (q.numel() > 0 && k.size(2) > 0) {
    add_by_definition(whole(p), lse, o, sums);
  }
  if (o.by == SumBy::block) return sums;
  return o.by == SumBy::row ? sums.squeeze(3) : sums.squeeze(2);
}

}  // namespace foveate::ops
