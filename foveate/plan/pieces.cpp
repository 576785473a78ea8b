#include "foveate/plan/pieces.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/searchsorted.h>
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
      rows_(rows_of(plan, q)),
      keys_(k.size(2)),
      groups_(kv_heads_),
      query_start_(rule_.query_start.value_or(keys_ - q.size(2))),
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
  } else if (const auto* runs = std::get_if<RunPlan>(&plan)) {
    query_block_ = runs->query_block;
    lists_.push_back({{}, runs->start, 1, true, runs->end});
  }
  for (const Listed& lists : lists_)
    if (lists.index.size(1) == heads_) groups_ = heads_;
}

void PieceWalker::for_each_tile(const std::function<void(const RowTile&)>& visit) const {
  if (lists_.empty()) {
    for (int64_t row = 0; row < rows_; row += query_block_)
      visit({.first_row = row, .blocks = 1, .block_rows = std::min(query_block_, rows_ - row)});
    return;
  }
  const int64_t blocks = (rows_ + query_block_ - 1) / query_block_;
  const int64_t scores = batch_ * heads_ * query_block_ * kPieceKeys;
  const int64_t at_once = std::clamp<int64_t>(kTileScores / std::max<int64_t>(scores, 1), 1, 256);
  for (int64_t block = 0; block < blocks; block += at_once)
    visit({.first_row = block * query_block_, .blocks = std::min(at_once, blocks - block), .block_rows = query_block_});
}

void PieceWalker::for_each_piece(const RowTile& tile, const std::function<void(const Piece&)>& visit) const {
  if (lists_.empty()) return rule_pieces(tile, visit);
  for (const Listed& lists : lists_) listed_pieces(tile, lists, visit);
}

// The least and the greatest position of a tile's rows; none: [0, -1].
std::pair<int64_t, int64_t> PieceWalker::position_range(const RowTile& tile) const {
  if (!rule_.query_order) {
    const int64_t first = query_start_ + tile.first_row;
    return {first, first + tile.block_rows - 1};
  }
  const at::Tensor ids = order_of(tile), real = ids.masked_select(ids.ge(0));
  if (real.numel() == 0) return {0, -1};
  return {query_start_ + real.min().item<int64_t>(), query_start_ + real.max().item<int64_t>()};
}

// Keys outside [first, second) are invisible to the whole tile, but for sinks.
std::pair<int64_t, int64_t> PieceWalker::key_range(const RowTile& tile) const {
  const auto [first, last] = position_range(tile);
  int64_t low = std::max<int64_t>(0, first - left_), high = std::min(keys_, last + right_ + 1);
  if (rule_.key_lengths && batch_ > 0) high = std::min(high, rule_.key_lengths->max().item<int64_t>());
  const auto of_tile = [&](const at::Tensor& rows) {
    return rule_.query_order ? rows : rows.narrow(2, tile.first_row, tile.block_rows);
  };
  if (rule_.row_end && rule_.row_end->numel() > 0) high = std::min(high, of_tile(*rule_.row_end).max().item<int64_t>());
  if (rule_.row_start && rule_.row_start->numel() > 0)
    low = std::max(low, of_tile(*rule_.row_start).min().item<int64_t>());
  return {std::min(low, std::max<int64_t>(high, 0)), std::max<int64_t>(high, 0)};
}

