// Five products a tile and slab of keys: S, dP, dQ, dK, dV.  A slab's dK and dV belong to one work item; dQ of a tile
// is summed over slabs in their order, whoever computes them, so that results do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "foveate/kernels/attend.h"
#include "foveate/kernels/buckets.h"

namespace foveate::kernels {
namespace {

constexpr auto kUse = PackedKeys::Use::backward;
constexpr int64_t kMostSlabPanels = 64;

// The query side of all tiles, packed once and read by every slab.
class PackedRows {
 public:
  PackedRows(const Table& table, const Arguments& a, const GradientViews& g, const Tiling& tiling, const Pool& pool)
      : a_(a),
        tiling_(tiling),
        steps_(table, a),
        columns_(g.terms.columns),
        per_tile_((floats(steps_, a, tiling, columns_) + 15) / 16 * 16) {
    const int64_t tiles = tiling.tiles();
    data_ = Floats64(tiling.groups() * tiles * per_tile_);
    run_queue(pool, tiling.groups() * tiles, [&](int64_t item, int) {
      pack(table, g, item / tiles, tiling.tile(item / tiles, item % tiles), data_.data() + item * per_tile_);
    });
  }

  static int64_t floats(const Steps& s, const Arguments& a, const Tiling& tiling, int columns) {
    const int64_t rows = (tiling.largest_rows() + s.step - 1) / s.step * s.step;
    return rows * (s.depth + s.value_depth + padded(a.dim) + columns + 2) +
           rows / s.step * (padded(a.dim) + padded(a.value_dim));
  }

  // Sets everything of `t` that stands here; d_q and the sums of score terms too, where tiles share them.
  void put(int64_t group, int64_t tile, BackwardTile& t) const {
    float* at = data_.data() + (group * tiling_.tiles() + tile) * per_tile_;
    const int64_t rows = even(tiling_.tile(group, tile).rows());
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    t.q = take(rows * steps_.depth);
    t.d_out = take(rows * steps_.value_depth);
    t.q_by_dim = take(rows / steps_.step * padded(a_.dim));
    t.d_out_by_dim = take(rows / steps_.step * padded(a_.value_dim));
    t.lse = take(rows);
    t.delta = take(rows);
    t.d_q = take(rows * padded(a_.dim));
    t.terms.rows = take(rows * columns_);
  }

 private:
  int64_t even(int64_t rows) const { return (rows + steps_.step - 1) / steps_.step * steps_.step; }

  void pack(const Table& table, const GradientViews& g, int64_t group, const TileShape& shape, float* at) const {
    const int rows = shape.rows(), all = int(even(rows));
    std::vector<const void*> q(size_t(all), nullptr), d_out(q), out(q);
    point_rows(tiling_, a_.q, a_.type, group, shape, q.data());
    point_rows(tiling_, g.d_out, a_.type, group, shape, d_out.data());
    point_rows(tiling_, g.out, a_.type, group, shape, out.data());
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    table.pack_rows(q.data(), all, a_.dim, a_.type, steps_.step, take(int64_t{all} * steps_.depth));
    table.pack_rows(d_out.data(), all, a_.value_dim, a_.type, steps_.step, take(int64_t{all} * steps_.value_depth));
    table.pack_by_dim(q.data(), all, all, a_.dim, a_.type, steps_.step,
                      take(int64_t{all / steps_.step} * padded(a_.dim)), nullptr);
    table.pack_by_dim(d_out.data(), all, all, a_.value_dim, a_.type, steps_.step,
                      take(int64_t{all / steps_.step} * padded(a_.value_dim)), nullptr);
    float* lse = take(all);
    float* delta = take(all);
    table.row_dots(d_out.data(), out.data(), rows, a_.value_dim, a_.type, delta);
    constexpr float kInf = std::numeric_limits<float>::infinity();
    std::fill_n(lse, rows, kInf);  // of a row without a key: its weights are 0
    const int64_t first_head = tiling_.batch_of(group) * a_.heads;
    tiling_.for_queries(group, shape, [&](int row, int64_t head, int64_t query) {
      const int64_t place = (first_head + head) * a_.queries + query;
      if (g.lse[place] != -kInf) lse[row] = g.lse[place] * kLog2e;
      if (g.delta_lse) delta[row] -= g.delta_lse[place];
    });
    const int64_t sums = int64_t{all} * (padded(a_.dim) + columns_);
    std::fill_n(take(sums), sums, 0.0f);
  }

