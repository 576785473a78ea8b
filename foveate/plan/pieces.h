// Walks a plan as tiles of queries and, for each, pieces of keys small enough to hold their scores.
// Six axes serve every plan:  [b, g, t, r, m, n]
//   b batch, g key heads (or query heads where the plan differs between them), t query blocks of the tile,
//   r query heads that share g, m rows of a query block, n keys of the piece.        Hq = g * r
#pragma once

#include <functional>

#include "foveate/plan/plan.h"

namespace foveate {

// Rows [first_row, first_row + blocks * block_rows), cut at Lq.
struct RowTile {
  int64_t first_row, blocks, block_rows;
};

struct Piece {
  int64_t first_key = 0,
          keys = 0;    // contiguous keys [first_key, first_key + keys) for all blocks, where index is undefined
  at::Tensor index;    // [b|1, g|1, t, n] int64, legal key indices (empty entries point at key 0, invisible)
  at::Tensor visible;  // bool, broadcastable to [b, g, t, r, m, n]; undefined: all visible
};

class PieceWalker {
 public:
  PieceWalker(const Plan& plan, const at::Tensor& q, const at::Tensor& k);

  int64_t groups() const { return groups_; }  // g
  // Which queries the rows of a tile are: [b|1, g|1, t, r|1, m, 1] int64, and where there are such; elsewhere it says
  // 0.
  at::Tensor row_ids(const RowTile& tile) const;
  at::Tensor row_is_real(const RowTile& tile) const;
  void for_each_tile(const std::function<void(const RowTile&)>& visit) const;
  void for_each_piece(const RowTile& tile, const std::function<void(const Piece&)>& visit) const;

 private:
  struct Listed {  // block or token lists in one form
    at::Tensor count, index;
    int64_t key_block;
    bool checks_rule;
    at::Tensor end = {};  // of runs, whose starts are `index`
  };
  void rule_pieces(const RowTile& tile, const std::function<void(const Piece&)>& visit) const;
  void listed_pieces(const RowTile& tile, const Listed& lists, const std::function<void(const Piece&)>& visit) const;
  std::pair<int64_t, int64_t> key_range(const RowTile& tile) const;
  at::Tensor rule_mask(const RowTile& tile, const at::Tensor& keys, const at::Tensor& key_documents) const;
  at::Tensor by_row(const at::Tensor& rows, const RowTile& tile) const;
  at::Tensor by_head(const at::Tensor& heads, int64_t axis) const;
  at::Tensor order_of(const RowTile& tile) const;
  at::Tensor spread_rows(const at::Tensor& rows, const RowTile& tile) const;
  std::pair<int64_t, int64_t> position_range(const RowTile& tile) const;
  static at::Tensor block_keys(at::Tensor entries, int64_t key_block);
  void gathered_piece(const RowTile& tile, const at::Tensor& keys, bool checks_rule,
                      const std::function<void(const Piece&)>& visit) const;

  const Rule& rule_;
  int64_t batch_, heads_, kv_heads_, rows_, keys_, groups_, query_start_, query_block_;
  std::vector<Listed> lists_;
  int64_t left_, right_;  // the rule's widest window
};

}  // namespace foveate
