#include "foveate/kernels/workspace.h"

#include <algorithm>

namespace foveate::kernels {

Survey::Survey(const Tiling& tiling) : tiling_(tiling) {
  if (!tiling.packs()) return;
  const int64_t panels = tiling.panels();
  needed_.assign(size_t(tiling.groups() * panels), 0);
  std::vector<PanelRef> refs;
  TileRows rows;
  int64_t checked_in_first = 0;
  for (int64_t group = 0; group < tiling.groups(); ++group) {
    if (group > 0 && tiling.groups_agree()) {
      std::copy_n(needed_.begin(), panels, needed_.begin() + group * panels);
      for (int64_t i = 0; i < tiling.tiles(); ++i) tile_visits_.push_back(tile_visits_[size_t(i)]);
      checked_ += checked_in_first;
      continue;
    }
    for (int64_t i = 0; i < tiling.tiles(); ++i) {
      const TileShape tile = tiling.tile(group, i);
      tiling.rows_of(group, tile, rows);
      tiling.visit(group, tile, rows, 0, panels, refs);
      for (const PanelRef& ref : refs) {
        needed_[size_t(group * panels + ref.panel)] = 1;
        checked_ += ref.check != Check::none;
      }
      tile_visits_.push_back(int32_t(refs.size()));
    }
    if (group == 0) checked_in_first = checked_;
  }
  for (const int32_t visits : tile_visits_) visits_ += visits;
}

bool Survey::shares(int threads, int64_t parts) const {
  return visits_ > std::count(needed_.begin(), needed_.end(), 1) ||
         tiling_.groups() * tiling_.tiles() * parts < threads;
}

namespace {

// Query rows up to which reading a key as it is costs less than packing it: sums over lanes against a shared panel.
int few_rows(const Arguments& a, const Steps& steps) {
  if (a.keys <= kPanelKeys / 2) return 24;
  return steps.step == 2 ? 8 : 16;
}

}  // namespace

PackedKeys::Use PackedKeys::forward_use(const Arguments& a, const Steps& steps, const Tiling& tiling) {
  const bool few = tiling.largest_rows() <= few_rows(a, steps) && !tiling.bucketed();
  return few ? Use::rows : Use::forward;
}

int64_t PackedKeys::floats_of_panel(const Steps& s, const Arguments& a, Use use) {
  const int64_t keys = by_key_units(s.depth);
  if (use == Use::rows) return 0;
  if (use == Use::forward) return keys + by_dim_units(s.keys, a.value_dim);
  return keys + by_key_units(s.value_depth) + by_dim_units(s.keys, a.dim);
}

void PackedKeys::point(const Steps& s, Use use, const float* at, Panel& panel) {
  panel.k = at;
  panel.v = at + by_key_units(s.depth);
  if (use == Use::backward) panel.k_by_dim = panel.v + by_key_units(s.value_depth);
}

bool PackedKeys::pack(const Table& table, const Arguments& a, const Steps& s, Use use, const void* const* keys,
                      const void* const* values, int count, const void* const* next, float* to) {
  table.pack_by_key(keys, count, a.dim, a.key_type(), s.step, to, values);
  to += by_key_units(s.depth);
  if (use == Use::forward)
    return table.pack_by_dim(values, count, kPanelKeys, a.value_dim, a.key_type(), s.step, to, next);
  table.pack_by_key(values, count, a.value_dim, a.key_type(), s.step, to, nullptr);
  table.pack_by_dim(keys, count, kPanelKeys, a.dim, a.key_type(), s.step, to + by_key_units(s.value_depth), next);
  return false;
}

PackedKeys::PackedKeys(const Table& table, const Arguments& a, const Tiling& tiling, Use use, const Pool& pool)
    : table_(table),
      a_(a),
      tiling_(tiling),
      steps_(table, a),
      use_(use),
      floats_((floats_of_panel(steps_, a, use) + 15) / 16 * 16),
      survey_(tiling),
      shared_(use != Use::rows && tiling.packs() &&
              survey_.shares(pool.threads, use == Use::backward ? 1 : tiling.parts())) {
  if (!shared_) return;
  const int64_t panels = tiling.panels(), items = tiling.groups() * panels;
  bad_.assign(size_t(items), 0);
  data_ = Floats64(items * floats_);
  run_queue(pool, items, [&](int64_t item, int) {
    if (survey_.needs(item)) bad_[size_t(item)] = pack(item / panels, item % panels, data_.data() + item * floats_);
  });
}

bool PackedKeys::pack(int64_t number, const void* const* keys, const void* const* values, const void* const* next,
                      float* to) const {
  const int count = int(std::min<int64_t>((a_.keys - number * kPanelKeys + 15) / 16 * 16, kPanelKeys));
  return pack(table_, a_, steps_, use_, keys, values, count, next, to);
}

bool PackedKeys::pack(int64_t group, int64_t number, float* to) const {
  const void *keys[kPanelKeys], *values[kPanelKeys], *next_keys[kPanelKeys], *next_values[kPanelKeys];
  tiling_.panel_rows(group, number, keys, values);
  const bool has_next = number + 1 < tiling_.panels();
  if (has_next) tiling_.panel_rows(group, number + 1, next_keys, next_values);
  return pack(number, keys, values, has_next ? next_keys : nullptr, to);
}

Strip::Strip(const Table& table, const Arguments& a, const Tiling& tiling, PackedKeys::Use use, bool packs_panels)
    : table_(table),
      a_(a),
      tiling_(tiling),
      steps_(table, a),
      use_(use),
      floats_((PackedKeys::floats_of_panel(steps_, a, use) + 15) / 16 * 16),
      data_(packs_panels || tiling.gathers() ? floats_ * kStripPanels : 0) {}

// Rows of n panels, of `count` that a tile visits.  Where nothing depends on the order of keys, parts of the strip take
// turns: neighbours in the order then stand far apart, and memory gives a fifth more than to one stream of reads.
void Strip::order_rows(int64_t group, const PanelRef* refs, int n, int64_t count) {
  const bool any_order = use_ != PackedKeys::Use::backward && !a_.wants_places && !a_.score.uses_places();
  const bool in_turns = any_order && std::all_of(refs, refs + n, [&](const PanelRef& ref) {
                          return ref.check == Check::none && (!a_.rule.key_documents || ref.same_document);
                        });
  const int keys = n * kPanelKeys, parts = !in_turns ? 1 : a_.key_type() == DType::q8 ? 2 * n : n, part = keys / parts;
  const void *of_panel[2][kPanelKeys], **k = rows_, **v = rows_ + keys;
  for (int i = 0; i < keys; ++i) {
    if (i % kPanelKeys == 0) tiling_.panel_rows(group, refs[i / kPanelKeys].panel, of_panel[0], of_panel[1]);
    const int place = i % part * parts + i / part;
    k[place] = of_panel[0][i % kPanelKeys], v[place] = of_panel[1][i % kPanelKeys];
  }
  for (int place = 0; place < kMostAhead; ++place) {  // of the next strip, as if it were like this one
    const int i = place % parts * part + place / parts, panel = n + i / kPanelKeys;
    const int64_t key = panel < count ? int64_t{refs[panel].panel} * kPanelKeys + i % kPanelKeys : a_.keys;
    rows_[2 * keys + place] = key < a_.keys ? tiling_.key_row(group, key) : nullptr;
  }
}

int Strip::put(const PackedKeys& packed, int64_t group, const PanelRef* refs, int64_t count) {
  const int n = int(std::min<int64_t>(count, kStripPanels));
  if (!packed.shared()) order_rows(group, refs, n, count);
  for (int i = 0; i < n; ++i) {
    const void **keys = rows_ + i * kPanelKeys, **values = rows_ + (n + i) * kPanelKeys;
    Panel& panel = panels_[i];
    panel = Panel{};
    bool bad = false;
    if (use_ == PackedKeys::Use::rows) {
      panel.keys = keys, panel.values = values;
    } else if (packed.shared()) {
      const int64_t item = group * tiling_.panels() + refs[i].panel;
      PackedKeys::point(steps_, use_, packed.data_.data() + item * floats_, panel);
      bad = packed.bad_[size_t(item)];
      if (bad) tiling_.panel_rows(group, refs[i].panel, keys, values);
    } else {
      float* at = data_.data() + i * floats_;
      const void** next = i + 1 < n ? keys + kPanelKeys : rows_ + 2 * n * kPanelKeys;
      bad = packed.pack(refs[i].panel, keys, values, next, at);
      PackedKeys::point(steps_, use_, at, panel);
    }
    panel.first = refs[i].panel * kPanelKeys;
    panel.check = refs[i].check;
    if (a_.rule.key_documents && !refs[i].same_document) {
      const int64_t keys = std::min<int64_t>(kPanelKeys, a_.keys - panel.first);
      int32_t* to = documents_ + i * kPanelKeys;
      std::copy_n(a_.rule.key_documents + tiling_.batch_of(group) * a_.keys + panel.first, keys, to);
      std::fill(to + keys, to + kPanelKeys, -1);
      panel.documents = to;
    }
    if (bad) panel.bad_values = values;
  }
  return n;
}

// Whether every row sees every one of 64 gathered keys.
bool Strip::all_visible(const TileRows& rows, const int32_t* ids, Check check) const {
  if (check == Check::end) return true;  // gathered keys are legal
  if (a_.rule.key_documents) return false;
  const auto [low, high] = std::minmax_element(ids, ids + kPanelKeys);
  return *low >= rows.greatest.floor && *high < rows.least.high && (*low >= rows.greatest.low || *high < a_.rule.sinks);
}

int Strip::gather(int64_t group, const TileRows& rows, const Gathered& list, size_t first) {
  const size_t ids = std::min(list.ids.size() - first, size_t{kStripPanels} * kPanelKeys);
  const int n = int((ids + kPanelKeys - 1) / kPanelKeys);
  const int32_t* documents =
      a_.rule.key_documents ? a_.rule.key_documents + tiling_.batch_of(group) * a_.keys : nullptr;
  for (size_t i = 0; i < kMostAhead; ++i) {
    const size_t at = first + ids + i;
    rows_[2 * n * kPanelKeys + int(i)] = at < list.ids.size() ? tiling_.key_row(group, list.ids[at]) : nullptr;
  }
  for (int i = 0; i < n; ++i) {
    const void **keys = rows_ + i * kPanelKeys, **values = rows_ + (n + i) * kPanelKeys;
    const size_t at = size_t(i) * kPanelKeys;
    const int real = int(std::min(ids - at, size_t{kPanelKeys}));
    int32_t* panel_ids = std::copy_n(list.ids.data() + first + at, real, ids_ + at);
    std::fill(panel_ids, ids_ + at + kPanelKeys, std::numeric_limits<int32_t>::max());
    if (documents)
      for (int j = 0; j < kPanelKeys; ++j) documents_[at + size_t(j)] = j < real ? documents[ids_[at + size_t(j)]] : -1;
    tiling_.key_rows(group, ids_ + at, real, keys, values);
    std::fill(keys + real, keys + kPanelKeys, nullptr);
    std::fill(values + real, values + kPanelKeys, nullptr);
    Panel& panel = panels_[i];
    panel = Panel{};
    bool bad = false;
    if (use_ == PackedKeys::Use::rows) {
      panel.keys = keys, panel.values = values;
    } else {
      float* to = data_.data() + i * floats_;
      bad = PackedKeys::pack(table_, a_, steps_, use_, keys, values, kPanelKeys, nullptr, to);
      PackedKeys::point(steps_, use_, to, panel);
    }
    panel.ids = ids_ + i * kPanelKeys;
    const bool full = size_t(i + 1) * kPanelKeys <= ids;
    panel.check = full && all_visible(rows, panel.ids, list.check) ? Check::none : list.check;
    if (documents && panel.check == Check::rule) panel.documents = documents_ + i * kPanelKeys;
    if (bad) panel.bad_values = values;
  }
  return n;
}

Tile make_tile(const Arguments& a, const Steps& steps, const Tiling& tiling, int64_t group, const TileShape& shape,
               const TileRows& rows) {
  Tile t;
  t.rows = shape.rows();
  t.queries = shape.queries;
  t.depth = steps.depth;
  t.value_depth = steps.value_depth;
  t.dim = a.dim, t.value_dim = a.value_dim;
  t.bounds = rows.bounds.data();
  t.documents = rows.documents.empty() ? nullptr : rows.documents.data();
  t.sinks = int32_t(std::clamp<int64_t>(a.rule.sinks, 0, a.keys));
  t.keys = int32_t(a.keys);
  t.key_type = a.key_type();
  t.score = a.score;
  t.query_ids = rows.query_ids.data();
  t.positions = rows.positions.data();
  t.drop_words = rows.drop_words.data();
  const int64_t batch = tiling.batch_of(group), head = tiling.query_head(group, shape.head);
  if (a.score.bias)
    t.score.bias += (batch * a.bias_batch + head * a.score.bias_head) * int64_t(bytes_of(a.score.bias_type));
  if (a.score.slopes) t.score.slopes += head;
  if (a.score.relative.logits) t.score.relative.logits += batch * a.relative_batch + head * a.score.relative.head;
  return t;
}

void point_rows(const Tiling& tiling, const View& view, DType type, int64_t group, const TileShape& shape,
                const void** to) {
  const auto bytes = int64_t(bytes_of(type));
  const char* start = static_cast<const char*>(view.data) + tiling.batch_of(group) * view.batch * bytes;
  std::fill_n(to, shape.rows(), nullptr);
  tiling.for_queries(group, shape, [&](int row, int64_t head, int64_t query) {
    to[row] = start + (head * view.head + query * view.row) * bytes;
  });
}

}  // namespace foveate::kernels
