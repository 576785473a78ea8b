#include "foveate/kernels/sums.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "foveate/kernels/buckets.h"

namespace foveate::kernels {
namespace {

constexpr auto kUse = PackedKeys::Use::forward;
constexpr int64_t kParts = 8;  // of a group's tiles that add side by side, each to sums of its own

// The sums of one part: all heads of its group, a range of places.
struct PartSums {
  int64_t first = 0, places = 0;
  std::vector<float> floats;
};

class Sums {
 public:
  Sums(const Table& table, const Arguments& a, const float* lse, const SumRequest& request, const Pool& pool)
      : table_(table),
        a_(a),
        lse_(lse),
        request_(request),
        pool_(pool),
        tiling_(a),
        steps_(table, a),
        packed_(table, a, tiling_, kUse, pool),
        parts_(std::clamp<int64_t>(kParts / tiling_.groups(), 1, std::min(kParts, tiling_.tiles()))),
        sums_(size_t(tiling_.groups() * parts_)) {}

  void run(float* out) {
    std::vector<std::unique_ptr<Worker>> workers(static_cast<size_t>(std::max(pool_.threads, 1)));
    run_queue(pool_, tiling_.groups() * parts_, [&](int64_t item, int worker) {
      auto& own = workers[size_t(worker)];
      if (!own) own = std::make_unique<Worker>(table_, a_, tiling_, steps_, !packed_.shared());
      run_part(*own, item / parts_, item % parts_, sums_[size_t(item)]);
    });
    run_queue(pool_, tiling_.groups(), [&](int64_t group, int) { give(group, out); });
  }

 private:
  struct Worker {
    Worker(const Table& table, const Arguments& a, const Tiling& tiling, const Steps& steps, bool packs_panels)
        : strip(table, a, tiling, kUse, packs_panels),
          q(tiling.kernel_rows() * steps.depth),
          scratch(int64_t(backward_scratch(tiling.kernel_rows() + 1) / 4)) {}
    Strip strip;
    Floats64 q, scratch;
    std::vector<PanelRef> refs;
  };

  int32_t place_of(int64_t query) const {
    if (request_.by == SumBy::row) return int32_t(query);
    return request_.by == SumBy::block ? int32_t(query / request_.query_block) : 0;
  }

  void run_part(Worker& w, int64_t group, int64_t part, PartSums& to) {
    const int64_t begin = tiling_.tiles() * part / parts_, end = tiling_.tiles() * (part + 1) / parts_;
    int64_t least = request_.places(a_), most = -1, heads = 0;
    for (int64_t index = begin; index < end; ++index) {
      const TileShape shape = tiling_.tile(group, index);
      heads = std::max(heads, shape.head + shape.heads);
      for (int row = 0; row < shape.rows(); ++row)
        if (const int64_t query = tiling_.query(group, shape, row); query >= 0)
          least = std::min<int64_t>(least, place_of(query)), most = std::max<int64_t>(most, place_of(query));
    }
    if (most < least) return;
    to.first = least, to.places = most - least + 1;
    to.floats.assign(size_t(heads * to.places * request_.columns(a_)), 0.0f);
    for (int64_t index = begin; index < end; ++index) {
      const TileShape shape = tiling_.tile(group, index);
      if (shape.rows() == 0) continue;
      TileRows rows;
      tiling_.rows_of(group, shape, rows);
      if (!tiling_.bucketed()) {
        std::vector<int> all(size_t(shape.rows()));
        for (size_t i = 0; i < all.size(); ++i) all[i] = int(i);
        run_tile(w, group, shape, {shape, std::move(all), rows}, nullptr, to);
        continue;
      }
      for_buckets(tiling_, group, shape, rows, 0, tiling_.panels(),
                  [&](const Subset& subset, const std::vector<PanelRef>& refs) {
                    run_tile(w, group, shape, subset, &refs, to);
                  });
    }
  }

