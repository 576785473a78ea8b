#include "foveate/kernels/lane_tiling.h"

#include <atomic>

namespace foveate::kernels {
namespace {

// How many keys tiles of these shapes visit in the group of each axis' first position.
int64_t visited_keys(const Neighborhood& axes, const Place& shape) {
  int64_t keys = 1;
  for (size_t a = 0; a < kGridAxes; ++a) keys *= visited_tiles(axes[a], axes[a].group_length(0), shape[a], 1, true);
  return keys;
}

// The shape of a tile that visits the fewest keys.
Place best_shape(const Neighborhood& axes) {
  Place best{1, 1, kTileLanes};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t a = 1; a <= kTileLanes; a *= 2)
    for (int64_t b = 1; a * b <= kTileLanes; b *= 2) {
      const Place shape{a, b, kTileLanes / (a * b)};
      const int64_t keys = visited_keys(axes, shape);
      if (keys < least) best = shape, least = keys;  // of equals the one with the longest rows
    }
  return best;
}

}  // namespace

LaneTiling::LaneTiling(const Neighborhood& axes) : axes_(axes), shape_(best_shape(axes)) {
  Place dilations;
  for (size_t a = 0; a < kGridAxes; ++a) dilations[a] = axes[a].dilation;
  for (int64_t g = 0; g < product(dilations); ++g) {
    Group group{unravel(g, dilations), {}, {}};
    for (size_t a = 0; a < kGridAxes; ++a) {
      group.size[a] = axes[a].group_length(group.offset[a]);
      group.tiles[a] = (group.size[a] + shape_[a] - 1) / shape_[a];
    }
    if (!groups_.empty()) group.first_key = groups_.back().first_key + groups_.back().packed_keys();
    groups_.push_back(group);
  }
}

const std::vector<TilePlace>& LaneTiling::places(const Group& group, int64_t first, int64_t end,
                                                 std::vector<TilePlace>& memory) const {
  memory.resize(size_t(end - first));
  for (int64_t tile = first; tile < end; ++tile) place(group, tile, memory[size_t(tile - first)]);
  return memory;
}

void LaneTiling::place(const Group& group, int64_t tile, TilePlace& to) const {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  const KeyBox none{{kMost, kMost, kMost}, {0, 0, 0}};
  LaneWindows& windows = to.windows;
  to.box = none;
  std::fill(std::begin(windows.quads), std::end(windows.quads), none);
  to.origin = unravel(tile, group.tiles);
  for (size_t a = 0; a < kGridAxes; ++a) to.origin[a] *= shape_[a];
  const auto add = [](KeyBox& box, size_t a, int32_t first, int32_t end) {
    box.first[a] = std::min(box.first[a], first), box.end[a] = std::max(box.end[a], end);
  };
  for (int lane = 0; lane < kTileLanes; ++lane) {
    Place at = unravel(lane, shape_);
    bool is_query = true;
    for (size_t a = 0; a < kGridAxes; ++a) at[a] += to.origin[a], is_query = is_query && at[a] < group.size[a];
    to.positions[lane] = is_query ? position(group, at) : -1;
    for (size_t a = 0; a < kGridAxes; ++a) {
      const auto [start, stop] = is_query ? axes_[a].window(at[a], group.size[a]) : std::pair<int64_t, int64_t>{0, 0};
      windows.first[a][lane] = int32_t(start), windows.end[a][lane] = int32_t(stop);
      if (!is_query) continue;
      add(windows.quads[lane / kQuad], a, int32_t(start), int32_t(stop));
      add(to.box, a, int32_t(start), int32_t(stop));
    }
  }
}

