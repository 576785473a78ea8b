#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "foveate/kernels/lane_tiling.h"

namespace foveate::kernels {
namespace {

constexpr int64_t kEnoughItems = 16;  // that threads share
constexpr int64_t kSlabWindows = 2;   // a slab is at least so many windows long: its neighbours add to the same keys

// Tiles of the query heads of some key heads: of a whole group, or of a slab of it along the outermost axis that has
// several tiles; and the keys that its queries see, whole along the other axes.
struct Item {
  int64_t batch, first_head, heads;  // key heads
  const Group* group;
  int64_t first_tile, end_tile;
  Place first, size;
  int64_t keys() const { return product(size); }
  int64_t key_at(const Place& key) const {
    return ((key[0] - first[0]) * size[1] + key[1] - first[1]) * size[2] + key[2] - first[2];
  }
};

// The work of a call, cut by shapes alone: results must not depend on the number of threads.
class Items {
 public:
  Items(const LaneCall& call) : call_(call) {
    const NeighborhoodArguments& a = call.a;
    const auto& groups = call.tiling.groups();
    while (axis_ < kGridAxes - 1 && groups.front().tiles[axis_] == 1) ++axis_;
    const auto parts = [](int64_t there, int64_t most) {
      return std::clamp<int64_t>((kEnoughItems + there - 1) / there, 1, std::max<int64_t>(most, 1));
    };
    const int64_t fewest = (kSlabWindows * a.axes[axis_].kernel - 1) / call.tiling.shape()[axis_] + 1;  // tiles
    slabs_ = parts(a.batch * std::ssize(groups), groups.front().tiles[axis_] / fewest);
    head_parts_ = parts(a.batch * std::ssize(groups) * slabs_, a.kv_heads);
    for (int64_t batch = 0; batch < a.batch; ++batch)
      for (const Group& group : groups)
        for (int64_t part = 0; part < head_parts_; ++part)
          for (int64_t slab = 0; slab < slabs_; ++slab) add(batch, group, part, slab);
  }

  const std::vector<Item>& all() const { return items_; }
  int64_t slabs() const { return slabs_; }  // of the same keys, one item behind the other
  size_t axis() const { return axis_; }     // along which they are cut

 private:
  void add(int64_t batch, const Group& group, int64_t part, int64_t slab) {
    const NeighborhoodAxis& axis = call_.a.axes[axis_];
    const int64_t tiles = group.tiles[axis_], each = product(group.tiles) / tiles, heads = call_.a.kv_heads;
    const int64_t first = tiles * slab / slabs_, end = tiles * (slab + 1) / slabs_;
    const int64_t first_head = heads * part / head_parts_, end_head = heads * (part + 1) / head_parts_;
    Item item{batch, first_head, end_head - first_head, &group, first * each, end * each, {0, 0, 0}, group.size};
    item.size[axis_] = 0;
    if (first < end) {
      const int64_t length = call_.tiling.shape()[axis_], size = group.size[axis_];
      item.first[axis_] = axis.window(first * length, size).first;
      if (axis_ == 2) item.first[2] = item.first[2] / 2 * 2;  // as boxes begin
      item.size[axis_] = axis.window(std::min(end * length, size) - 1, size).second - item.first[axis_];
    }
    items_.push_back(item);
  }

  const LaneCall& call_;
  size_t axis_ = 0;
  int64_t slabs_ = 1, head_parts_ = 1;
  std::vector<Item> items_;
};

// Gradients of the keys and values of an item [key head][key][padded dim], and of the bias of its query heads.
struct KeySums {
  float *k = nullptr, *v = nullptr;
  std::vector<float> bias;
};

// Of all items, in one piece: large pages hold it.
class AllSums {
 public:
  AllSums(const Items& items, const NeighborhoodArguments& a) : a_(a), sums_(items.all().size()) {
    int64_t floats = 0;
    for (const Item& item : items.all()) floats += this->floats(item, a.dim) + this->floats(item, a.value_dim);
    memory_ = Floats64(floats);
    float* at = memory_.data();
    for (size_t i = 0; i < sums_.size(); ++i) {
      sums_[i].k = std::exchange(at, at + this->floats(items.all()[i], a.dim));
      sums_[i].v = std::exchange(at, at + this->floats(items.all()[i], a.value_dim));
    }
  }
  KeySums& of(int64_t item) { return sums_[size_t(item)]; }
  const KeySums& of(int64_t item) const { return sums_[size_t(item)]; }
  KeySums& start(int64_t i, const Item& item) {
    std::fill_n(of(i).k, floats(item, a_.dim), 0.0f);
    std::fill_n(of(i).v, floats(item, a_.value_dim), 0.0f);
    return of(i);
  }