  const Arguments& a_;
  const Tiling& tiling_;
  Steps steps_;
  int columns_;
  int64_t per_tile_;
  Floats64 data_;
};

// Parts of the tiles that work side by side, by shape alone.
int64_t gathered_parts(const Tiling& tiling) {
  return std::clamp<int64_t>(kMostParts / tiling.groups(), 1, std::min(kMostParts, tiling.tiles()));
}

// The query side of a bucket, put together from a larger tile's.
class BucketRows {
 public:
  template <class RowOf>  // row_of(view, row of the larger tile)
  BucketRows(const Table& table, const Arguments& a, const Steps& s, const std::vector<int>& of,
             const BackwardTile& whole, const RowOf& row_of, const View& d_out)
      : rows_(int64_t(of.size())), even_((rows_ + s.step - 1) / s.step * s.step) {
    const int64_t units = even_ * (s.depth + s.value_depth) + even_ / s.step * (padded(a.dim) + padded(a.value_dim));
    floats_ = Floats64(units + even_ * (padded(a.dim) + whole.terms.columns + 2));
    std::vector<const void*> q_rows(size_t(even_), nullptr), d_out_rows(q_rows);
    float* at = floats_.data();
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    float *q = take(even_ * s.depth), *d = take(even_ * s.value_depth), *lse = take(even_), *delta = take(even_);
    for (int64_t row = 0; row < rows_; ++row) {
      const int from = of[size_t(row)];
      std::copy_n(whole.q + int64_t{from} * s.depth, s.depth, q + row * s.depth);
      std::copy_n(whole.d_out + int64_t{from} * s.value_depth, s.value_depth, d + row * s.value_depth);
      lse[row] = whole.lse[from], delta[row] = whole.delta[from];
      q_rows[size_t(row)] = row_of(a.q, from), d_out_rows[size_t(row)] = row_of(d_out, from);
    }
    float *q_by_dim = take(even_ / s.step * padded(a.dim)), *d_by_dim = take(even_ / s.step * padded(a.value_dim));
    table.pack_by_dim(q_rows.data(), int(even_), int(even_), a.dim, a.type, s.step, q_by_dim, nullptr);
    table.pack_by_dim(d_out_rows.data(), int(even_), int(even_), a.value_dim, a.type, s.step, d_by_dim, nullptr);
    tile_.q = q, tile_.d_out = d, tile_.lse = lse, tile_.delta = delta;
    tile_.q_by_dim = q_by_dim, tile_.d_out_by_dim = d_by_dim;
    const int64_t sums = even_ * (padded(a.dim) + whole.terms.columns);
    tile_.d_q = take(sums), tile_.terms.rows = tile_.d_q + even_ * padded(a.dim);
    std::fill_n(tile_.d_q, sums, 0.0f);
  }

  void put(BackwardTile& t) const {
    t.q = tile_.q, t.d_out = tile_.d_out, t.lse = tile_.lse, t.delta = tile_.delta;
    t.q_by_dim = tile_.q_by_dim, t.d_out_by_dim = tile_.d_out_by_dim;
    t.d_q = tile_.d_q, t.terms.rows = tile_.terms.rows;
  }

