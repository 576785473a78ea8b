#include "foveate/kernels/neighborhood.h"

#include <algorithm>
#include <atomic>

#include "foveate/kernels/lane_tiling.h"

namespace foveate::kernels {

std::pair<int64_t, int64_t> NeighborhoodAxis::window(int64_t p, int64_t size) const {
  if (is_causal) {
    int64_t leader = p / stride * stride + stride - 1;
    if (clamps_last_group) leader = std::min(leader, size - 1);
    return {std::max<int64_t>(leader - kernel + 1, 0), p + 1};
  }
  const int64_t leader = std::min(p / stride * stride + stride / 2, size - 1);
  const int64_t start = std::clamp<int64_t>(leader - kernel / 2, 0, size - kernel);
  return {start, start + kernel};
}

int64_t visited_tiles(const NeighborhoodAxis& axis, int64_t size, int64_t query_tile, int64_t key_tile,
                      bool is_dynamic) {
  int64_t tiles = 0;
  for (int64_t first = 0; first < size; first += query_tile) {
    const int64_t start = axis.window(first, size).first;
    const int64_t end = axis.window(std::min(first + query_tile, size) - 1, size).second;
    const auto up = [&](int64_t x) { return (x + key_tile - 1) / key_tile; };
    tiles += is_dynamic ? up(end - start) : up(end) - start / key_tile;
  }
  return tiles;
}

namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();  // not -inf: -inf - -inf is none

// Tiles of a run, for all heads.
struct Item {
  int64_t batch;
  const Group* group;
  int64_t first, end;
};

class ForwardWorker {
 public:
  ForwardWorker(const LaneCall& call, const PackedGrid& k, const PackedGrid& v, const std::vector<float>& spread)
      : call_(call),
        k_(k),
        v_(v),
        spread_(spread),
        rows_(call),
        bias_(call.tiling),
        memory_(call.units(call.a.dim) * kPanelKeys + kTileLanes * (padded(call.a.value_dim) + 2) + kLaneScratch + 64) {
    const NeighborhoodArguments& a = call.a;
    LaneForward& t = tile_;
    float* at = memory_.data();
    start_tile(call_, bias_, take(at, kLaneScratch), t);
    t.q = q_ = take(at, call.units(a.dim) * kPanelKeys);
    t.acc = take(at, kTileLanes * padded(a.value_dim));
    t.top = take(at, kTileLanes);
    t.sum = take(at, kTileLanes);
  }

  // Returns false where a number is not finite.
  bool run(const Item& item, const Results& results) {
    bool sound = true;
    const auto& places = call_.tiling.places(*item.group, item.first, item.end, places_);
    for (int64_t head = 0; head < call_.a.heads; ++head)
      for (const TilePlace& place : places) sound = run_tile(item.batch, head, *item.group, place, results) && sound;
    return sound;
  }

 private:
  bool run_tile(int64_t batch, int64_t head, const Group& group, const TilePlace& place, const Results& results) {
    const NeighborhoodArguments& a = call_.a;
    LaneForward& t = tile_;
    static_cast<LaneWindows&>(t) = place.windows;
    call_.table.pack_by_key(rows_.of(a.q, a.type, batch, head, place), kTileLanes, a.dim, a.type, call_.step, q_,
                            nullptr);
    std::fill_n(t.acc, kTileLanes * padded(a.value_dim), 0.0f);
    std::fill_n(t.top, kTileLanes, kLowest);
    std::fill_n(t.sum, kTileLanes, 0.0f);
    const int64_t kv_head = head / call_.repeats();
    const float *k = k_.data(batch, kv_head, group), *v = v_.data(batch, kv_head, group);
    bool sound = true;
    for_boxes(place.box, [&](const KeyBox& box) {
      set_box(t, box, call_, group, k, v_, v, a.dim);
      if (a.bias) t.bias = spread_.data() + head * bias_.floats() + bias_.at(t, place.origin);
      sound = call_.table.lane_forward[call_.step - 1](t) && sound;
    });
    finish(batch, head, place, results);
    return sound;
  }

  void finish(int64_t batch, int64_t head, const TilePlace& place, const Results& results) {
    void* const* out = const_cast<void* const*>(rows_.of(results.out, results.type, batch, head, place));
    float* lse[kTileLanes];
    for (int lane = 0; lane < kTileLanes; ++lane)
      if (out[lane]) lse[lane] = results.lse + call_.place(batch, head, place.positions[lane]);
    call_.table.finish({kTileLanes, call_.a.value_dim, tile_.top, tile_.sum, tile_.acc, 1 / kLog2e, 1, nullptr, out,
                        results.type, lse});
  }

  const LaneCall& call_;
  const PackedGrid &k_, &v_;
  const std::vector<float>& spread_;
  LaneRows rows_;
  LaneBias bias_;
  std::vector<TilePlace> places_;
  Floats64 memory_;
  LaneForward tile_;
  float* q_;
};

}  // namespace

bool neighborhood_forward(const Table& table, const NeighborhoodArguments& a, const Results& results,
                          const Pool& pool) {
  if (a.batch * a.heads * a.positions() == 0) return true;
  const LaneCall call(table, a);
  const std::vector<float> spread = spread_biases(call);
  const PackedGrid k(call, a.k, a.dim, PackedGrid::Form::units, pool);
  const PackedGrid v(call, a.v, a.value_dim, PackedGrid::Form::by_dim, pool);
  std::vector<Item> items;
  for (int64_t batch = 0; batch < a.batch; ++batch)
    for (const Group& group : call.tiling.groups())
      for (int64_t first = 0, tiles = product(group.tiles), run = LaneTiling::run_of(group); first < tiles;
           first += run)
        items.push_back({batch, &group, first, std::min(first + run, tiles)});
  Workers<ForwardWorker> workers(pool.threads);
  std::atomic<bool> sound = !v.is_bad();
  run_queue(pool, std::ssize(items), [&](int64_t i, int id) {
    const Item& item = items[size_t(i)];
    ForwardWorker& worker = workers.get(id, [&] { return std::make_unique<ForwardWorker>(call, k, v, spread); });
    if (!worker.run(item, results)) sound = false;
  });
  return sound;
}

NeighborhoodForecast neighborhood_forecast(const Neighborhood& axes) {
  const LaneTiling tiling(axes);
  NeighborhoodForecast f;
  for (size_t a = 0; a < kGridAxes; ++a) f.tile[a] = int(tiling.shape()[a]);
  double visited = 1, visible = 1;  // products over axes: sums over the groups of each
  for (size_t a = 0; a < kGridAxes; ++a) {
    double keys = 0, seen = 0;
    for (int64_t g = 0; g < axes[a].dilation; ++g) {
      const int64_t size = axes[a].group_length(g);
      keys += double(visited_tiles(axes[a], size, tiling.shape()[a], 1, true)) * double(tiling.shape()[a]);
      for (int64_t p = 0; p < size; ++p) {
        const auto [start, end] = axes[a].window(p, size);
        seen += double(end - start);
      }
    }
    visited *= keys, visible *= seen;
  }
  f.visited_keys = visited, f.visible_keys = visible;
  for (const Group& group : tiling.groups()) f.tiles += product(group.tiles);
  return f;
}

}  // namespace foveate::kernels