 private:
  static int64_t floats(const Item& item, int dim) { return item.heads * item.keys() * padded(dim); }

  const NeighborhoodArguments& a_;
  std::vector<KeySums> sums_;
  Floats64 memory_;
};

// What all workers read.
struct Backward {
  const LaneCall& call;
  const NeighborhoodGradients& g;
  PackedGrid k_by_dim, v;
  std::optional<PackedGrid> k_units;  // where the other form is not the same
  std::vector<float> spread;

  Backward(const LaneCall& of, const NeighborhoodGradients& gradients, const Pool& pool)
      : call(of),
        g(gradients),
        k_by_dim(of, of.a.k, of.a.dim, PackedGrid::Form::by_dim, pool),
        v(of, of.a.v, of.a.value_dim, PackedGrid::Form::units, pool),
        spread(spread_biases(of)) {
    if (of.step != 1 || padded(of.a.dim) != of.a.dim || of.a.dim > kPanelKeys)
      k_units.emplace(of, of.a.k, of.a.dim, PackedGrid::Form::units, pool);
  }
  const PackedGrid& k() const { return k_units ? *k_units : k_by_dim; }
};

class BackwardWorker {
 public:
  explicit BackwardWorker(const Backward& all)
      : all_(all),
        call_(all.call),
        rows_(all.call),
        out_rows_(all.call),
        bias_(all.call.tiling),
        memory_(floats(all.call)) {
    const NeighborhoodArguments& a = call_.a;
    LaneBackward& t = tile_;
    float* at = memory_.data();
    start_tile(call_, bias_, take(at, kLaneScratch), t);
    t.q = q_ = take(at, call_.units(a.dim) * kPanelKeys);
    t.d_out = d_out_ = take(at, call_.units(a.value_dim) * kPanelKeys);
    t.q_by_dim = q_by_dim_ = take(at, kTileLanes * padded(a.dim));
    t.d_out_by_dim = d_out_by_dim_ = take(at, kTileLanes * padded(a.value_dim));
    t.lse = lse_ = take(at, kTileLanes);
    t.delta = delta_ = take(at, kTileLanes);
    t.d_q = take(at, kTileLanes * padded(a.dim));
  }

  // Adds to `sums`.
  bool run(const Item& item, KeySums& sums) {
    const int64_t heads = item.heads * call_.repeats(), first = item.first_head * call_.repeats();
    std::vector<float> d_bias(all_.g.d_bias ? size_t(heads * bias_.floats()) : 0);
    bool sound = true;
    const int64_t length = LaneTiling::run_of(*item.group);
    for (int64_t begin = item.first_tile; begin < item.end_tile; begin += length) {
      const int64_t end = std::min(begin + length, item.end_tile);
      const auto& places = call_.tiling.places(*item.group, begin, end, places_);
      for (int64_t head = 0; head < heads; ++head)
        for (const TilePlace& place : places)
          sound = run_tile(item, first + head, place, d_bias.empty() ? nullptr : d_bias.data() + head * bias_.floats(),
                           sums) &&
                  sound;
    }
    if (d_bias.empty()) return sound;
    sums.bias.assign(size_t(heads * bias_.table_floats()), 0.0f);
    for (int64_t head = 0; head < heads; ++head)
      bias_.gather(d_bias.data() + head * bias_.floats(), sums.bias.data() + head * bias_.table_floats());
    return sound;
  }