  // Rows of a larger tile, against given panels or all that they visit.
  void run_tile(Worker& w, int64_t group, const TileShape& larger, const Subset& part,
                const std::vector<PanelRef>* refs, PartSums& to) {
    SumTile t;
    static_cast<Tile&>(t) = make_tile(a_, steps_, tiling_, group, part.shape, part.rows);
    std::vector<const void*> pointers(part.of.size());
    std::vector<float> lse(part.of.size(), std::numeric_limits<float>::infinity());
    std::vector<int32_t> places(part.of.size());
    for (size_t row = 0; row < part.of.size(); ++row) {
      pointers[row] = tiling_.query_row(a_.q, group, larger, part.of[row]);
      if (!pointers[row]) continue;
      const float given = lse_[tiling_.place(group, larger, part.of[row])];
      if (given != -std::numeric_limits<float>::infinity()) lse[row] = given * kLog2e;
      places[row] = int32_t(place_of(part.rows.query_ids[row]) - to.first);
    }
    table_.pack_rows(pointers.data(), t.rows, a_.dim, a_.type, steps_.step, w.q.data());
    t.q = w.q.data(), t.lse = lse.data(), t.scratch = w.scratch.data();
    t.by = request_.by, t.squared = request_.squared, t.farthest = request_.farthest;
    t.key_block = request_.key_block, t.places = places.data();
    t.column_count = t.place = request_.columns(a_), t.head = to.places * t.place;
    t.sums = to.floats.data() + part.shape.head * t.head;
    t.panels = w.strip.panels();
    const auto add = [&](int panels) {
      t.panel_count = panels;
      table_.sums[steps_.step - 1](t);
    };
    if (tiling_.gathers())
      for (const Gathered& list : tiling_.gather(group, part.shape))
        for (size_t first = 0; first < list.ids.size(); first += size_t{kStripPanels} * kPanelKeys)
          add(w.strip.gather(group, part.rows, list, first));
    if (!tiling_.packs()) return;
    if (!refs) tiling_.visit(group, part.shape, part.rows, 0, tiling_.panels(), w.refs);
    const std::vector<PanelRef>& all = refs ? *refs : w.refs;
    for (size_t first = 0; first < all.size(); first += kStripPanels)
      add(w.strip.put(packed_, group, all.data() + first, int64_t(all.size() - first)));
  }

  // Adds a group's parts in their order.
  void give(int64_t group, float* out) const {
    const int64_t columns = request_.columns(a_), places = request_.places(a_);
    for (int64_t part = 0; part < parts_; ++part) {
      const PartSums& from = sums_[size_t(group * parts_ + part)];
      const int64_t each = from.places * columns, heads = each > 0 ? std::ssize(from.floats) / each : 0;
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t row = tiling_.batch_of(group) * a_.heads + tiling_.query_head(group, head);
        table_.add_row(from.floats.data() + head * each, int(each), out + (row * places + from.first) * columns);
      }
    }
  }

  const Table& table_;
  const Arguments& a_;
  const float* lse_;
  const SumRequest& request_;
  const Pool& pool_;
  const Tiling tiling_;
  const Steps steps_;
  const PackedKeys packed_;
  const int64_t parts_;
  std::vector<PartSums> sums_;  // [groups][parts]
};

}  // namespace

int64_t SumRequest::places(const Arguments& a) const {
  if (by == SumBy::row) return a.queries;
  return by == SumBy::block ? (a.queries + query_block - 1) / query_block : 1;
}

int64_t SumRequest::columns(const Arguments& a) const {
  if (by == SumBy::row) return 1;
  return by == SumBy::block ? (a.keys + key_block - 1) / key_block : a.keys;
}

void sums(const Table& table, const Arguments& a, const float* lse, const SumRequest& request, float* out,
          const Pool& pool) {
  if (a.batch * a.heads * a.queries * a.rows * a.keys == 0) return;
  Sums(table, a, lse, request, pool).run(out);
}

}  // namespace foveate::kernels
