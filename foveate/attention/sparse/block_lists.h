// Lists of kept blocks: what mechanisms that give each block of queries some whole blocks of keys have in common.
#pragma once

#include <functional>

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

// Blocks of one call: a row is a block of queries, counted from the call's first query; a column a block of keys,
// counted from key 0.  Positions are key indices.
class BlockGrid {
 public:
  // Throws Error, which names `owner`: a rule that shown_keys() does not take (sinks beside a window it does).
  BlockGrid(const Inputs& in, int64_t query_block, int64_t key_block, std::string_view owner);

  int64_t query_block() const { return query_block_; }
  int64_t key_block() const { return key_block_; }
  int64_t keys() const { return keys_; }
  int64_t start() const { return start_; }  // position of the first query
  int64_t rows() const { return (queries_ + query_block_ - 1) / query_block_; }
  int64_t key_blocks() const { return (keys_ + key_block_ - 1) / key_block_; }

  // Of rows [first, first + count).
  struct Span {
    at::Tensor begin, end;   // [count, 1] int64: positions of the first query and behind the last
    at::Tensor own, latest;  // [count, 1]: blocks of their keys
    SeenKeys seen, text;     // [B|1, count]: keys that some query sees, but for sinks; without windows
  };
  Span span(int64_t first, int64_t count) const;
  Span span_of_last(int64_t queries) const;  // the last queries as one row

  at::Tensor columns() const;                      // [key_blocks] int64: 0, 1, ..
  at::Tensor seen(const Span& span) const;         // [B|1, 1, count, key_blocks] bool: a query sees a key of the block
  at::Tensor own_blocks(const Span& span) const;   // [count, key_blocks] bool: blocks of the queries' own keys
  at::Tensor first_block(const Span& span) const;  // [B|1, 1, count, key_blocks] bool: that of the text's first key

 private:
  Span span_of(const at::Tensor& begin, const at::Tensor& end, SeenKeys seen, SeenKeys text) const;

  int64_t query_block_, key_block_, queries_, keys_, start_, sinks_;
  SeenKeys seen_, text_;  // [B|1, Lq]
};

// Whether a causal rule shows every query all keys before it.
bool shows_all_before(const Rule& rule);

// Scores of rows [first, first + count): [B, heads, count, key_blocks].
using BlockScores = std::function<at::Tensor(int64_t first, int64_t count)>;
// Products of mean queries, q [B, Hq, Lq, D] in rows of the grid, and mean keys [B, Hkv, key_blocks, D]; the mean of
// those of a group of query heads, or one for each.
BlockScores scores_by_means(const BlockGrid& grid, const at::Tensor& q, const at::Tensor& means, bool by_group);

// bool, broadcasts to the scores: what rows keep in any case, of the blocks they see.
using ForcedBlocks = std::function<at::Tensor(const BlockGrid::Span&)>;

// The best seen blocks of rows first, first + 1, ..: `takes` [B|1, 1, count] int64 of them, forced ones in any case ->
// [B, heads, count, longest] int32, ascending, -1 behind the end.  `lists` is B * heads: few scores are held at a time.
at::Tensor select_blocks(const BlockGrid& grid, const BlockScores& scores, const ForcedBlocks& forced,
                         const at::Tensor& takes, int64_t first, int64_t lists);

// Lists [B, heads, count, longest] of rows first, first + 1, .. as a plan.  Where the rule is causality alone, blocks
// that end before the first query are full; they stand first in a list.
BlockPlan plan_of_blocks(const BlockGrid& grid, const at::Tensor& index, int64_t first, const Rule& rule);

// A call whose rows all attend by lists.
Attended attend_blocks(const BlockGrid& grid, const at::Tensor& index, const Inputs& in);

}  // namespace foveate::attention
