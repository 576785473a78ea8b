#include "foveate/ops/attend/grouped.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

namespace foveate::ops {

using at::Tensor;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

Grouped::Grouped(const Problem& p, const PieceWalker& walker) : walker_(walker), keys_(p.k.size(2)) {
  if (!p.score.landmarks) return;
  query_start_ = rule_of(p.plan).query_start.value_or(keys_ - p.q.size(2));
  landmarks_ = p.score.landmarks->expand({p.q.size(0), keys_});
  before_ = at::constant_pad_nd(landmarks_.to(at::kLong).cumsum(1), {1, 0});
  blocks_ = 1 + (before_.numel() > 0 ? before_.max().item<int64_t>() : 0);
}

Grouped::Keys Grouped::keys_of(const Piece& piece) const {
  const int64_t batch = landmarks_.size(0);
  if (!piece.index.defined()) {
    const auto cut = [&](const Tensor& t) {
      return t.narrow(1, piece.first_key, piece.keys).view({batch, 1, 1, 1, 1, -1});
    };
    return {cut(before_), cut(landmarks_)};
  }
  const Tensor ids = piece.index.expand({batch, -1, -1, -1}), flat = ids.flatten(1);
  const auto take = [&](const Tensor& t) { return t.gather(1, flat).view(ids.sizes()).unsqueeze(3).unsqueeze(4); };
  return {take(before_), take(landmarks_)};
}

Grouped::Tile Grouped::survey(const RowTile& tile, at::IntArrayRef shape, at::ScalarType type,
                              const VisitLogits& visit) const {
  Tile t;
  const Tensor positions = (walker_.row_ids(tile) + query_start_).clamp(0, keys_);  // [b|1, g|1, t, r|1, m, 1]
  const int64_t batch = landmarks_.size(0);
  const Tensor wide = positions.expand({batch, -1, -1, -1, -1, -1});
  t.own = before_.gather(1, wide.flatten(1)).view(wide.sizes());
  std::vector<int64_t> sizes = shape.vec();  // [b, g, t, r, m]
  sizes.push_back(blocks_);
  const auto options = before_.options().dtype(type);
  Tensor top = at::full(sizes, kMinusInfinity, options), gate = top.clone(), sum = at::zeros(sizes, options);
  const auto normal = [&](const Tensor& s, const Keys& keys) {
    return s.masked_fill(keys.is_landmark, kMinusInfinity);
  };
  visit([&](const Piece& piece, const Tensor& s) {
    const Keys keys = keys_of(piece);
    const Tensor block = keys.block.expand(s.sizes());
    top.scatter_reduce_(5, block, normal(s, keys), "amax");
    gate.scatter_reduce_(5, block, s.masked_fill(keys.is_landmark.logical_not(), kMinusInfinity), "amax");
  });
  const Tensor safe_top = top.masked_fill(top.eq(kMinusInfinity), 0);
  visit([&](const Piece& piece, const Tensor& s) {
    const Keys keys = keys_of(piece);
    const Tensor block = keys.block.expand(s.sizes());
    sum.scatter_add_(5, block, (normal(s, keys) - safe_top.gather(5, block)).exp());
  });
  t.sums = sum.log() + safe_top;
  t.shift = (gate - t.sums).masked_fill(t.sums.eq(kMinusInfinity), kMinusInfinity);
  t.d_shift = at::zeros(sizes, options);
  return t;
}

Tensor Grouped::shifted(const Tensor& logits, const Piece& piece, const Tile& tile) const {
  const Keys keys = keys_of(piece);
  const Tensor shift = tile.shift.gather(5, keys.block.expand(logits.sizes()));
  const Tensor s = logits + shift.masked_fill(in_other_block(keys, tile).logical_not(), 0);
  // -inf and a shift that is +inf for an empty block give NaN: neither is a key to see
  return s.masked_fill(keys.is_landmark.logical_or(logits.eq(kMinusInfinity)), kMinusInfinity);
}

void Grouped::add_block_gradients(const Tensor& d_shifted, const Piece& piece, Tile& tile) const {
  const Keys keys = keys_of(piece);
  const Tensor d = d_shifted.masked_fill(in_other_block(keys, tile).logical_not(), 0);
  tile.d_shift.scatter_add_(5, keys.block.expand(d.sizes()), d);
}

Tensor Grouped::gradient(const Tensor& d_shifted, const Tensor& logits, const Piece& piece, const Tile& tile) const {
  const Keys keys = keys_of(piece);
  const Tensor block = keys.block.expand(logits.sizes()), d_shift = tile.d_shift.gather(5, block);
  const Tensor other = in_other_block(keys, tile).logical_and(logits.ne(kMinusInfinity));
  const Tensor sums = tile.sums.gather(5, block);
  const Tensor share = (logits - sums.masked_fill(sums.eq(kMinusInfinity), 0)).exp();
  const Tensor of_key = d_shifted - (share * d_shift).masked_fill(other.logical_not(), 0);
  return at::where(keys.is_landmark, d_shift.masked_fill(other.logical_not(), 0), of_key);
}

}  // namespace foveate::ops