 private:
  static int64_t floats(const LaneCall& call) {
    const auto& a = call.a;
    return kLaneScratch + (call.units(a.dim) + call.units(a.value_dim)) * kPanelKeys +
           kTileLanes * (2 * padded(a.dim) + padded(a.value_dim) + 2) + 128;
  }

  bool run_tile(const Item& item, int64_t head, const TilePlace& place, float* d_bias, const KeySums& sums) {
    LaneBackward& t = tile_;
    const NeighborhoodArguments& a = call_.a;
    const Group& group = *item.group;
    static_cast<LaneWindows&>(t) = place.windows;
    const int64_t kv_head = head / call_.repeats();
    bool sound = !start(item.batch, head, place);
    const float* k = all_.k().data(item.batch, kv_head, group);
    const float* v = all_.v.data(item.batch, kv_head, group);
    const float* by_dim = all_.k_by_dim.data(item.batch, kv_head, group);
    for_boxes(place.box, [&](const KeyBox& box) {
      set_box(t, box, call_, group, k, all_.k_by_dim, by_dim, a.dim);
      t.v = v + (t.k - k) / call_.units(a.dim) * call_.units(a.value_dim);
      const int64_t key =
          (kv_head - item.first_head) * item.keys() + item.key_at({box.first[0], box.first[1], box.first[2]});
      t.sum_stride[2] = 1, t.sum_stride[1] = item.size[2], t.sum_stride[0] = item.size[1] * item.size[2];
      t.d_k = sums.k + key * padded(a.dim), t.d_v = sums.v + key * padded(a.value_dim);
      if (a.bias) t.bias = all_.spread.data() + head * bias_.floats() + bias_.at(t, place.origin);
      if (d_bias) t.d_bias = d_bias + bias_.at(t, place.origin);
      sound = call_.table.lane_backward[call_.step - 1](t) && sound;
    });
    const void* const* to = rows_.of(all_.g.d_q, a.type, item.batch, head, place);
    for (int lane = 0; lane < kTileLanes; ++lane)
      if (to[lane])
        call_.table.scale_row(t.d_q + lane * padded(a.dim), a.dim, a.scale, a.type, const_cast<void*>(to[lane]));
    return sound;
  }

  // Rows of q and d_out, and their numbers; returns whether one is not finite.
  bool start(int64_t batch, int64_t head, const TilePlace& place) {
    const Table& table = call_.table;
    const NeighborhoodArguments& a = call_.a;
    const void* const* q = rows_.of(a.q, a.type, batch, head, place);
    table.pack_by_key(q, kTileLanes, a.dim, a.type, call_.step, q_, nullptr);
    bool bad = table.pack_by_dim(q, kTileLanes, kTileLanes, a.dim, a.type, call_.step, q_by_dim_, nullptr);
    const void* const* d_out = rows_.of(all_.g.d_out, a.type, batch, head, place);
    table.pack_by_key(d_out, kTileLanes, a.value_dim, a.type, call_.step, d_out_, nullptr);
    bad = table.pack_by_dim(d_out, kTileLanes, kTileLanes, a.value_dim, a.type, call_.step, d_out_by_dim_, nullptr) ||
          bad;
    const void* const* out = out_rows_.of(all_.g.out, a.type, batch, head, place);
    table.row_dots(d_out, out, kTileLanes, a.value_dim, a.type, delta_);
    std::fill_n(tile_.d_q, kTileLanes * padded(a.dim), 0.0f);
    for (int lane = 0; lane < kTileLanes; ++lane) {
      lse_[lane] = 0;
      if (place.positions[lane] < 0) continue;
      const int64_t row = call_.place(batch, head, place.positions[lane]);
      lse_[lane] = all_.g.lse[row] * kLog2e;
      if (all_.g.delta_lse) delta_[lane] -= all_.g.delta_lse[row];
    }
    return bad;
  }