void PieceWalker::rule_pieces(const RowTile& tile, const std::function<void(const Piece&)>& visit) const {
  const auto [low, high] = key_range(tile);
  const auto [first, last] = position_range(tile);
  const bool only_windows = !rule_.head_window && !rule_.key_lengths && !rule_.query_documents && !rule_.row_start &&
                            !rule_.row_end && !rule_.query_order;
  const auto emit = [&, first = first, last = last](int64_t begin, int64_t end) {
    Piece piece{.first_key = begin, .keys = end - begin, .index = {}, .visible = {}};
    const bool in_window = last - begin <= left_ || end <= rule_.sinks;
    if (!only_windows || !in_window || end - 1 > first + right_) {
      const at::Tensor keys = at::arange(begin, end, at::kLong).view({1, 1, 1, 1, 1, -1});
      at::Tensor documents;
      if (rule_.key_documents)
        documents = rule_.key_documents->narrow(1, begin, end - begin).view({batch_, 1, 1, 1, 1, -1});
      piece.visible = rule_mask(tile, keys, documents);
      if (rule_.query_order) piece.visible = piece.visible.logical_and(row_is_real(tile));
    }
    visit(piece);
  };
  const int64_t sinks = std::min({rule_.sinks, low, high});
  for (int64_t key = 0; key < sinks; key += kPieceKeys) emit(key, std::min(key + kPieceKeys, sinks));
  for (int64_t key = low; key < high; key += kPieceKeys) emit(key, std::min(key + kPieceKeys, high));
}

namespace {

// Concatenated ranges as one list: entry x lies in the range whose lengths, summed up, first exceed x.
struct Concatenated {
  at::Tensor ends, base;  // [.., capacity] where each range ends in the list; what to add to an entry to get its key
  int64_t longest = 0;

  Concatenated(const at::Tensor& start, const at::Tensor& end, int64_t keys) {
    const at::Tensor first = start.clamp_min(0), lengths = (end.clamp_max(keys) - first).clamp_min_(0);
    ends = lengths.cumsum(-1);
    base = first - (ends - lengths);
    longest = ends.numel() == 0 ? 0 : ends.max().item<int64_t>();
  }
  at::Tensor keys(int64_t entry, int64_t entries) const {
    const at::Tensor x = at::arange(entry, entry + entries, at::kLong);
    std::vector<int64_t> shape = ends.sizes().vec();
    shape.back() = entries;
    const at::Tensor all = x.expand(shape).contiguous();
    const at::Tensor range = at::searchsorted(ends.contiguous(), all, false, true);
    const at::Tensor behind = range.ge(ends.size(-1));
    return (base.gather(-1, range.clamp_max(ends.size(-1) - 1)) + all).masked_fill(behind, -1);
  }
};

}  // namespace

// Keys of `entries` list entries [b|1, g|1, t, n], -1 where there is none.
at::Tensor PieceWalker::block_keys(at::Tensor entries, int64_t key_block) {
  if (key_block == 1) return entries;
  const at::Tensor inside = at::arange(key_block, at::kLong);
  return at::where(entries.ge(0).unsqueeze(-1), entries.unsqueeze(-1) * key_block + inside, -1).flatten(3);
}

void PieceWalker::listed_pieces(const RowTile& tile, const Listed& lists,
                                const std::function<void(const Piece&)>& visit) const {
  if (keys_ == 0) return;  // an empty entry has no key to point at
  const int64_t block = tile.first_row / query_block_, capacity = lists.index.size(3);
  // Where partial and full lists have different head axes, the finer one rules.
  const int64_t heads = lists.index.size(1), repeats = heads == 1 ? 1 : groups_ / heads;
  const auto of_tile = [&](const at::Tensor& t) {
    return t.narrow(2, block, tile.blocks).to(at::kLong).repeat_interleave(repeats, 1);
  };
  if (capacity == 0) return;
  const at::Tensor index = of_tile(lists.index);  // [b|1, g|1, t, capacity]
  if (lists.end.defined()) {
    const Concatenated runs(index, of_tile(lists.end), keys_);
    for (int64_t entry = 0; entry < runs.longest; entry += kPieceKeys)
      gathered_piece(tile, runs.keys(entry, std::min(kPieceKeys, runs.longest - entry)), lists.checks_rule, visit);
    return;
  }
  at::Tensor count;  // [b|1, g|1, t, 1]
  int64_t longest = capacity;
  if (lists.count.defined()) {
    count = of_tile(lists.count).unsqueeze(-1);
    longest = std::min(longest, count.numel() == 0 ? 0 : count.max().item<int64_t>());
  }
  const int64_t step = std::max<int64_t>(1, kPieceKeys / lists.key_block);
  for (int64_t entry = 0; entry < longest; entry += step) {
    const int64_t entries = std::min(step, longest - entry);
    at::Tensor keys = index.narrow(3, entry, entries);
    if (count.defined()) keys = keys.masked_fill(at::arange(entry, entry + entries, at::kLong).ge(count), -1);
    gathered_piece(tile, block_keys(keys, lists.key_block), lists.checks_rule, visit);
  }
}

