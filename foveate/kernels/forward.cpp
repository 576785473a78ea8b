#include <algorithm>
#include <cmath>
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
std::vector<Item> items_by_cost(const Tiling& tiling, const Survey& survey) {
  std::vector<Item> items;
  for (int64_t group = 0; group < tiling.groups(); ++group)
    for (int64_t i = 0; i < tiling.tiles(); ++i) {
      const TileShape tile = tiling.tile(group, i);
      if (tile.rows() == 0) continue;
      int64_t panels = tiling.packs() ? survey.visits(group, i) : 0;
      if (tiling.gathers()) panels += tiling.gathered_panels(group, tile);
      items.push_back({group, i, panels * tile.rows()});
    }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  return items;
}

// Few tiles with many keys: their panels are cut into parts that threads share, each with sums of its own, which are
// joined in order.  By shape alone: results must not depend on the number of threads.
class Parts {
 public:
  Parts(const Arguments& a, const Tiling& tiling)
      : count_(tiling.parts()),
        tiles_(tiling.tiles()),
        rows_(tiling.largest_rows()),
        dims_(padded(a.value_dim)),
        data_(floats(a, tiling)) {}

  int64_t count() const { return count_; }
  static int64_t floats(const Arguments& a, const Tiling& tiling) {
    const int64_t parts = tiling.parts();
    return parts > 1 ? tiling.groups() * tiling.tiles() * parts * floats(tiling.largest_rows(), padded(a.value_dim))
                     : 0;
  }
  void put(int64_t group, int64_t tile, int64_t part, ForwardTile& t) const {
    t.acc = data_.data() + ((group * tiles_ + tile) * count_ + part) * floats(rows_, dims_);
    t.top = t.acc + rows_ * dims_;
    t.sum = t.top + rows_;
  }

 private:
  static int64_t floats(int64_t rows, int64_t dims) { return (rows * (dims + 2) + 15) / 16 * 16; }

  int64_t count_, tiles_, rows_, dims_;
  Floats64 data_;
};

bool multiplies_codes(const Table& table, const Arguments& a, PackedKeys::Use use) {
  return use == PackedKeys::Use::rows && a.key_type() == DType::q8 && a.type == DType::bf16 && table.pack_query_codes &&
         a.dim % kScaled == 0 && a.value_dim % kScaled == 0;
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
        codes_(multiplies_codes(table, a, packed.use()) ? rows_ * query_code_bytes(a.dim) / 4 : 0),
        bucket_(tiling.bucketed() ? bucket_floats(steps_, a, tiling) : 0) {}

  static int64_t floats(const Table& table, const Arguments& a, const Tiling& tiling) {
    const int64_t rows = tiling.largest_rows();
    return rows * (padded(Steps(table, a).depth) + padded(a.value_dim) + 3) + 64 + int64_t(forward_scratch() / 4);
  }

  static int64_t bucket_floats(const Steps& s, const Arguments& a, const Tiling& tiling) {
    return tiling.kernel_rows() * (s.depth + padded(a.value_dim) + 2);
  }

  void run(int64_t group, int64_t index) {
    const TileShape shape = tiling_.tile(group, index);
    ForwardTile t = start(group, shape);
    add_panels(t, group, shape, 0, 1);
    finish(t, group, shape);
  }

  void run_part(int64_t group, int64_t index, const Parts& parts, int64_t part) {
    const TileShape shape = tiling_.tile(group, index);
    ForwardTile t = start(group, shape);
    parts.put(group, index, part, t);
    clear(t);
    add_panels(t, group, shape, part, parts.count());
  }

  void join(int64_t group, int64_t index, const Parts& parts) {
    const TileShape shape = tiling_.tile(group, index);
    const ForwardTile t = start(group, shape);
    const float factor = t.score.plain() ? t.score.scale * kLog2e : 1;
    const int dims = padded(a_.value_dim);
    for (int64_t part = 0; part < parts.count(); ++part) {
      ForwardTile of_part;
      parts.put(group, index, part, of_part);
      for (int row = 0; row < t.rows; ++row) {
        const float now = std::max(t.top[row], of_part.top[row]);
        const float safe = now == -std::numeric_limits<float>::infinity() ? 0 : now;
        const float keep = std::exp2((t.top[row] - safe) * factor), add = std::exp2((of_part.top[row] - safe) * factor);
        float* acc = t.acc + int64_t{row} * dims;
        table_.scale_row(acc, dims, keep, DType::f32, acc);
        table_.add_scaled(of_part.acc + int64_t{row} * dims, dims, DType::f32, add, acc);
        t.sum[row] = t.sum[row] * keep + of_part.sum[row] * add;
        t.top[row] = now;
      }
    }
    finish(t, group, shape);
  }

 private:
  ForwardTile start(int64_t group, const TileShape& shape) {
    tiling_.rows_of(group, shape, tile_rows_);
    ForwardTile t;
    static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, shape, tile_rows_);
    float* at = memory_.data();
    t.strip = take(at, int64_t(forward_scratch() / 4));
    t.acc = take(at, int64_t{t.rows} * padded(a_.value_dim));
    t.top = take(at, t.rows);
    t.sum = take(at, t.rows);
    sinks_ = take(at, t.rows);
    point_rows(tiling_, a_.q, a_.type, group, shape, pointers_.data());
    t.q = put_queries(t, take(at, int64_t{t.rows} * padded(steps_.depth)));
    t.q_codes = put_query_codes(t.rows, reinterpret_cast<char*>(codes_.data()));
    clear(t);
    return t;
  }

  void clear(const ForwardTile& t) const {
    std::fill_n(t.acc, int64_t{t.rows} * padded(a_.value_dim), 0.0f);
    std::fill_n(t.top, t.rows, -std::numeric_limits<float>::infinity());
    std::fill_n(t.sum, t.rows, 0.0f);
  }

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

  // Null where the kernel multiplies no codes.
  const char* put_query_codes(int rows, char* to) const {
    if (!multiplies_codes(table_, a_, packed_.use())) return nullptr;
    for (int row = 0; row < rows; ++row)
      if (!table_.pack_query_codes(pointers_[size_t(row)], a_.dim, a_.type, to + row * query_code_bytes(a_.dim)))
        return nullptr;
    return to;
  }

  static float* take(float*& at, int64_t count) {
    float* here = at;
    at += count;
    return here;
  }

  // Part `part` of `parts` of what the tile visits.
  void add_panels(ForwardTile& t, int64_t group, const TileShape& shape, int64_t part, int64_t parts) {
    const TileRows& rows = tile_rows_;
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
    const int64_t visits = std::ssize(refs_), end = visits * (part + 1) / parts;
    for (int64_t first = visits * part / parts; first < end; first += kStripPanels)
      add(strip_.put(packed_, group, refs_.data() + first, end - first));
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
    point_rows(tiling_, results_.out, results_.type, group, shape, pointers_.data());
    const float natural = t.score.plain() ? t.score.scale : 1 / kLog2e;
    table_.finish({t.rows, a_.value_dim, t.top, t.sum, t.acc, natural, t.score.keep_scale, a_.sink ? sinks_ : nullptr,
                   const_cast<void* const*>(pointers_.data()), results_.type, lse_.data()});
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
  Floats64 memory_, codes_, bucket_;
  float* sinks_ = nullptr;
};

}  // namespace