PackedGrid::PackedGrid(const LaneCall& call, const View& view, int dim, Form form, const Pool& pool)
    : call_(call),
      dim_(dim),
      form_(form),
      keys_(call.tiling.groups().back().first_key + call.tiling.groups().back().packed_keys()),
      floats_(form == Form::units ? call.units(dim) : padded(dim)),
      scale_(form == Form::units ? 1 : call.step),
      memory_(call.a.batch * call.a.kv_heads * keys_ * floats_ / scale_) {
  struct Row {
    int64_t batch;
    const Group* group;
    int64_t row;
  };
  std::vector<Row> rows;
  for (int64_t batch = 0; batch < call.a.batch; ++batch)
    for (const Group& group : call.tiling.groups())
      for (int64_t row = 0; row < group.size[0] * group.size[1]; ++row) rows.push_back({batch, &group, row});
  std::atomic<bool> bad = false;
  run_queue(pool, std::ssize(rows), [&](int64_t i, int) {
    const Row& row = rows[size_t(i)];
    if (pack_row(view, row.batch, *row.group, row.row)) bad = true;
  });
  bad_ = bad;
}

// A few keys of all heads at a time: where heads stand side by side, memory is read in order.
bool PackedGrid::pack_row(const View& view, int64_t batch, const Group& group, int64_t row) const {
  const Table& table = call_.table;
  const int64_t length = even(group.size[2]);
  const bool apart = form_ == Form::units || padded(dim_) <= kPanelKeys || padded(dim_) % kPanelKeys == 0;
  const int64_t part = apart ? 16 : length;
  std::vector<const void*> rows(static_cast<size_t>(part));
  bool bad = false;
  for (int64_t first = 0; first < length; first += part)
    for (int64_t head = 0; head < call_.a.kv_heads; ++head) {
      const int count = int(std::min(part, length - first));
      for (int64_t x = first; x < first + count; ++x)
        rows[size_t(x - first)] =
            x < group.size[2] ? call_.row(view, call_.a.type, batch, head,
                                          call_.tiling.position(group, {row / group.size[1], row % group.size[1], x}))
                              : nullptr;
      float* to = const_cast<float*>(data(batch, head, group)) + row * row_floats(group);
      if (form_ == Form::units) {
        table.pack_rows(rows.data(), count, dim_, call_.a.type, call_.step, to + first * floats_);
      } else {
        to += first / scale_ * std::min<int64_t>(floats_, kPanelKeys);
        bad = table.pack_by_dim(rows.data(), count, int(length), dim_, call_.a.type, call_.step, to, nullptr) || bad;
      }
    }
  return bad;
}

const void* const* LaneRows::of(const View& view, DType type, int64_t batch, int64_t head, const TilePlace& tile) {
  for (int lane = 0; lane < kTileLanes; ++lane) {
    const int64_t position = tile.positions[lane];
    rows_[size_t(lane)] = position < 0 ? nullptr : call_.row(view, type, batch, head, position);
  }
  return rows_.data();
}

void set_box(LaneTile& t, const KeyBox& box, const LaneCall& call, const Group& group, const float* k,
             const PackedGrid& by_dim, const float* dims, int dim) {
  t.box = box;
  t.width = int(even(box.end[2] - box.first[2]));
  t.keys = (box.end[0] - box.first[0]) * (box.end[1] - box.first[1]) * t.width;
  t.stride[2] = 1, t.stride[1] = even(group.size[2]), t.stride[0] = group.size[1] * t.stride[1];
  const int64_t row = box.first[0] * group.size[1] + box.first[1];
  t.k = k + (row * t.stride[1] + box.first[2]) * call.units(dim);
  t.row_units = int(t.stride[1] / call.step), t.row_at = box.first[2] / call.step;
  t.by_dim = dims + row * by_dim.row_floats(group);
}

std::vector<float> spread_biases(const LaneCall& call) {
  const LaneBias bias(call.tiling);
  const NeighborhoodArguments& a = call.a;
  std::vector<float> spread(a.bias ? size_t(a.heads * bias.floats()) : 0);
  for (int64_t head = 0; a.bias && head < a.heads; ++head)
    bias.spread(a.bias + head * bias.table_floats(), spread.data() + head * bias.floats());
  return spread;
}

}  // namespace foveate::kernels