 private:
  int64_t rows_, even_;
  Floats64 floats_;
  BackwardTile tile_;
};

class Backward {
 public:
  Backward(const Table& table, const Arguments& a, const GradientViews& g, const Pool& pool)
      : table_(table), a_(a), g_(g), pool_(pool), tiling_(a), steps_(table, a), rows_(table, a, g, tiling_, pool) {
    rows_of_.resize(size_t(tiling_.groups() * tiling_.tiles()));
    run_queue(pool, std::ssize(rows_of_), [&](int64_t item, int) {
      const int64_t group = item / tiling_.tiles();
      tiling_.rows_of(group, tiling_.tile(group, item % tiling_.tiles()), rows_of_[size_t(item)]);
    });
  }

  void run() {
    if (tiling_.gathers()) run_gathered();
    if (tiling_.packs()) run_slabs();
    const int64_t tiles = tiling_.tiles();
    run_queue(pool_, tiling_.groups() * tiles, [&](int64_t item, int) { write_queries(item / tiles, item % tiles); });
  }

 private:
  struct Worker {
    Worker(const Table& table, const Arguments& a, const Tiling& tiling, int64_t panels, bool packs_panels)
        : strip(table, a, tiling, kUse, packs_panels),
          d_k(panels * kPanelKeys * padded(a.dim)),
          d_v(panels * kPanelKeys * padded(a.value_dim)),
          scratch(int64_t(backward_scratch(tiling.kernel_rows() + 1) / 4)) {}
    Strip strip;
    Floats64 d_k, d_v, scratch;
    std::vector<PanelRef> refs;
  };
  using Workers = std::vector<std::unique_ptr<Worker>>;

  Worker& own(Workers& workers, int worker, int64_t panels, bool packs_panels) const {
    auto& place = workers[size_t(worker)];
    if (!place) place = std::make_unique<Worker>(table_, a_, tiling_, panels, packs_panels);
    return *place;
  }

  BackwardTile tile(int64_t group, int64_t index, const TileRows& rows, int64_t part) const {
    const TileShape shape = tiling_.tile(group, index);
    BackwardTile t;
    static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, shape, rows);
    t.terms = g_.terms;
    rows_.put(group, index, t);
    if (t.terms.bias)
      t.terms.bias += part * g_.bias_part + tiling_.batch_of(group) * g_.bias_batch +
                      tiling_.query_head(group, shape.head) * g_.terms.bias_head;
    return t;
  }

  // ---- slabs of packed keys ----

  // Panels of a slab, by shape and plan alone: a tile should meet a strip of them, and there should be work to share.
  int64_t slab_panels(const PackedKeys& packed) const {
    const int64_t panels = tiling_.panels(), tiles = tiling_.groups() * tiling_.tiles();
    if (a_.lists.empty()) return std::clamp<int64_t>(tiling_.groups() * panels / 8, 2, kStripPanels);
    if (tiling_.bucketed()) return std::clamp<int64_t>(tiling_.groups() * panels / 4, 2, kMostSlabPanels);
    const int64_t met = std::max<int64_t>(packed.survey().visits() / std::max<int64_t>(tiles, 1), 1);  // by a tile
    const int64_t wanted = std::min(kStripPanels * panels / met, tiling_.groups() * panels / 4);
    return std::clamp<int64_t>(wanted, 2, kMostSlabPanels);
  }

  void run_slabs() {
    const PackedKeys packed(table_, a_, tiling_, kUse, pool_);
    const int64_t panels = slab_panels(packed), slabs = (tiling_.panels() + panels - 1) / panels,
                  groups = tiling_.groups();
    // progress[group][slab]: tiles passed, counted from the last tile; kDone at the end
    std::vector<std::atomic<int64_t>> progress(size_t(groups * slabs));
    Workers workers(static_cast<size_t>(std::max(pool_.threads, 1)));
    const auto run = [&](int64_t group, int64_t slab, int worker) {
      run_slab(own(workers, worker, panels, !packed.shared()), packed, group, slab, panels,
               progress.data() + group * slabs);
    };
    run_items(slabs, run);
  }