void forward(const Table& table, const Arguments& a, const Results& results, const Pool& pool) {
  if (a.batch * a.heads * a.queries * a.rows == 0) return;
  const Tiling tiling(a);
  const PackedKeys packed(table, a, tiling, PackedKeys::forward_use(a, Steps(table, a), tiling), pool);
  const Parts parts(a, tiling);
  const std::vector<Item> items = items_by_cost(tiling, packed.survey());
  std::vector<std::unique_ptr<Worker>> workers(static_cast<size_t>(std::max(pool.threads, 1)));
  const auto own = [&](int worker) -> Worker& {
    auto& place = workers[size_t(worker)];
    if (!place) place = std::make_unique<Worker>(table, a, results, tiling, packed);
    return *place;
  };
  const int64_t tiles = std::ssize(items), count = parts.count();
  if (count == 1)
    return run_queue(pool, tiles,
                     [&](int64_t i, int worker) { own(worker).run(items[size_t(i)].group, items[size_t(i)].tile); });
  run_queue(pool, tiles * count, [&](int64_t i, int worker) {
    const Item& item = items[size_t(i / count)];
    own(worker).run_part(item.group, item.tile, parts, i % count);
  });
  run_queue(pool, tiles,
            [&](int64_t i, int worker) { own(worker).join(items[size_t(i)].group, items[size_t(i)].tile, parts); });
}

Forecast forecast(const Table& table, const Arguments& a, bool backward, int threads) {
  Forecast f;
  const Tiling tiling(a);
  const Survey survey(tiling);
  f.gathers = tiling.gathers();
  f.tile_rows = tiling.largest_rows();
  for (const Item& item : items_by_cost(tiling, survey)) {
    ++f.tiles;
    f.visited_panels += item.cost / tiling.tile(item.group, item.tile).rows();
  }
  f.checked_panels = tiling.packs() ? survey.checked() : f.visited_panels;
  const bool shared = tiling.packs() && survey.shares(threads, backward ? 1 : tiling.parts());
  const auto use = backward ? PackedKeys::Use::backward : PackedKeys::forward_use(a, Steps(table, a), tiling);
  f.packs = use != PackedKeys::Use::rows;
  f.codes = multiplies_codes(table, a, use);
  const int64_t panel = PackedKeys::floats_of_panel(Steps(table, a), a, use);
  f.bytes =
      4 * panel *
      ((tiling.gathers() || !shared ? threads * kStripPanels : 0) + (shared ? tiling.groups() * tiling.panels() : 0));
  f.bytes += backward ? backward_bytes(table, a, tiling, threads)
                      : 4 * (threads * Worker::floats(table, a, tiling) + Parts::floats(a, tiling));
  return f;
}

}  // namespace foveate::kernels
