#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>

#include "foveate/kernels/attend.h"
#include "foveate/kernels/buckets.h"

namespace foveate::kernels {
namespace {

struct Item {
  int64_t group, tile, cost;
};

// Every tile of every group, the most expensive first: the last ones decide how long threads wait for each other.
std::vector<Item> items_by_cost(const Tiling& tiling, const PackedKeys* packed) {
  std::vector<Item> items;
  std::vector<PanelRef> refs;
  TileRows rows;
  for (int64_t group = 0; group < tiling.groups(); ++group)
    for (int64_t i = 0; i < tiling.tiles(); ++i) {
      const TileShape tile = tiling.tile(group, i);
      if (tile.rows() == 0) continue;
      int64_t panels = 0;
      if (packed && tiling.packs()) {
        panels = packed->visits(group, i);
      } else if (tiling.packs()) {
        tiling.rows_of(group, tile, rows);
        tiling.visit(group, tile, rows, 0, tiling.panels(), refs);
        panels = int64_t(refs.size());
      }
      if (tiling.gathers())
        for (const Gathered& list : tiling.gather(group, tile)) panels += int64_t(list.ids.size()) / kPanelKeys + 1;
      items.push_back({group, i, panels * tile.rows()});
    }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  return items;
}

// One worker: its memory, and a tile from rows to results.
class Worker {
 public:
  Worker(const Table& table, const Arguments& a, const Results& results, const Tiling& tiling, const PackedKeys& packed)
      : table_(table),
        a_(a),
        results_(results),
        tiling_(tiling),
        packed_(packed),
        steps_(table, a),
        strip_(table, a, tiling, packed.use(), !packed.shared()),
        rows_(tiling.largest_rows()),
        pointers_(size_t(rows_)),
        lse_(size_t(rows_)),
        memory_(floats(table, a, tiling)),
        bucket_(tiling.bucketed() ? bucket_floats(steps_, a, tiling) : 0) {}

  static int64_t floats(const Table& table, const Arguments& a, const Tiling& tiling) {
    const int64_t rows = tiling.largest_rows();
    return rows * (padded(Steps(table, a).depth) + padded(a.value_dim) + 3) + 64 + int64_t(forward_scratch() / 4);
  }

  static int64_t bucket_floats(const Steps& s, const Arguments& a, const Tiling& tiling) {
    return tiling.kernel_rows() * (s.depth + padded(a.value_dim) + 2);
  }

  void run(int64_t group, const TileShape& shape) {
    TileRows& rows = tile_rows_;
    tiling_.rows_of(group, shape, rows);
    ForwardTile t;
    static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, shape, rows);
    float* at = memory_.data();
    t.strip = take(at, int64_t(forward_scratch() / 4));
    t.acc = take(at, int64_t{t.rows} * padded(a_.value_dim));
    t.top = take(at, t.rows);
    t.sum = take(at, t.rows);
    sinks_ = take(at, t.rows);
    point_rows(tiling_, a_.q, a_.type, group, shape, pointers_.data());
    t.q = put_queries(t, take(at, int64_t{t.rows} * padded(steps_.depth)));
    std::fill_n(t.acc, int64_t{t.rows} * padded(a_.value_dim), 0.0f);
    std::fill_n(t.top, t.rows, -std::numeric_limits<float>::infinity());
    std::fill_n(t.sum, t.rows, 0.0f);
    add_panels(t, group, shape, rows);
    finish(t, group, shape);
  }

 private:
  const float* put_queries(ForwardTile& t, float* q) const {
    t.q_stride = packed_.use() == PackedKeys::Use::rows ? padded(steps_.depth) : steps_.depth;
    if (t.q_stride == steps_.depth) {
      table_.pack_rows(pointers_.data(), t.rows, a_.dim, a_.type, steps_.step, q);
      return q;
    }
    std::fill_n(q, t.rows * t.q_stride, 0.0f);
    for (int row = 0; row < t.rows; ++row)
      table_.pack_rows(pointers_.data() + row, 1, a_.dim, a_.type, steps_.step, q + row * t.q_stride);
    return q;
  }

  static float* take(float*& at, int64_t count) {
    float* here = at;
    at += count;
    return here;
  }

  void add_panels(ForwardTile& t, int64_t group, const TileShape& shape, const TileRows& rows) {
    if (tiling_.bucketed()) return add_buckets(t, group, shape, rows);
    t.panels = strip_.panels();
    const auto add = [&](int panels) {
      t.panel_count = panels;
      table_.forward[steps_.step - 1](t);
    };
    if (tiling_.gathers())
      for (const Gathered& list : tiling_.gather(group, shape))
        for (size_t first = 0; first < list.ids.size(); first += size_t{kStripPanels} * kPanelKeys)
          add(strip_.gather(group, rows, list, first));
    if (!tiling_.packs()) return;
    tiling_.visit(group, shape, rows, 0, tiling_.panels(), refs_);
    for (size_t first = 0; first < refs_.size(); first += kStripPanels)
      add(strip_.put(packed_, group, refs_.data() + first, int64_t(refs_.size() - first)));
  }

