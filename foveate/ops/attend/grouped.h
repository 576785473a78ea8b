// The grouped softmax of Score::landmarks in plain ATen: an ordinary softmax over logits that are shifted block by
// block,
//   s'_t = s_t - log sum_{u in block} exp(s_u) + s_landmark   for keys of blocks other than the row's own.
#pragma once

#include "foveate/ops/attend/definition.h"
#include "foveate/plan/pieces.h"

namespace foveate::ops {

class Grouped {
 public:
  Grouped(const Problem& problem, const PieceWalker& walker);
  bool any() const { return blocks_ > 0; }

  using VisitLogits = std::function<void(const std::function<void(const Piece&, const at::Tensor&)>&)>;
  // What a tile's rows know of the blocks of keys.
  struct Tile {
    at::Tensor own;      // [b, 1|g, t, 1|r, m, 1] block of the row
    at::Tensor shift;    // [b, g, t, r, m, blocks] what is added to the logits of a block's keys
    at::Tensor sums;     // [b, g, t, r, m, blocks] log sum of exp over a block's keys
    at::Tensor d_shift;  // d loss / d shift, set by add_block_gradients
  };
  // `visit` calls back with every piece of the tile and its logits.
  Tile survey(const RowTile& tile, const at::IntArrayRef shape, at::ScalarType type, const VisitLogits& visit) const;
  at::Tensor shifted(const at::Tensor& logits, const Piece& piece, const Tile& tile) const;

  // Adds d loss / d s' of a piece to the tile's; and d loss / d s once all pieces have.
  void add_block_gradients(const at::Tensor& d_shifted, const Piece& piece, Tile& tile) const;
  at::Tensor gradient(const at::Tensor& d_shifted, const at::Tensor& logits, const Piece& piece,
                      const Tile& tile) const;

 private:
  struct Keys {
    at::Tensor block, is_landmark;  // [b|1, g|1, t|1, 1, 1, n]
  };
  Keys keys_of(const Piece& piece) const;
  // Keys of blocks other than the row's own: [b, g, t, r, m, n]
  at::Tensor in_other_block(const Keys& keys, const Tile& tile) const { return keys.block.ne(tile.own); }

  const PieceWalker& walker_;
  at::Tensor landmarks_, before_;  // [B, Lk] bool; [B, Lk + 1] landmarks before each position
  int64_t query_start_ = 0, keys_ = 0, blocks_ = 0;
};

}  // namespace foveate::ops
