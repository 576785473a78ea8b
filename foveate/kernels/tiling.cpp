#include "foveate/kernels/tiling.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>

#include "foveate/base/random.h"

namespace foveate::kernels {
namespace {

// Rows of a tile: many, so that what is packed or summed for a panel is shared by them, unless there would be too few
// tiles for threads to share.  By shape alone: results must not depend on the number of threads.
constexpr int kTileRows = 192, kFewestRows = 48, kGatheredRows = 384;
constexpr int64_t kEnoughTiles = 16;

int64_t tile_rows(const Arguments& a) {
  int64_t rows = kTileRows;
  while (rows > kFewestRows && a.batch * a.heads * a.queries < kEnoughTiles * rows) rows /= 2;
  return rows;
}

int32_t clamp_key(int64_t key, int64_t keys) { return int32_t(std::clamp<int64_t>(key, 0, keys)); }

}  // namespace

Floats64::Floats64(int64_t count) {
  if (count <= 0) return;
  constexpr size_t kLine = 64, kLargePage = size_t{2} << 20;
  const size_t bytes = size_t(count) * 4, alignment = bytes >= kLargePage ? kLargePage : kLine;
  data_.reset(static_cast<float*>(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kLargePage) ::madvise(data_.get(), bytes, MADV_HUGEPAGE);  // a wish: refusal costs only time
#endif
}

Tiling::Tiling(const Arguments& a)
    : a_(a),
      repeats_(a.heads / std::max<int64_t>(a.kv_heads, 1)),
      panels_((a.keys + kPanelKeys - 1) / kPanelKeys),
      gathers_(a.query_block > 0 && a.key_block % kPanelKeys != 0) {
  const bool by_head = std::any_of(a.lists.begin(), a.lists.end(), [&](const ListView& list) {
    return list.heads == a.heads && list.heads != a.kv_heads;
  });
  const int64_t block = a.query_block > 0 ? a.query_block : a.queries;
  const int64_t most = gathers_ ? kGatheredRows : a.query_block > 0 ? kTileRows : tile_rows(a);
  const int64_t queries = std::max<int64_t>(std::min(block, most), 1);
  // Heads that share a list share its gathered keys: few tiles, of nearly equal size.
  const int64_t pieces = by_head ? repeats_ : std::min((repeats_ * queries + most - 1) / most, repeats_);
  const int64_t heads = pieces > 0 ? (repeats_ + pieces - 1) / pieces : 1;
  for (int64_t from = 0; from < a.queries; from += block)
    for (int64_t query = from; query < std::min(from + block, a.queries); query += queries)
      for (int64_t head = 0; head < repeats_; head += heads) {
        const int64_t end = std::min({query + queries, from + block, a.queries});
        tiles_.push_back({head, query, int(std::min(heads, repeats_ - head)), int(end - query)});
        largest_rows_ = std::max(largest_rows_, tiles_.back().rows());
      }
  if (!a.rule.key_documents) return;
  panel_documents_.resize(size_t(a.batch * panels_ * 2));
  for (int64_t batch = 0; batch < a.batch; ++batch)
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int32_t* begin = a.rule.key_documents + batch * a.keys + panel * kPanelKeys;
      const auto [low, high] =
          std::minmax_element(begin, begin + std::min<int64_t>(kPanelKeys, a.keys - panel * kPanelKeys));
      panel_documents_[size_t((batch * panels_ + panel) * 2)] = *low;
      panel_documents_[size_t((batch * panels_ + panel) * 2 + 1)] = *high;
    }
}

bool Tiling::groups_agree() const {
  const RuleView& r = a_.rule;
  return a_.lists.empty() && !r.head_window && !r.key_lengths && !r.key_documents && !r.row_start.data &&
         !r.row_end.data;
}

TileRows Tiling::rows_of(int64_t group, const TileShape& tile) const {
  const RuleView& rule = a_.rule;
  const int64_t batch = batch_of(group);
  TileRows rows;
  rows.bounds.reserve(size_t(tile.rows()));
  for (int64_t head = tile.head; head < tile.head + tile.heads; ++head) {
    const int64_t q_head = query_head(group, head);
    int64_t left = rule.left;
    if (rule.head_window && rule.head_window[q_head] >= 0) left = std::min(left, rule.head_window[q_head]);
    for (int64_t query = tile.query; query < tile.query + tile.queries; ++query) {
      const int64_t position = rule.query_start + query;
      int64_t high = std::min(position + rule.right + 1, a_.keys), floor = 0;
      if (rule.key_lengths) high = std::min(high, rule.key_lengths[batch]);
      const auto number = [&](const RowNumbers& n) { return n.data[batch * n.batch + q_head * n.head + query]; };
      if (rule.row_start.data) floor = number(rule.row_start);
      if (rule.row_end.data) high = std::min(high, number(rule.row_end));
      rows.bounds.push_back({clamp_key(floor, a_.keys), clamp_key(position - left, a_.keys), clamp_key(high, a_.keys)});
      if (rule.query_documents) rows.documents.push_back(rule.query_documents[batch * a_.queries + query]);
      if (a_.score.adds()) rows.query_ids.push_back(int32_t(query));
      if (a_.score.slopes) rows.positions.push_back(int32_t(position));
      if (a_.score.drop_below)
        for (const uint32_t word : dropout_row(a_.dropout_seed, batch, q_head, position))
          rows.drop_words.push_back(word);
    }
  }
  rows.least = rows.greatest = rows.bounds.front();
  for (const RowBounds& b : rows.bounds) {
    rows.least = {std::min(rows.least.floor, b.floor), std::min(rows.least.low, b.low),
                  std::min(rows.least.high, b.high)};
    rows.greatest = {std::max(rows.greatest.floor, b.floor), std::max(rows.greatest.low, b.low),
                     std::max(rows.greatest.high, b.high)};
  }
  if (!rows.documents.empty()) {
    const auto [low, high] = std::minmax_element(rows.documents.begin(), rows.documents.end());
    rows.lowest_document = *low, rows.highest_document = *high;
  }
  return rows;
}

void Tiling::visit(int64_t group, const TileShape& tile, const TileRows& rows, int64_t first, int64_t end,
                   std::vector<PanelRef>& to) const {
  to.clear();
  if (a_.lists.empty()) return visit_rule(rows, batch_of(group), first, end, to);
  for (const ListView& list : a_.lists) visit_list(list, group, tile, rows, first, end, to);
}

void Tiling::visit_rule(const TileRows& rows, int64_t batch, int64_t first, int64_t end,
                        std::vector<PanelRef>& to) const {
  const int64_t floor = rows.least.floor, high = rows.greatest.high, low = std::max(rows.least.low, rows.least.floor);
  if (high <= floor) return;
  const int64_t sinks = std::min(a_.rule.sinks, high);
  const int64_t sink_end = sinks > floor ? (sinks + kPanelKeys - 1) / kPanelKeys : 0;
  const int64_t low_panel = low / kPanelKeys, high_panel = (high + kPanelKeys - 1) / kPanelKeys;
  for (int64_t panel = std::max(first, floor / kPanelKeys); panel < std::min(end, std::min(sink_end, low_panel));
       ++panel)
    add(panel, rows, batch, true, to);
  for (int64_t panel = std::max(first, low_panel); panel < std::min(end, high_panel); ++panel)
    add(panel, rows, batch, true, to);
}

int64_t Tiling::list_row(const ListView& list, int64_t group, const TileShape& tile) const {
  int64_t head = 0;
  if (list.heads == a_.heads)
    head = query_head(group, tile.head);
  else if (list.heads == a_.kv_heads)
    head = group % a_.kv_heads;
  return batch_of(group) * list.batch + head * list.head + tile.query / a_.query_block;
}

void Tiling::visit_list(const ListView& list, int64_t group, const TileShape& tile, const TileRows& rows, int64_t first,
                        int64_t end, std::vector<PanelRef>& to) const {
  const int64_t row = list_row(list, group, tile), each = a_.key_block / kPanelKeys;
  const int64_t count = std::clamp<int64_t>(list.count[row], 0, list.capacity);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = list.index[row * list.capacity + i];
    if (block < 0) continue;
    const int64_t begin = std::max(first, block * each), stop = std::min({end, (block + 1) * each, panels_});
    for (int64_t panel = begin; panel < stop; ++panel) add(panel, rows, batch_of(group), list.checks_rule, to);
  }
}