  const Backward& all_;
  const LaneCall& call_;
  LaneRows rows_, out_rows_;
  LaneBias bias_;
  std::vector<TilePlace> places_;
  Floats64 memory_;
  LaneBackward tile_;
  float *q_, *d_out_, *q_by_dim_, *d_out_by_dim_, *lse_, *delta_;
};

// Writes d_k and d_v of one place along the axis of the slabs, joining what they have for it in order.
void write_keys(const Backward& all, const Items& items, int64_t first_item, int64_t at, const AllSums& sums) {
  const LaneCall& call = all.call;
  const NeighborhoodArguments& a = call.a;
  const Item* slabs = items.all().data() + first_item;
  const Group& group = *slabs->group;
  const size_t axis = items.axis();
  Place from{0, 0, 0}, count = group.size;
  from[axis] = at, count[axis] = 1;
  std::vector<int64_t> seen_by;  // slabs
  for (int64_t slab = 0; slab < items.slabs(); ++slab)
    if (const Item& item = slabs[slab]; at >= item.first[axis] && at < item.first[axis] + item.size[axis])
      seen_by.push_back(slab);
  std::vector<float> sum(static_cast<size_t>(std::max(padded(a.dim), padded(a.value_dim))));
  const auto write = [&](const Place& key, int64_t head, float* KeySums::*of, int dim, float scale, const View& to) {
    const auto row = [&](int64_t slab) {
      const Item& item = slabs[slab];
      return sums.of(first_item + slab).*of + (head * item.keys() + item.key_at(key)) * padded(dim);
    };
    const float* whole = seen_by.size() == 1 ? row(seen_by[0]) : sum.data();
    if (seen_by.size() != 1) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (const int64_t slab : seen_by) call.table.add_row(row(slab), padded(dim), sum.data());
    }
    call.table.scale_row(
        whole, dim, scale, a.type,
        call.row(to, a.type, slabs->batch, slabs->first_head + head, call.tiling.position(group, key)));
  };
  for (int64_t i = 0; i < product(count); ++i) {
    Place key = unravel(i, count);
    for (size_t b = 0; b < kGridAxes; ++b) key[b] += from[b];
    for (int64_t head = 0; head < slabs->heads; ++head) {
      write(key, head, &KeySums::k, a.dim, a.scale, all.g.d_k);
      write(key, head, &KeySums::v, a.value_dim, 1, all.g.d_v);
    }
  }
}

}  // namespace

bool neighborhood_backward(const Table& table, const NeighborhoodArguments& a, const NeighborhoodGradients& g,
                           const Pool& pool) {
  if (a.batch * a.heads * a.positions() == 0) return true;
  const LaneCall call(table, a);
  const Backward all(call, g, pool);
  const Items items(call);
  AllSums sums(items, a);
  Workers<BackwardWorker> workers(pool.threads);
  std::atomic<bool> sound = !all.k_by_dim.is_bad();
  run_queue(pool, std::ssize(items.all()), [&](int64_t i, int id) {
    const Item& item = items.all()[size_t(i)];
    KeySums& own = sums.start(i, item);
    BackwardWorker& worker = workers.get(id, [&] { return std::make_unique<BackwardWorker>(all); });
    if (!worker.run(item, own)) sound = false;
  });
  const int64_t length = a.axes[items.axis()].group_length(0);
  run_queue(pool, std::ssize(items.all()) / items.slabs() * length, [&](int64_t i, int) {
    const int64_t first = i / length * items.slabs();
    if (i % length < items.all()[size_t(first)].group->size[items.axis()])
      write_keys(all, items, first, i % length, sums);
  });
  const int64_t floats = LaneBias(call.tiling).table_floats() * call.repeats();  // of a key head
  for (int64_t i = 0; g.d_bias && i < std::ssize(items.all()); ++i) {
    const std::vector<float>& own = sums.of(i).bias;
    table.add_row(own.data(), int(own.size()), g.d_bias + items.all()[size_t(i)].first_head * floats);
  }
  return sound;
}

}  // namespace foveate::kernels