  // use(group, number, worker) for all groups and numbers; neighbours in the queue do not wait for each other.
  template <class Use>
  void run_items(int64_t count, const Use& use) {
    const int64_t groups = tiling_.groups();
    if (!g_.groups_in_turn)
      return run_queue(pool_, groups * count, [&](int64_t item, int w) { use(item % groups, item / groups, w); });
    run_queue(pool_, count, [&](int64_t item, int worker) {
      for (int64_t group = 0; group < groups; ++group) use(group, item, worker);
    });
  }

  static constexpr int64_t kDone = std::numeric_limits<int64_t>::max();
  struct Finally {
    std::atomic<int64_t>& progress;
    ~Finally() { progress.store(kDone, std::memory_order_release); }
  };

  // Returns when all earlier slabs of the group have added to the tile with this number, or never will.
  static void wait_for_earlier(const std::atomic<int64_t>* progress, int64_t slab, int64_t number, int64_t& open) {
    for (int64_t earlier = open; earlier < slab; ++earlier)
      for (int spins = 0;; ++spins) {
        const int64_t passed = progress[earlier].load(std::memory_order_acquire);
        if (passed == kDone && earlier == open) ++open;
        if (passed > number) break;
        if (spins > 1000) std::this_thread::yield();
      }
  }

  void run_slab(Worker& w, const PackedKeys& packed, int64_t group, int64_t slab, int64_t panels,
                std::atomic<int64_t>* progress) {
    const Finally done{progress[slab]};  // also where memory runs out: others wait for this slab
    const int64_t first = slab * panels, end = std::min(first + panels, tiling_.panels());
    std::fill_n(w.d_k.data(), (end - first) * kPanelKeys * padded(a_.dim), 0.0f);
    std::fill_n(w.d_v.data(), (end - first) * kPanelKeys * padded(a_.value_dim), 0.0f);
    const int64_t tiles = tiling_.tiles();
    std::vector<float> d_q, d_rows;
    int64_t open = 0;
    for (int64_t number = 0; number < tiles; ++number) {
      const int64_t index = tiles - 1 - number;
      const TileShape shape = tiling_.tile(group, index);
      const TileRows& rows = rows_of_[size_t(group * tiles + index)];
      tiling_.visit(group, shape, rows, first, end, w.refs);
      if (w.refs.empty()) continue;
      BackwardTile t = tile(group, index, rows, 0);
      d_q.assign(size_t(t.rows) * size_t(padded(a_.dim)), 0.0f);
      d_rows.assign(size_t(t.rows) * size_t(t.terms.columns), 0.0f);
      float *const sum = std::exchange(t.d_q, d_q.data()), *const row_sum = std::exchange(t.terms.rows, d_rows.data());
      t.scratch = w.scratch.data();
      if (tiling_.bucketed())
        add_buckets(w, packed, group, first, end, shape, rows, t);
      else
        add_panels(w, packed, group, first, t);
      wait_for_earlier(progress, slab, number, open);
      table_.add_row(d_q.data(), int(d_q.size()), sum);
      table_.add_row(d_rows.data(), int(d_rows.size()), row_sum);
      progress[slab].store(number + 1, std::memory_order_release);
    }
    write_keys(w, group, first, end);
  }

  void add_panels(Worker& w, const PackedKeys& packed, int64_t group, int64_t first, BackwardTile& t) {
    t.panels = w.strip.panels();
    for (size_t from = 0; from < w.refs.size(); from += kStripPanels) {
      t.panel_count = w.strip.put(packed, group, w.refs.data() + from, int64_t(w.refs.size() - from));
      for (int i = 0; i < t.panel_count; ++i)
        point_sums(w, w.refs[from + size_t(i)].panel - first, w.strip.panels()[i]);
      table_.backward[steps_.step - 1](t);
    }
  }

