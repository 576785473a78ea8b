// The blocks that rows of landmark attention fetch: chosen by landmark keys, moved to their places, attended to.
#pragma once

#include <functional>

#include "foveate/attention/sparse/landmark.h"
#include "foveate/plan/row_ranges.h"

namespace foveate::attention {

class LandmarkRetrieval {
 public:
  explicit LandmarkRetrieval(Landmark options) : options_(std::move(options)) {}

  // Keys of the landmarks of blocks first, first + 1, .. [B, Hkv, n, D], in the dtype of q, as rotated in the text.
  void set(const at::Tensor& keys, int64_t first);
  void append(const at::Tensor& keys);  // of the next blocks
  void drop_before(int64_t block);      // later rows fetch none of them; top_k + 1 before any chunk must stay
  void truncate(int64_t end);           // forgets blocks from `end` on
  int64_t first() const { return first_; }
  int64_t end() const { return first_ + count_; }
  int64_t bytes() const;

  // Where fetched blocks lie: keys and values [B, Hkv, n, D], and for each chosen block the place in them, in blocks.
  struct Fetched {
    at::Tensor k, v, places;
  };
  // chosen [B, Hkv, N] int64: numbers of blocks, -1 none.
  using Fetch = std::function<Fetched(const at::Tensor& chosen)>;

  // in.k, in.v: tokens from the text's position `first` on, a multiple of the block; at least those that the rows see
  // without fetching.  by_row: every row chooses for itself, whatever options.select (generated rows).
  Attended attend(const Inputs& in, int64_t first, bool by_row, const Fetch& fetch);

  // Rows from `position` on that are best attended together: whole chunks, at most `rows`.
  int64_t rows_together(int64_t position, int64_t rows) const;

 private:
  struct Group;
  int64_t held_candidates(int64_t before) const;
  ops::Attended local_part(const Inputs& in, int64_t first, const Group& group) const;
  void choose(const Inputs& in, bool by_row, Group& group);
  void place(const at::Tensor& chosen, int64_t row, int64_t count, int64_t oldest, Group& group) const;
  at::Tensor best(const at::Tensor& scores, int64_t key_heads, bool by_row) const;
  at::Tensor moved(const Inputs& in, int64_t before);
  void make_table(const Inputs& in, int64_t blocks);
  void hide(const RowRanges& shown, int64_t row, int64_t oldest, at::Tensor& scores) const;
  at::Tensor moved_queries(const at::Tensor& q, const Group& group) const;
  Rule fetched_rule(const Inputs& in, const Group& group, const at::Tensor& chosen, const Fetched& from) const;
  Plan plan_of(const at::Tensor& places, Rule rule) const;
  RunPlan runs_of(const Inputs& in, const Group& group) const;
  ops::Attended fetched_parts(const Inputs& in, const Group& group, const Fetch& fetch);

  Landmark options_;
  at::Tensor keys_;  // [B, Hkv, capacity, D]
  int64_t first_ = 0, count_ = 0;
  at::Tensor moved_;  // [B, Hkv, candidates, D] fp32: landmarks where chunks behind `moved_before_` blocks score them
  int64_t moved_before_ = -1;
  ops::Rotation table_;  // by 0, 1, .. blocks
};

}  // namespace foveate::attention