// Adds a panel unless no row of the tile sees a key of it; drops checks that every pair passes.
void Tiling::add(int64_t panel, const TileRows& rows, int64_t batch, bool rule, std::vector<PanelRef>& to) const {
  const int64_t first = panel * kPanelKeys, end = first + kPanelKeys;
  if (!rule) {
    to.push_back({int32_t(panel), end > a_.keys ? Check::end : Check::none, true});
    return;
  }
  bool same = true;
  if (a_.rule.key_documents) {
    const int32_t* range = &panel_documents_[size_t((batch * panels_ + panel) * 2)];
    if (range[1] < rows.lowest_document || range[0] > rows.highest_document) return;
    same = range[0] == range[1] && rows.lowest_document == rows.highest_document;
  }
  const RowBounds &least = rows.least, &greatest = rows.greatest;
  const bool any = first < greatest.high && end > least.floor && (end > least.low || first < a_.rule.sinks);
  const bool all =
      same && first >= greatest.floor && end <= least.high && (first >= greatest.low || end <= a_.rule.sinks);
  if (any) to.push_back({int32_t(panel), all ? Check::none : Check::rule, same});
}

std::vector<Gathered> Tiling::gather(int64_t group, const TileShape& tile) const {
  std::vector<Gathered> lists;
  for (const ListView& list : a_.lists) {
    const int64_t row = list_row(list, group, tile);
    const int64_t count = list.count ? std::clamp<int64_t>(list.count[row], 0, list.capacity) : list.capacity;
    Gathered g{{}, list.checks_rule ? Check::rule : Check::end};
    g.ids.reserve(size_t(count * a_.key_block));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = list.index[row * list.capacity + i];
      if (block < 0) continue;
      const int64_t end = std::min((block + 1) * a_.key_block, a_.keys);
      for (int64_t key = block * a_.key_block; key < end; ++key) g.ids.push_back(int32_t(key));
    }
    lists.push_back(std::move(g));
  }
  return lists;
}

const void* Tiling::query_row(const View& view, int64_t group, const TileShape& tile, int row) const {
  const int64_t head = query_head(group, tile.head + row / tile.queries), query = tile.query + row % tile.queries;
  return static_cast<const char*>(view.data) +
         (batch_of(group) * view.batch + head * view.head + query * view.row) * int64_t(bytes_of(a_.type));
}

const void* Tiling::key_row(const View& view, int64_t group, int64_t key) const {
  return static_cast<const char*>(view.data) +
         (batch_of(group) * view.batch + group % a_.kv_heads * view.head + key * view.row) * int64_t(bytes_of(a_.type));
}

}  // namespace foveate::kernels