  // The rows of the tile `whole` bucket by bucket, each as a tile of its own.
  void add_buckets(Worker& w, const PackedKeys& packed, int64_t group, int64_t first, int64_t end,
                   const TileShape& shape, const TileRows& rows, const BackwardTile& whole) {
    const int64_t dims = padded(a_.dim), columns = whole.terms.columns;
    for_buckets(tiling_, group, shape, rows, first, end, [&](const Subset& part, std::vector<PanelRef>& refs) {
      BackwardTile t = whole;
      static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, part.shape, part.rows);
      w.refs.swap(refs);
      BucketRows own(
          table_, a_, steps_, part.of, whole,
          [&](const View& view, int row) { return tiling_.query_row(view, group, shape, row); }, g_.d_out);
      own.put(t);
      add_panels(w, packed, group, first, t);
      for (int row = 0; row < t.rows; ++row) {
        const int64_t to = part.of[size_t(row)];
        table_.add_row(t.d_q + row * dims, int(dims), whole.d_q + to * dims);
        table_.add_row(t.terms.rows + row * columns, int(columns), whole.terms.rows + to * columns);
      }
    });
  }

  void point_sums(const Worker& w, int64_t panel, Panel& to) const {
    to.d_k = w.d_k.data() + panel * kPanelKeys * padded(a_.dim);
    to.d_v = w.d_v.data() + panel * kPanelKeys * padded(a_.value_dim);
  }

  void write_keys(const Worker& w, int64_t group, int64_t first, int64_t end) const {
    const int64_t keys = std::min(end * kPanelKeys, a_.keys) - first * kPanelKeys;
    for (int64_t i = 0; i < keys; ++i) {
      float *d_k = w.d_k.data() + i * padded(a_.dim), *d_v = w.d_v.data() + i * padded(a_.value_dim);
      if (tiling_.gathers()) {
        const float* sum = gathered_sum(group, 0, first * kPanelKeys + i);
        table_.add_row(sum, padded(a_.dim), d_k);
        table_.add_row(sum + padded(a_.dim), padded(a_.value_dim), d_v);
      }
      write_key(group, first * kPanelKeys + i, d_k, d_v);
    }
  }

  void write_key(int64_t group, int64_t key, const float* d_k, const float* d_v) const {
    table_.scale_row(d_k, a_.dim, a_.score.scale, g_.key_type, tiling_.gradient_row(g_.d_k, g_.key_type, group, key));
    table_.scale_row(d_v, a_.value_dim, 1, g_.key_type, tiling_.gradient_row(g_.d_v, g_.key_type, group, key));
  }

  void write_queries(int64_t group, int64_t index) const {
    const TileShape shape = tiling_.tile(group, index);
    BackwardTile t;
    rows_.put(group, index, t);
    const int64_t columns = g_.terms.columns;
    std::vector<const void*> d_q(size_t(shape.rows()));
    point_rows(tiling_, g_.d_q, a_.type, group, shape, d_q.data());
    tiling_.for_queries(group, shape, [&](int row, int64_t head, int64_t query) {
      table_.scale_row(t.d_q + int64_t{row} * padded(a_.dim), a_.dim, a_.score.scale, a_.type,
                       const_cast<void*>(d_q[size_t(row)]));
      const int64_t place = (tiling_.batch_of(group) * a_.heads + head) * a_.queries + query;
      std::copy_n(t.terms.rows + row * columns, columns, g_.terms.rows + place * columns);
    });
  }

  // ---- gathered keys: each part of the tiles has its own sums over keys, added in order ----

  int64_t sum_floats() const { return padded(a_.dim) + padded(a_.value_dim); }
  float* gathered_sum(int64_t group, int64_t part, int64_t key) const {
    return sums_.data() + ((group * parts_ + part) * a_.keys + key) * sum_floats();
  }

