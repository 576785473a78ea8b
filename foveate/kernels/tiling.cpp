#include "foveate/kernels/tiling.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <limits>
#include <new>

#include "foveate/base/random.h"

namespace foveate::kernels {
namespace {

// Rows of a tile: many, so that what is packed or summed for a panel is shared by them, unless there would be too few
// tiles for threads to share.  By shape alone: results must not depend on the number of threads.
constexpr int kTileRows = 192, kFewestRows = 48, kGatheredRows = 384;
constexpr int kRangeRows = 1024;       // of a tile that is run bucket by bucket
constexpr int kFewestListedRows = 24;  // that share a list, to be a tile of their own

int64_t tile_rows(const Arguments& a) {
  int64_t rows = kTileRows;
  const int64_t all = a.batch * a.heads * a.rows, parts = a.keys / (kFewestPanels * kPanelKeys);
  while (rows > kFewestRows && all < kEnoughTiles * rows && (all + rows - 1) / rows * parts < kEnoughTiles) rows /= 2;
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

std::vector<HeadGroup> group_heads(const Arguments& a) {
  std::vector<HeadGroup> groups;
  const int64_t repeats = a.kv_heads > 0 ? a.heads / a.kv_heads : 1;
  for (int64_t head = 0; head < a.heads; ++head) {
    const int64_t key_head = a.key_heads ? a.key_heads[head] : head / repeats;
    const int64_t value_head = a.value_heads ? a.value_heads[head] : key_head;
    const auto same = [&](const HeadGroup& g) { return g.key_head == key_head && g.value_head == value_head; };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(group, {key_head, value_head, {}});
    group->heads.push_back(head);
  }
  return groups;
}

namespace {

// Heads of a tile stand side by side in memory, whatever group it is of.
bool side_by_side(const std::vector<HeadGroup>& groups) {
  return std::all_of(groups.begin(), groups.end(),
                     [](const HeadGroup& g) { return g.heads.back() - g.heads.front() + 1 == std::ssize(g.heads); });
}

constexpr int64_t kFewestKeysOfRuns = 2 * kPanelKeys;  // shorter blocks are gathered: few hold a whole panel

}  // namespace

Tiling::Tiling(const Arguments& a)
    : a_(a), head_groups_(group_heads(a)), panels_((a.keys + kPanelKeys - 1) / kPanelKeys) {
  const bool listed = a.query_block > 0, runs = !a.lists.empty() && a.lists[0].end;
  const bool whole = !listed || (!runs && a.key_block % kPanelKeys == 0);
  packs_ = whole || runs || a.key_block >= kFewestKeysOfRuns;
  gathers_ = !whole;
  size_t repeats = 0;  // heads of the largest group
  for (const HeadGroup& g : head_groups_) repeats = std::max(repeats, g.heads.size());
  const int64_t all_heads = int64_t(repeats);
  const bool by_head = !side_by_side(head_groups_) ||
                       std::any_of(a.lists.begin(), a.lists.end(),
                                   [&](const ListView& list) { return list.heads == a.heads && list.heads > 1; });
  make_tiles(all_heads, by_head);
  if (a.rule.key_documents) survey_documents();
}

void Tiling::make_tiles(int64_t all_heads, bool by_head) {
  const Arguments& a = a_;
  const bool listed = a.query_block > 0;
  int64_t block = listed ? a.query_block : a.rows, most = !packs_ ? kGatheredRows : listed ? kTileRows : tile_rows(a);
  bucketed_ = listed && !gathers_ && block * (by_head ? 1 : all_heads) < kFewestListedRows && block < a.rows;
  if (bucketed_) {
    most = kRangeRows;
    while (most > kTileRows && a.batch * a.heads * a.rows < kEnoughTiles * most) most /= 2;
    block *= std::max<int64_t>(most / (by_head ? 1 : all_heads) / block, 1);
  }
  const int64_t queries = std::max<int64_t>(std::min(block, most), 1);
  // Heads that share a list share its gathered keys: few tiles, of nearly equal size.
  const int64_t pieces = by_head ? all_heads : std::min((all_heads * queries + most - 1) / most, all_heads);
  const int64_t heads = pieces > 0 ? (all_heads + pieces - 1) / pieces : 1;
  for (int64_t from = 0; from < a.rows; from += block)
    for (int64_t query = from; query < std::min(from + block, a.rows); query += queries)
      for (int64_t head = 0; head < all_heads; head += heads) {
        const int64_t end = std::min({query + queries, from + block, a.rows});
        tiles_.push_back({head, query, int(std::min(heads, all_heads - head)), int(end - query)});
        largest_rows_ = std::max(largest_rows_, tiles_.back().rows());
      }
}

int64_t Tiling::parts() const {
  const int64_t tiles = groups() * std::ssize(tiles_);
  if (gathers_ || bucketed_ || tiles == 0) return 1;
  return std::clamp<int64_t>(std::min(kEnoughTiles / tiles, panels_ / kFewestPanels), 1, kEnoughTiles);
}

int Tiling::kernel_rows() const {
  return bucketed_ ? std::min(largest_rows_, std::max(kTileRows, tiles_[0].heads)) : largest_rows_;
}

void Tiling::survey_documents() {
  const Arguments& a = a_;
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
  const size_t heads = head_groups_.front().heads.size();
  const auto is_whole = [&](const HeadGroup& group) { return group.heads.size() == heads; };
  if (!std::all_of(head_groups_.begin(), head_groups_.end(), is_whole)) return false;  // some tiles are empty
  return a_.lists.empty() && !a_.query_order.data && !r.head_window && !r.key_lengths && !r.key_documents &&
         !r.row_start.data && !r.row_end.data;
}

TileShape Tiling::tile(int64_t group, int64_t index) const {
  TileShape shape = tiles_[size_t(index)];
  const int64_t heads = std::ssize(head_group(group).heads);
  shape.heads = int(std::clamp<int64_t>(heads - shape.head, 0, shape.heads));
  return shape;
}

int64_t Tiling::query(int64_t group, const TileShape& tile, int row) const {
  const int64_t n = tile.query + row % tile.queries;
  const RowNumbers& order = a_.query_order;
  if (!order.data) return n;
  return order.data[batch_of(group) * order.batch + query_head(group, tile.head + row / tile.queries) * order.head + n];
}

int64_t Tiling::place(int64_t group, const TileShape& tile, int row) const {
  const int64_t head = query_head(group, tile.head + row / tile.queries);
  return (batch_of(group) * a_.heads + head) * a_.queries + query(group, tile, row);
}

// Adds what a row needs; for no query (-1) a row that sees nothing.
void Tiling::add_row(int64_t batch, int64_t head, int64_t left, int64_t query, TileRows& rows) const {
  const RuleView& rule = a_.rule;
  const int64_t id = std::max<int64_t>(query, 0), position = rule.query_start + id;
  if (rule.query_documents) rows.documents.push_back(rule.query_documents[batch * a_.queries + id]);
  if (a_.score.adds() || a_.wants_places) rows.query_ids.push_back(int32_t(id));
  if (a_.score.slopes || a_.wants_places || a_.score.landmark_block) rows.positions.push_back(int32_t(position));
  if (a_.score.drop_below)
    for (const uint32_t word : dropout_row(a_.dropout_seed, batch, head, position)) rows.drop_words.push_back(word);
  if (query < 0) return rows.bounds.push_back({0, 0, -1});
  int64_t high = std::min(position + rule.right + 1, a_.keys), floor = 0;
  if (rule.key_lengths) high = std::min(high, rule.key_lengths[batch]);
  const auto number = [&](const RowNumbers& n) { return n.data[batch * n.batch + head * n.head + query]; };
  if (rule.row_start.data) floor = number(rule.row_start);
  if (rule.row_end.data) high = std::min(high, number(rule.row_end));
  rows.bounds.push_back({clamp_key(floor, a_.keys), clamp_key(position - left, a_.keys), clamp_key(high, a_.keys)});
}

void TileRows::clear() { bounds.clear(), documents.clear(), query_ids.clear(), positions.clear(), drop_words.clear(); }

void TileRows::summarise() {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  bool any = false;
  least = {kMost, kMost, kMost}, greatest = {0, 0, 0};
  for (const RowBounds& b : bounds) {
    if (b.high < 0) continue;
    any = true;
    least = {std::min(least.floor, b.floor), std::min(least.low, b.low), std::min(least.high, b.high)};
    greatest = {std::max(greatest.floor, b.floor), std::max(greatest.low, b.low), std::max(greatest.high, b.high)};
  }
  if (!any) least = {0, 0, 0};
  if (documents.empty()) return;
  const auto [low, high] = std::minmax_element(documents.begin(), documents.end());
  lowest_document = *low, highest_document = *high;
}

void Tiling::rows_of(int64_t group, const TileShape& tile, TileRows& rows) const {
  const RuleView& rule = a_.rule;
  rows.clear();
  rows.bounds.reserve(size_t(tile.rows()));
  for (int head = 0; head < tile.heads; ++head) {
    const int64_t q_head = query_head(group, tile.head + head);
    int64_t left = rule.left;
    if (rule.head_window && rule.head_window[q_head] >= 0) left = std::min(left, rule.head_window[q_head]);
    for (int i = 0; i < tile.queries; ++i) {
      const int64_t id = a_.query_order.data ? query(group, tile, head * tile.queries + i) : tile.query + i;
      add_row(batch_of(group), q_head, left, id, rows);
    }
  }
  rows.summarise();
}

void Tiling::visit(int64_t group, const TileShape& tile, const TileRows& rows, int64_t first, int64_t end,
                   std::vector<PanelRef>& to) const {
  to.clear();
  if (tile.rows() == 0) return;
  if (a_.lists.empty()) return visit_rule(rows, batch_of(group), first, end, to);
  if (!bucketed_) {
    for (const ListView& list : a_.lists) visit_list(list, group, tile, rows, first, end, to);
    return;
  }
  std::vector<PanelRef> refs;
  for (size_t list = 0; list < a_.lists.size(); ++list)
    for (const Bucket& bucket : buckets(list, group, tile, first, end)) {
      visit_block(list, group, bucket.block, rows, first, end, refs);
      to.insert(to.end(), refs.begin(), refs.end());
    }
}

std::vector<Bucket> Tiling::buckets(size_t number, int64_t group, const TileShape& tile, int64_t first,
                                    int64_t end) const {
  const ListView& list = a_.lists[number];
  const int64_t each = a_.key_block / kPanelKeys, low = first / each, high = (end + each - 1) / each;
  if (tile.rows() == 0 || high <= low) return {};
  const auto for_entries = [&](const auto& use) {
    for (int64_t from = 0; from < tile.queries; from += a_.query_block) {
      const int64_t row = list_row(list, group, tile, tile.query + from);
      const int64_t count = std::clamp<int64_t>(list.count[row], 0, list.capacity);
      const int64_t until = std::min<int64_t>(from + a_.query_block, tile.queries);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t block = list.index[row * list.capacity + i];
        if (block >= low && block < high) use(size_t(block - low), int32_t(from), int32_t(until));
      }
    }
  };
  std::vector<int32_t> sizes(size_t(high - low));
  for_entries([&](size_t block, int32_t from, int32_t until) { sizes[block] += until - from; });
  std::vector<Bucket> all;
  std::vector<int32_t> place(sizes.size());
  for (size_t block = 0; block < sizes.size(); ++block) {
    if (sizes[block] == 0) continue;
    place[block] = int32_t(all.size());
    all.push_back({low + int64_t(block), {}});
    all.back().queries.reserve(size_t(sizes[block]));
  }
  for_entries([&](size_t block, int32_t from, int32_t until) {
    for (int32_t query = from; query < until; ++query) all[size_t(place[block])].queries.push_back(query);
  });
  return all;
}

void Tiling::visit_block(size_t list, int64_t group, int64_t block, const TileRows& rows, int64_t first, int64_t end,
                         std::vector<PanelRef>& to) const {
  to.clear();
  const int64_t each = a_.key_block / kPanelKeys, last = std::min({end, (block + 1) * each, panels_});
  for (int64_t panel = std::max(first, block * each); panel < last; ++panel)
    add(panel, rows, batch_of(group), a_.lists[list].checks_rule, to);
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

int64_t Tiling::list_row(const ListView& list, int64_t group, const TileShape& tile, int64_t query) const {
  int64_t head = 0;
  if (list.heads == a_.heads)
    head = query_head(group, tile.head);
  else if (list.heads == a_.kv_heads)
    head = head_group(group).key_head;
  return batch_of(group) * list.batch + head * list.head + query / a_.query_block;
}

template <class Use>
void Tiling::for_spans(const ListView& list, int64_t row, const Use& use) const {
  const int64_t count = list.count ? std::clamp<int64_t>(list.count[row], 0, list.capacity) : list.capacity;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t entry = list.index[row * list.capacity + i];
    if (entry < 0 && !list.end) continue;
    const int64_t begin = list.end ? std::max<int64_t>(entry, 0) : entry * a_.key_block;
    const int64_t end = std::min<int64_t>(list.end ? list.end[row * list.capacity + i] : begin + a_.key_block, a_.keys);
    if (begin < end) use(begin, end);
  }
}

std::pair<int64_t, int64_t> Tiling::whole_panels(int64_t begin, int64_t end) const {
  if (!packs_) return {0, 0};
  const int64_t first = (begin + kPanelKeys - 1) / kPanelKeys, last = end == a_.keys ? panels_ : end / kPanelKeys;
  return {first, std::max(first, last)};
}

void Tiling::visit_list(const ListView& list, int64_t group, const TileShape& tile, const TileRows& rows, int64_t first,
                        int64_t end, std::vector<PanelRef>& to) const {
  for_spans(list, list_row(list, group, tile, tile.query), [&](int64_t from, int64_t until) {
    if (until - from < kPanelKeys && until < a_.keys) return;  // holds no whole panel: single keys, mostly
    const auto [begin, stop] = whole_panels(from, until);
    for (int64_t panel = std::max(first, begin); panel < std::min(end, stop); ++panel)
      add(panel, rows, batch_of(group), list.checks_rule, to);
  });
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

template <class Use>
void Tiling::for_gathered(const ListView& list, int64_t group, const TileShape& tile, const Use& use) const {
  for_spans(list, list_row(list, group, tile, tile.query), [&](int64_t begin, int64_t end) {
    if (end - begin < kPanelKeys && end < a_.keys) return use(begin, end);
    const auto [first, last] = whole_panels(begin, end);
    if (first == last) return use(begin, end);
    use(begin, first * kPanelKeys);
    use(last * kPanelKeys, end);
  });
}

int64_t Tiling::gathered_panels(int64_t group, const TileShape& tile) const {
  int64_t panels = 0;
  for (const ListView& list : a_.lists) {
    int64_t keys = 0;
    for_gathered(list, group, tile, [&](int64_t begin, int64_t end) { keys += std::max<int64_t>(end - begin, 0); });
    panels += (keys + kPanelKeys - 1) / kPanelKeys;
  }
  return panels;
}

std::vector<Gathered> Tiling::gather(int64_t group, const TileShape& tile) const {
  std::vector<Gathered> lists;
  if (tile.rows() == 0) return lists;
  for (const ListView& list : a_.lists) {
    Gathered g{{}, list.checks_rule ? Check::rule : Check::end};
    for_gathered(list, group, tile, [&](int64_t begin, int64_t end) {
      for (int64_t key = begin; key < end; ++key) g.ids.push_back(int32_t(key));
    });
    lists.push_back(std::move(g));
  }
  return lists;
}

const void* Tiling::row_at(const View& view, int64_t group, int64_t head, int64_t row) const {
  return static_cast<const char*>(view.data) +
         (batch_of(group) * view.batch + head * view.head + row * view.row) * int64_t(bytes_of(a_.type));
}

const void* Tiling::key_at(const View& view, int64_t group, int64_t head, int64_t key) const {
  const int64_t batch = batch_of(group);
  const int64_t outer = a_.pages ? a_.pages[batch * a_.page_count + key / a_.page_size] : batch;
  const int64_t row = a_.pages ? key % a_.page_size : key;
  return static_cast<const char*>(view.data) +
         (outer * view.batch + head * view.head + row * view.row) * int64_t(bytes_of(a_.key_type()));
}

const void* Tiling::query_row(const View& view, int64_t group, const TileShape& tile, int row) const {
  const int64_t id = query(group, tile, row);
  return id < 0 ? nullptr : row_at(view, group, query_head(group, tile.head + row / tile.queries), id);
}

void Tiling::key_rows(int64_t group, const int32_t* ids, int count, const void** keys, const void** values) const {
  if (a_.pages) {
    for (int i = 0; i < count; ++i) keys[i] = key_row(group, ids[i]), values[i] = value_row(group, ids[i]);
    return;
  }
  const auto *key = static_cast<const char*>(key_row(group, 0)), *value = static_cast<const char*>(value_row(group, 0));
  const int64_t bytes = int64_t(bytes_of(a_.key_type())), key_step = a_.k.row * bytes, value_step = a_.v.row * bytes;
  for (int i = 0; i < count; ++i) keys[i] = key + ids[i] * key_step, values[i] = value + ids[i] * value_step;
}

void Tiling::panel_rows(int64_t group, int64_t panel, const void** keys, const void** values) const {
  const int64_t first = panel * kPanelKeys, bytes = int64_t(bytes_of(a_.key_type()));
  const int count = int(std::min<int64_t>(kPanelKeys, a_.keys - first));
  for (int done = 0; done < count;) {  // rows that stand side by side: all of a panel, or what is on one page
    const int64_t on_page = a_.pages ? a_.page_size - (first + done) % a_.page_size : count;
    const int end = int(std::min<int64_t>(count, done + on_page));
    const auto *key = static_cast<const char*>(key_row(group, first + done)),
               *value = static_cast<const char*>(value_row(group, first + done));
    for (; done < end; ++done, key += a_.k.row * bytes, value += a_.v.row * bytes)
      keys[done] = key, values[done] = value;
  }
  std::fill(keys + count, keys + kPanelKeys, nullptr);
  std::fill(values + count, values + kPanelKeys, nullptr);
}

void* Tiling::gradient_row(const View& view, DType type, int64_t group, int64_t key) const {
  const int64_t head = group % int64_t(head_groups_.size());
  return static_cast<char*>(view.data) +
         (batch_of(group) * view.batch + head * view.head + key * view.row) * int64_t(bytes_of(type));
}

}  // namespace foveate::kernels
