// How logits are made of products, in plain ATen, on the six axes of plan/pieces.h: the part of attend's definition
// that knows score terms.
#pragma once

#include "foveate/ops/attend/definition.h"
#include "foveate/plan/pieces.h"

namespace foveate::ops {

// Throws Error unless the score's tensors and numbers fit q and k.
void check_score(const Problem& problem);

class Logits {
 public:
  Logits(const Problem& problem, const PieceWalker& walker, at::ScalarType compute);

  // d logit / d (what is added to it), d logit / d (scale * q.k); undefined: 1.
  struct Factors {
    at::Tensor added, product;
  };
  // s: scale * q.k of a piece [b, g, t, r, m, n], may be overwritten.  Returns logits, -inf where invisible.
  at::Tensor make(at::Tensor s, const RowTile& tile, const Piece& piece, Factors* factors = nullptr) const;
  // What dropout multiplies weights with, [b, g, t, r, m, n]; undefined without dropout.
  at::Tensor keep(const RowTile& tile, const Piece& piece) const;

  at::Tensor key_ids(const Piece& piece) const;  // broadcastable to [b, g, t, 1, 1, n]

  // Zeros of the gradients that are wanted (compute dtype), and what d loss / d (added terms) of a piece adds to them.
  Gradients zeros() const;
  void add_gradients(const at::Tensor& d_added, const RowTile& tile, const Piece& piece, Gradients& to) const;

 private:
  // Queries and keys of a piece stand side by side in the bias.
  bool contiguous(const Piece& piece) const { return !piece.index.defined() && !rule_of(p_.plan).query_order; }
  at::Tensor distance(const RowTile& tile, const Piece& piece) const;
  at::Tensor bias(const RowTile& tile, const Piece& piece) const;
  at::Tensor relative_columns(int64_t axis, const RowTile& tile, const Piece& piece) const;
  at::Tensor by_head(const at::Tensor& heads) const;  // [Hq] as [1, g, 1, r, 1, 1]
  // Index tensors that address `whole` [B|1, Hq|1, Lq|1, columns] at the rows of a tile and `columns`.
  c10::List<std::optional<at::Tensor>> index(const at::Tensor& whole, const RowTile& tile,
                                             const at::Tensor& columns) const;

  const Problem& p_;
  const PieceWalker& walker_;
  at::ScalarType compute_;
  int64_t batch_, heads_, queries_, groups_, repeats_, query_start_;
  at::Tensor dropout_rows_;  // [B, Hq, Lq, 2] int64 words
};

}  // namespace foveate::ops