  void run_gathered() {
    const int64_t groups = tiling_.groups(), tiles = tiling_.tiles();
    // Tiles of other heads may add to the same bias: then one after the other.
    parts_ = g_.groups_in_turn ? 1 : gathered_parts(tiling_);
    sums_ = Floats64(groups * parts_ * a_.keys * sum_floats());
    Workers workers(static_cast<size_t>(std::max(pool_.threads, 1)));
    run_items(parts_, [&](int64_t group, int64_t part, int worker) {
      std::fill_n(gathered_sum(group, part, 0), a_.keys * sum_floats(), 0.0f);
      for (int64_t index = tiles * part / parts_; index < tiles * (part + 1) / parts_; ++index)
        add_gathered(own(workers, worker, kStripPanels, false), group, index, part);
    });
    constexpr int64_t kKeysAtOnce = 256;
    const int64_t pieces = (a_.keys + kKeysAtOnce - 1) / kKeysAtOnce;
    run_queue(pool_, groups * pieces, [&](int64_t item, int) {
      const int64_t group = item / pieces, first = item % pieces * kKeysAtOnce;
      for (int64_t key = first; key < std::min(first + kKeysAtOnce, a_.keys); ++key) {
        float* sum = gathered_sum(group, 0, key);
        for (int64_t part = 1; part < parts_; ++part)
          table_.add_row(gathered_sum(group, part, key), int(sum_floats()), sum);
        if (!tiling_.packs()) write_key(group, key, sum, sum + padded(a_.dim));
      }
    });
  }

  void add_gathered(Worker& w, int64_t group, int64_t index, int64_t part) {
    const TileShape shape = tiling_.tile(group, index);
    const TileRows& rows = rows_of_[size_t(group * tiling_.tiles() + index)];
    BackwardTile t = tile(group, index, rows, part);
    t.scratch = w.scratch.data();
    t.panels = w.strip.panels();
    const int64_t dims = padded(a_.dim), value_dims = padded(a_.value_dim);
    for (const Gathered& list : tiling_.gather(group, shape))
      for (size_t first = 0; first < list.ids.size(); first += size_t{kStripPanels} * kPanelKeys) {
        t.panel_count = w.strip.gather(group, rows, list, first);
        for (int i = 0; i < t.panel_count; ++i) point_sums(w, i, w.strip.panels()[i]);
        std::fill_n(w.d_k.data(), t.panel_count * kPanelKeys * dims, 0.0f);
        std::fill_n(w.d_v.data(), t.panel_count * kPanelKeys * value_dims, 0.0f);
        table_.backward[steps_.step - 1](t);
        for (int64_t i = 0; i < t.panel_count * kPanelKeys; ++i) {
          const int64_t key = w.strip.ids()[i];
          if (key >= a_.keys) break;  // the rest of the last panel
          float* sum = gathered_sum(group, part, key);
          table_.add_row(w.d_k.data() + i * dims, int(dims), sum);
          table_.add_row(w.d_v.data() + i * value_dims, int(value_dims), sum + dims);
        }
      }
  }

  const Table& table_;
  const Arguments& a_;
  const GradientViews& g_;
  const Pool& pool_;
  const Tiling tiling_;
  const Steps steps_;
  const PackedRows rows_;
  std::vector<TileRows> rows_of_;  // [groups][tiles]
  int64_t parts_ = 1;
  Floats64 sums_;  // of gathered keys: [groups][parts][keys][d_k, d_v]
};

}  // namespace

int64_t backward_bytes(const Table& table, const Arguments& a, const Tiling& tiling, int threads) {
  const int columns = a.score.relative.columns + (a.score.adds() ? 2 : 0);  // at most
  const int64_t tiles = tiling.groups() * tiling.tiles();
  const int64_t row = padded(a.dim) + padded(a.value_dim);
  int64_t floats = tiles * PackedRows::floats(Steps(table, a), a, tiling, columns);
  floats += tiles * tiling.largest_rows() * int64_t(sizeof(RowBounds) / 4);
  if (tiling.gathers()) floats += tiling.groups() * gathered_parts(tiling) * a.keys * row;
  floats += threads * (kMostSlabPanels * kPanelKeys * row + int64_t(backward_scratch(tiling.largest_rows() + 1) / 4));
  return 4 * floats;
}

void backward(const Table& table, const Arguments& a, const GradientViews& g, const Pool& pool) {
  if (a.batch * a.heads * a.queries * a.rows == 0) return;
  Backward(table, a, g, pool).run();
}

}  // namespace foveate::kernels