  void add_buckets(const ForwardTile& whole, int64_t group, const TileShape& shape, const TileRows& rows) {
    const int64_t dims = padded(a_.value_dim);
    for_buckets(tiling_, group, shape, rows, 0, tiling_.panels(), [&](const Subset& part, std::vector<PanelRef>& refs) {
      ForwardTile t;
      static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, part.shape, part.rows);
      float* at = bucket_.data();
      t.strip = whole.strip;
      t.acc = take(at, t.rows * dims);
      t.top = take(at, t.rows);
      t.sum = take(at, t.rows);
      float* q = take(at, int64_t{t.rows} * steps_.depth);
      t.q = q, t.q_stride = steps_.depth;
      for (int row = 0; row < t.rows; ++row) {
        const int from = part.of[size_t(row)];
        std::copy_n(whole.q + int64_t{from} * steps_.depth, steps_.depth, q + int64_t{row} * steps_.depth);
        std::copy_n(whole.acc + from * dims, dims, t.acc + row * dims);
        t.top[row] = whole.top[from], t.sum[row] = whole.sum[from];
      }
      t.panels = strip_.panels();
      for (size_t first = 0; first < refs.size(); first += kStripPanels) {
        t.panel_count = strip_.put(packed_, group, refs.data() + first, int64_t(refs.size() - first));
        table_.forward[steps_.step - 1](t);
      }
      for (int row = 0; row < t.rows; ++row) {
        const int to = part.of[size_t(row)];
        std::copy_n(t.acc + row * dims, dims, whole.acc + to * dims);
        whole.top[to] = t.top[row], whole.sum[to] = t.sum[row];
      }
    });
  }

  void finish(const ForwardTile& t, int64_t group, const TileShape& shape) {
    tiling_.for_queries(group, shape, [&](int row, int64_t head, int64_t query) {
      lse_[size_t(row)] = results_.lse + (tiling_.batch_of(group) * a_.heads + head) * a_.queries + query;
      if (a_.sink) sinks_[row] = a_.sink[head];
    });
    point_rows(tiling_, results_.out, a_.type, group, shape, pointers_.data());
    const float natural = t.score.plain() ? t.score.scale : 1 / kLog2e;
    table_.finish({t.rows, a_.value_dim, t.top, t.sum, t.acc, natural, t.score.keep_scale, a_.sink ? sinks_ : nullptr,
                   const_cast<void* const*>(pointers_.data()), a_.type, lse_.data()});
  }

  const Table& table_;
  const Arguments& a_;
  const Results& results_;
  const Tiling& tiling_;
  const PackedKeys& packed_;
  Steps steps_;
  Strip strip_;
  int64_t rows_;
  std::vector<const void*> pointers_;
  std::vector<float*> lse_;
  TileRows tile_rows_;
  std::vector<PanelRef> refs_;
  Floats64 memory_, bucket_;
  float* sinks_ = nullptr;
};

}  // namespace

void forward(const Table& table, const Arguments& a, const Results& results, const Pool& pool) {
  if (a.batch * a.heads * a.queries * a.rows == 0) return;
  const Tiling tiling(a);
  const PackedKeys packed(table, a, tiling, PackedKeys::forward_use(a, Steps(table, a), tiling), pool);
  const std::vector<Item> items = items_by_cost(tiling, &packed);
  std::vector<std::unique_ptr<Worker>> workers(static_cast<size_t>(std::max(pool.threads, 1)));
  run_queue(pool, int64_t(items.size()), [&](int64_t i, int worker) {
    auto& own = workers[size_t(worker)];
    if (!own) own = std::make_unique<Worker>(table, a, results, tiling, packed);
    const Item& item = items[size_t(i)];
    own->run(item.group, tiling.tile(item.group, item.tile));
  });
}

Forecast forecast(const Table& table, const Arguments& a, bool backward, int threads) {
  Forecast f;
  const Tiling tiling(a);
  f.gathers = tiling.gathers();
  f.tile_rows = tiling.largest_rows();
  std::vector<PanelRef> refs;
  TileRows rows;
  std::vector<uint8_t> needed(size_t(tiling.groups() * tiling.panels()));
  int64_t packed = 0;  // panels that are packed as they are
  for (const Item& item : items_by_cost(tiling, nullptr)) {
    const TileShape tile = tiling.tile(item.group, item.tile);
    const int64_t panels = item.cost / tile.rows();
    ++f.tiles;
    f.visited_panels += panels;
    if (!tiling.packs()) {
      f.checked_panels += panels;
      continue;
    }
    tiling.rows_of(item.group, tile, rows);
    tiling.visit(item.group, tile, rows, 0, tiling.panels(), refs);
    packed += std::ssize(refs);
    for (const PanelRef& ref : refs) {
      needed[size_t(item.group * tiling.panels() + ref.panel)] = 1;
      f.checked_panels += ref.check != Check::none;
    }
  }
  const bool shared = PackedKeys::shares(packed, needed, tiling, threads);
  const auto use = backward ? PackedKeys::Use::backward : PackedKeys::forward_use(a, Steps(table, a), tiling);
  const int64_t panel = PackedKeys::floats_of_panel(Steps(table, a), a, use);
  f.bytes = 4 * panel *
            ((tiling.gathers() || !shared ? threads * kStripPanels : 0) +
             (tiling.packs() && shared ? std::ssize(needed) : 0));
  f.bytes += backward ? backward_bytes(table, a, tiling, threads) : 4 * threads * Worker::floats(table, a, tiling);
  return f;
}

}  // namespace foveate::kernels
