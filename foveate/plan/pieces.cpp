#include "foveate/plan/pieces.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "foveate/base/error.h"

namespace foveate {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max() / 4;  // far from overflow when positions are added
// Scores held at a time: 4 MiB in fp32 (64 rows x 1,024 keys of 9 heads: the fastest of those tried, LOG.md).
constexpr int64_t kTileScores = 1 << 20;
constexpr int64_t kPieceKeys = 1024;

// Rows of a rule's tile: a power of two, so that causal tiles align.
int64_t tile_rows(int64_t batch, int64_t heads) {
  const int64_t room = kTileScores / std::max<int64_t>(batch * heads * kPieceKeys, 1);
  return int64_t(std::bit_floor(uint64_t(std::clamp<int64_t>(room, 16, 256))));
}

int64_t widest_left(const Rule& rule) {
  int64_t left = rule.window_left.value_or(kNoLimit);
  if (rule.head_window) {
    const int64_t narrowest = rule.head_window->min().item<int64_t>();
    if (narrowest >= 0) left = std::min(left, rule.head_window->max().item<int64_t>());
  }
  return left;
}

}  // namespace

PieceWalker::PieceWalker(const Plan& plan, const at::Tensor& q, const at::Tensor& k)
    : rule_(rule_of(plan)),
      batch_(q.size(0)),
      heads_(q.size(1)),
      kv_heads_(k.size(1)),
      queries_(q.size(2)),
      keys_(k.size(2)),
      groups_(kv_heads_),
      query_start_(rule_.query_start.value_or(keys_ - queries_)),
      query_block_(tile_rows(batch_, heads_)),
      left_(widest_left(rule_)),
      right_(rule_.window_right.value_or(kNoLimit)) {
  if (const auto* blocks = std::get_if<BlockPlan>(&plan)) {
    query_block_ = blocks->query_block;
    lists_.push_back({blocks->count, blocks->index, blocks->key_block, true});
    if (blocks->full_index) lists_.push_back({*blocks->full_count, *blocks->full_index, blocks->key_block, false});
  } else if (const auto* tokens = std::get_if<TokenPlan>(&plan)) {
    query_block_ = tokens->query_block;
    lists_.push_back({{}, tokens->index, 1, true});
  }
  for (const Listed& lists : lists_)
    if (lists.index.size(1) == heads_) groups_ = heads_;
}

void PieceWalker::for_each_tile(const std::function<void(const RowTile&)>& visit) const {
  if (lists_.empty()) {
    for (int64_t row = 0; row < queries_; row += query_block_)
      visit({.first_row = row, .blocks = 1, .block_rows = std::min(query_block_, queries_ - row)});
    return;
  }
  const int64_t blocks = (queries_ + query_block_ - 1) / query_block_;
  const int64_t scores = batch_ * heads_ * query_block_ * kPieceKeys;
  const int64_t at_once = std::clamp<int64_t>(kTileScores / std::max<int64_t>(scores, 1), 1, 256);
  for (int64_t block = 0; block < blocks; block += at_once)
    visit({.first_row = block * query_block_, .blocks = std::min(at_once, blocks - block), .block_rows = query_block_});
}

void PieceWalker::for_each_piece(const RowTile& tile, const std::function<void(const Piece&)>& visit) const {
  if (lists_.empty()) return rule_pieces(tile, visit);
  for (const Listed& lists : lists_) listed_pieces(tile, lists, visit);
}

// Keys outside [first, second) are invisible to the whole tile, but for sinks.
std::pair<int64_t, int64_t> PieceWalker::key_range(const RowTile& tile) const {
  const int64_t first = query_start_ + tile.first_row, last = first + tile.block_rows - 1;
  int64_t low = std::max<int64_t>(0, first - left_), high = std::min(keys_, last + right_ + 1);
  if (rule_.key_lengths && batch_ > 0) high = std::min(high, rule_.key_lengths->max().item<int64_t>());
  if (rule_.row_end && rule_.row_end->numel() > 0)
    high = std::min(high, rule_.row_end->narrow(2, tile.first_row, tile.block_rows).max().item<int64_t>());
  if (rule_.row_start && rule_.row_start->numel() > 0)
    low = std::max(low, rule_.row_start->narrow(2, tile.first_row, tile.block_rows).min().item<int64_t>());
  return {std::min(low, std::max<int64_t>(high, 0)), std::max<int64_t>(high, 0)};
}

void PieceWalker::rule_pieces(const RowTile& tile, const std::function<void(const Piece&)>& visit) const {
  const auto [low, high] = key_range(tile);
  const int64_t first = query_start_ + tile.first_row, last = first + tile.block_rows - 1;
  const bool only_windows =
      !rule_.head_window && !rule_.key_lengths && !rule_.query_documents && !rule_.row_start && !rule_.row_end;
  const auto emit = [&](int64_t begin, int64_t end) {
    Piece piece{.first_key = begin, .keys = end - begin, .index = {}, .visible = {}};
    const bool in_window = last - begin <= left_ || end <= rule_.sinks;
    if (!only_windows || !in_window || end - 1 > first + right_) {
      const at::Tensor keys = at::arange(begin, end, at::kLong).view({1, 1, 1, 1, 1, -1});
      at::Tensor documents;
      if (rule_.key_documents)
        documents = rule_.key_documents->narrow(1, begin, end - begin).view({batch_, 1, 1, 1, 1, -1});
      piece.visible = rule_mask(tile, keys, documents);
    }
    visit(piece);
  };
  const int64_t sinks = std::min({rule_.sinks, low, high});
  for (int64_t key = 0; key < sinks; key += kPieceKeys) emit(key, std::min(key + kPieceKeys, sinks));
  for (int64_t key = low; key < high; key += kPieceKeys) emit(key, std::min(key + kPieceKeys, high));
}