// keys: [b|1, g|1, t, n], -1 or behind Lk where there is none.
void PieceWalker::gathered_piece(const RowTile& tile, const at::Tensor& keys, bool checks_rule,
                                 const std::function<void(const Piece&)>& visit) const {
  const at::Tensor legal = keys.ge(0).logical_and_(keys.lt(keys_));
  Piece piece{.first_key = 0, .keys = keys.size(3), .index = keys.masked_fill(legal.logical_not(), 0), .visible = {}};
  const auto spread = [](const at::Tensor& t) { return t.unsqueeze(3).unsqueeze(4); };  // [b, g, t, 1, 1, n]
  piece.visible = spread(legal).logical_and(row_is_real(tile));
  if (checks_rule) {
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

// The order's part of a tile [b|1, Hq|1, t * m], -1 behind the rows of the plan.
at::Tensor PieceWalker::order_of(const RowTile& tile) const {
  const int64_t wanted = tile.blocks * tile.block_rows, real = std::min(wanted, rows_ - tile.first_row);
  const at::Tensor ids = rule_.query_order
                             ? rule_.query_order->narrow(2, tile.first_row, real)
                             : at::arange(tile.first_row, tile.first_row + real, at::kLong).view({1, 1, -1});
  return at::constant_pad_nd(ids, {0, wanted - real}, -1);
}

// `rows` [x, y, Lq] as [x|b, y|g, t, y|r, m, 1], whatever where a row is not real.
at::Tensor PieceWalker::by_row(const at::Tensor& rows, const RowTile& tile) const {
  at::Tensor ids = order_of(tile).clamp_min_(0);
  const int64_t batch = std::max(rows.size(0), ids.size(0)), heads = std::max(rows.size(1), ids.size(1));
  ids = ids.expand({batch, heads, -1});
  return spread_rows(rows.expand({batch, heads, -1}).gather(2, ids), tile);
}

// [b|1, Hq|1, t * m] as [b|1, g|1, t, r|1, m, 1]
at::Tensor PieceWalker::spread_rows(const at::Tensor& rows, const RowTile& tile) const {
  return by_head(rows.unflatten(2, {tile.blocks, tile.block_rows}), 1).transpose(2, 3).unsqueeze(-1);
}

at::Tensor PieceWalker::row_ids(const RowTile& tile) const { return spread_rows(order_of(tile).clamp_min_(0), tile); }

at::Tensor PieceWalker::row_is_real(const RowTile& tile) const { return spread_rows(order_of(tile), tile).ge(0); }

// Splits the axis of length Hq or 1 into [g, r] or [1, 1].
at::Tensor PieceWalker::by_head(const at::Tensor& heads, int64_t axis) const {
  if (heads.size(axis) == 1) return heads.unsqueeze(axis);
  return heads.unflatten(axis, {groups_, heads_ / groups_});
}

// keys: indices broadcastable to [b, g, t, r, m, n]; key_documents alike, where the rule has documents.
at::Tensor PieceWalker::rule_mask(const RowTile& tile, const at::Tensor& keys, const at::Tensor& key_documents) const {
  const at::Tensor position = row_ids(tile) + query_start_;
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
    visible = visible.logical_and(by_row(rule_.query_documents->unsqueeze(1), tile).eq(key_documents));
  if (rule_.row_start) visible = visible.logical_and(keys.ge(by_row(*rule_.row_start, tile)));
  if (rule_.row_end) visible = visible.logical_and(keys.lt(by_row(*rule_.row_end, tile)));
  return visible;
}

}  // namespace foveate
