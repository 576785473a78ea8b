// The six-axis view of a problem (plan/pieces.h) with its arithmetic in plain ATen: what definitions are written over.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/index.h>
#include <ATen/ops/matmul.h>

#include <cmath>

#include "foveate/ops/attend/grouped.h"
#include "foveate/ops/attend/logits.h"
#include "foveate/plan/pieces.h"

namespace foveate::ops {

// The six-axis view of a problem (pieces.h) and the arithmetic that forward and backward share.
class Tiles {
 public:
  explicit Tiles(const Problem& problem)
      : p_(problem),
        walker(problem.plan, problem.q, problem.k),
        batch(problem.q.size(0)),
        heads(problem.q.size(1)),
        queries(problem.q.size(2)),
        groups(walker.groups()),
        repeats(heads / groups),
        keys_per_group(groups / problem.k.size(1)),
        compute(problem.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        scale(problem.score.scale_of(problem.q.size(3))),
        score(problem, walker, compute),
        grouped(problem, walker) {}

  // What a tile's rows know of landmark blocks; q already times scale.  Empty without landmarks.
  Grouped::Tile survey(const at::Tensor& q, const RowTile& tile) const {
    if (!grouped.any()) return {};
    const int64_t shape[] = {batch, groups, tile.blocks, repeats, tile.block_rows};
    return grouped.survey(tile, shape, compute, [&](const auto& use) {
      walker.for_each_piece(tile, [&](const Piece& piece) {
        if (piece.keys > 0) use(piece, logits(q, gather(p_.k, piece), tile, piece));
      });
    });
  }

  // Rows of a tile, x [b, Hq, Lq, d] as [b, g, t, r * m, d]; zero where there is none.
  at::Tensor rows(const at::Tensor& x, const RowTile& tile) const {
    const at::Tensor all = x.index(row_index(tile)).to(compute);
    return all.masked_fill(walker.row_is_real(tile).logical_not(), 0).flatten(3, 4);
  }

  // The inverse of rows(): writes a tile [b, g, t, r * m, d] into x [b, Hq, Lq + 1, d]; the last row takes the others.
  void write_rows(const at::Tensor& part, const RowTile& tile, const at::Tensor& x) const {
    auto index = row_index(tile);
    const at::Tensor ids = walker.row_ids(tile).masked_fill(walker.row_is_real(tile).logical_not(), x.size(2) - 1);
    index.set(2, ids.squeeze(-1));
    x.index_put_(index, part.unflatten(3, {repeats, tile.block_rows}).to(x.scalar_type()));
  }

  // Keys or values of a piece, x [b, Hkv, Lk, d] as [b, g, t|1, n, d].
  at::Tensor gather(const at::Tensor& x, const Piece& piece) const {
    if (!piece.index.defined()) return x.narrow(2, piece.first_key, piece.keys).to(compute).unsqueeze(2);
    c10::List<std::optional<at::Tensor>> index;
    for (const at::Tensor& part : {batch_index(), key_head_index(), piece.index}) index.push_back(part);
    return at::index(x, index).to(compute);
  }

  // Adds a piece's part [b, g, t, n, d] to the keys it came from: the inverse of gather.
  void scatter_add(const at::Tensor& part, const Piece& piece, const at::Tensor& x) const {
    if (!piece.index.defined()) {
      x.narrow(2, piece.first_key, piece.keys).add_(part.squeeze(2));
      return;
    }
    const at::Tensor flat = (batch_index() * x.size(1) + key_head_index()) * x.size(2) + piece.index;
    x.view({-1, x.size(3)}).index_add_(0, flat.expand(part.sizes().slice(0, 4)).flatten(), part.flatten(0, 3));
  }

  // Logits [b, g, t, r, m, n], -inf where invisible; q already times scale.
  at::Tensor logits(const at::Tensor& q, const at::Tensor& k, const RowTile& tile, const Piece& piece,
                    Logits::Factors* factors = nullptr) const {
    at::Tensor s = at::matmul(q, k.transpose(-1, -2)).unflatten(3, {repeats, tile.block_rows});
    return score.make(std::move(s), tile, piece, factors);
  }

  // weights [b, g, t, r * m, n] *= keep [b, g, t, r, m, n], where there is dropout.
  void drop(const at::Tensor& weights, const at::Tensor& keep, const RowTile& tile) const {
    if (keep.defined()) weights.unflatten(3, {repeats, tile.block_rows}).mul_(keep);
  }

  // weights [b, g, t, rows, n] times values [b, g, t|1, n, d].  A weight that is 0 because its key is invisible takes
  // nothing from a NaN or Inf value.
  at::Tensor weigh(const at::Tensor& weights, const at::Tensor& values, const RowTile& tile, const Piece& piece) const {
    at::Tensor sum = at::matmul(weights, values);
    if (!piece.visible.defined() || std::isfinite(sum.sum().item<double>())) return sum;
    const at::Tensor finite = values.isfinite();
    sum = at::matmul(weights, values.masked_fill(finite.logical_not(), 0));
    const at::Tensor bad_keys = finite.all(-1).logical_not_().flatten(0, 2).any(0).nonzero().flatten();
    const at::Tensor visible = piece.visible.expand({batch, groups, tile.blocks, repeats, tile.block_rows, piece.keys})
                                   .reshape(weights.sizes());
    for (int64_t i = 0; i < bad_keys.numel(); ++i) {
      const int64_t key = bad_keys[i].item<int64_t>();
      const at::Tensor value = values.narrow(3, key, 1), bad = finite.narrow(3, key, 1).logical_not();
      const at::Tensor part = weights.narrow(4, key, 1) * value;
      sum.add_(part.masked_fill(visible.narrow(4, key, 1).logical_and(bad).logical_not(), 0));
    }
    return sum;
  }

 private:
  const Problem& p_;

 public:
  const PieceWalker walker;
  const int64_t batch, heads, queries, groups, repeats, keys_per_group;
  const at::ScalarType compute;
  const double scale;
  const Logits score;
  const Grouped grouped;

 private:
  // Addresses [b, Hq, Lq] at [b, g, t, r, m].
  c10::List<std::optional<at::Tensor>> row_index(const RowTile& tile) const {
    c10::List<std::optional<at::Tensor>> index;
    index.push_back(at::arange(batch, at::kLong).view({-1, 1, 1, 1, 1}));
    index.push_back(at::arange(heads, at::kLong).view({1, groups, 1, repeats, 1}));
    index.push_back(walker.row_ids(tile).squeeze(-1));
    return index;
  }
  at::Tensor batch_index() const { return at::arange(batch, at::kLong).view({-1, 1, 1, 1}); }
  at::Tensor key_head_index() const {
    return at::arange(groups, at::kLong).div(keys_per_group, "floor").view({1, -1, 1, 1});
  }
};

}  // namespace foveate::ops