void PieceWalker::listed_pieces(const RowTile& tile, const Listed& lists,
                                const std::function<void(const Piece&)>& visit) const {
  if (keys_ == 0) return;  // an empty entry has no key to point at
  const int64_t block = tile.first_row / query_block_, capacity = lists.index.size(3);
  const int64_t step = std::max<int64_t>(1, kPieceKeys / lists.key_block);
  // Where partial and full lists have different head axes, the finer one rules.
  const int64_t heads = lists.index.size(1), repeats = heads == 1 ? 1 : groups_ / heads;
  const auto of_tile = [&](const at::Tensor& t) {
    return t.narrow(2, block, tile.blocks).to(at::kLong).repeat_interleave(repeats, 1);
  };
  const at::Tensor index = of_tile(lists.index);  // [b|1, g|1, t, capacity]
  at::Tensor count;                               // [b|1, g|1, t, 1]
  int64_t longest = capacity;
  if (lists.count.defined()) {
    count = of_tile(lists.count).unsqueeze(-1);
    longest = std::min(longest, count.numel() == 0 ? 0 : count.max().item<int64_t>());
  }
  for (int64_t entry = 0; entry < longest; entry += step) {
    const int64_t entries = std::min(step, longest - entry);
    at::Tensor keys = index.narrow(3, entry, entries);
    if (count.defined()) keys = keys.masked_fill(at::arange(entry, entry + entries, at::kLong).ge(count), -1);
    if (lists.key_block > 1) {
      const at::Tensor inside = at::arange(lists.key_block, at::kLong);
      keys = at::where(keys.ge(0).unsqueeze(-1), keys.unsqueeze(-1) * lists.key_block + inside, -1).flatten(3);
    }
    const at::Tensor legal = keys.ge(0).logical_and_(keys.lt(keys_));
    Piece piece{.first_key = 0, .keys = keys.size(3), .index = keys.masked_fill(legal.logical_not(), 0), .visible = {}};
    const auto spread = [](const at::Tensor& t) { return t.unsqueeze(3).unsqueeze(4); };  // [b, g, t, 1, 1, n]
    piece.visible = spread(legal).logical_and(row_is_real(tile));
    if (lists.checks_rule) {
      at::Tensor documents;
      if (rule_.key_documents) {
        const at::Tensor flat = piece.index.expand({batch_, -1, -1, -1});
        documents = rule_.key_documents->gather(1, flat.flatten(1)).view(flat.sizes());
        documents = spread(documents);
      }
      piece.visible = piece.visible.logical_and(rule_mask(tile, spread(piece.index), documents));
    }
    visit(piece);
  }
}

// `rows` [x, y, Lq] as [x, y, t, m], zero behind Lq.
at::Tensor PieceWalker::by_row(const at::Tensor& rows, const RowTile& tile) const {
  const int64_t wanted = tile.blocks * tile.block_rows, real = std::min(wanted, queries_ - tile.first_row);
  return at::constant_pad_nd(rows.narrow(2, tile.first_row, real), {0, wanted - real})
      .unflatten(2, {tile.blocks, tile.block_rows});
}

// Splits the axis of length Hq or 1 into [g, r] or [1, 1].
at::Tensor PieceWalker::by_head(const at::Tensor& heads, int64_t axis) const {
  if (heads.size(axis) == 1) return heads.unsqueeze(axis);
  return heads.unflatten(axis, {groups_, heads_ / groups_});
}

at::Tensor PieceWalker::row_is_real(const RowTile& tile) const {
  const at::Tensor rows = at::arange(tile.first_row, tile.first_row + tile.blocks * tile.block_rows, at::kLong);
  return rows.lt(queries_).view({1, 1, tile.blocks, 1, tile.block_rows, 1});
}

// keys: indices broadcastable to [b, g, t, r, m, n]; key_documents alike, where the rule has documents.
at::Tensor PieceWalker::rule_mask(const RowTile& tile, const at::Tensor& keys, const at::Tensor& key_documents) const {
  const int64_t first = query_start_ + tile.first_row;
  const at::Tensor position = at::arange(first, first + tile.blocks * tile.block_rows, at::kLong)
                                  .view({1, 1, tile.blocks, 1, tile.block_rows, 1});
  const auto per_row = [&](const at::Tensor& t) {  // [b|1, Hq|1, Lq] -> [b|1, g|1, t, r|1, m, 1]
    return by_head(by_row(t, tile), 1).transpose(2, 3).unsqueeze(-1);
  };
  at::Tensor visible = keys.le(position + right_);
  if (rule_.window_left)
    visible = visible.logical_and(keys.ge(position - *rule_.window_left).logical_or(keys.lt(rule_.sinks)));
  if (rule_.head_window) {
    const at::Tensor left = rule_.head_window->masked_fill(rule_.head_window->lt(0), kNoLimit);
    const at::Tensor by_group = by_head(left, 0).view({1, groups_, 1, heads_ / groups_, 1, 1});
    visible = visible.logical_and(keys.ge(position - by_group).logical_or(keys.lt(rule_.sinks)));
  }
  if (rule_.key_lengths) visible = visible.logical_and(keys.lt(rule_.key_lengths->view({batch_, 1, 1, 1, 1, 1})));
  if (rule_.query_documents)
    visible = visible.logical_and(per_row(rule_.query_documents->unsqueeze(1)).eq(key_documents));
  if (rule_.row_start) visible = visible.logical_and(keys.ge(per_row(*rule_.row_start)));
  if (rule_.row_end) visible = visible.logical_and(keys.lt(per_row(*rule_.row_end)));
  return visible;
}

}  // namespace foveate
