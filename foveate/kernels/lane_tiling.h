// What forward and backward of neighborhood attention share: tiles of queries that stand in the lanes of vectors, the
// boxes of keys they see, and a worker's rows.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "foveate/kernels/neighborhood.h"
#include "foveate/kernels/tiling.h"

namespace foveate::kernels {

using Place = std::array<int64_t, kGridAxes>;  // or sizes

inline Place unravel(int64_t index, const Place& sizes) {
  Place at;
  for (int axis = kGridAxes - 1; axis >= 0; --axis)
    at[size_t(axis)] = index % sizes[size_t(axis)], index /= sizes[size_t(axis)];
  return at;
}
inline int64_t product(const Place& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

constexpr int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

// One of the interleaved grids that dilation makes of a grid.
struct Group {
  Place offset, size, tiles;
  int64_t first_key = 0;  // where its packed keys begin
  int64_t packed_keys() const { return size[0] * size[1] * even(size[2]); }
};

// Where a tile lies and what it sees: the same for all batches and heads.
struct TilePlace {
  Place origin;
  int64_t positions[kTileLanes];  // in the whole grid; -1 where a lane is no query
  LaneWindows windows;
  KeyBox box;  // what all lanes see together
};

class LaneTiling {
 public:
  explicit LaneTiling(const Neighborhood& axes);
  // Tiles of a row of the last axis, or of a part of it: they are run together, head by head.
  static int64_t run_of(const Group& group) { return std::min<int64_t>(group.tiles[2], 32); }

  const std::vector<Group>& groups() const { return groups_; }
  const Place& shape() const { return shape_; }
  const Neighborhood& axes() const { return axes_; }
  // The position of a place of the group in the whole grid.
  int64_t position(const Group& group, const Place& at) const {
    int64_t position = 0;
    for (size_t a = 0; a < kGridAxes; ++a)
      position = position * axes_[a].length + at[a] * axes_[a].dilation + group.offset[a];
    return position;
  }
  // Tiles [first, end) of a group.
  const std::vector<TilePlace>& places(const Group& group, int64_t first, int64_t end,
                                       std::vector<TilePlace>& memory) const;

 private:
  void place(const Group& group, int64_t tile, TilePlace& to) const;

  const Neighborhood& axes_;
  Place shape_;
  std::vector<Group> groups_;
};

// A bias by key - query of one head, spread over lanes: [key - origin of the tile + kernel - 1 of each axis][lane], one
// key more at both ends of the last axis.
class LaneBias {
 public:
  explicit LaneBias(const LaneTiling& tiling) : tiling_(tiling) {
    for (size_t a = 0; a < kGridAxes; ++a) {
      table_[a] = 2 * tiling.axes()[a].kernel - 1;
      spread_[a] = table_[a] + tiling.shape()[a] - 1;
    }
    spread_[2] += 2;  // boxes begin and end at even keys
  }
  int64_t table_floats() const { return product(table_); }
  int64_t floats() const { return product(spread_) * kTileLanes; }
  void set_strides(LaneTile& t) const {
    t.bias_stride[2] = kTileLanes;
    t.bias_stride[1] = spread_[2] * t.bias_stride[2];
    t.bias_stride[0] = spread_[1] * t.bias_stride[1];
  }
  int64_t at(const LaneTile& t, const Place& origin) const {  // of the box's first key
    int64_t place = 0;
    for (size_t a = 0; a < kGridAxes; ++a)
      place += (t.box.first[a] - origin[a] + tiling_.axes()[a].kernel - 1) * t.bias_stride[a];
    return place + t.bias_stride[2];
  }
  void spread(const float* table, float* to) const {
    std::fill_n(to, floats(), 0.0f);
    for_entries([&](int64_t from, int64_t place) { to[place] = table[from] * kLog2e; });
  }
  void gather(const float* spread, float* table) const {
    for_entries([&](int64_t to, int64_t place) { table[to] += spread[place]; });
  }

 private:
  template <class Use>
  void for_entries(const Use& use) const {
    for (int lane = 0; lane < kTileLanes; ++lane) {
      const Place offset = unravel(lane, tiling_.shape());
      for (int64_t i = 0; i < table_floats(); ++i) {
        Place at = unravel(i, table_);
        for (size_t a = 0; a < kGridAxes; ++a) at[a] += offset[a];
        use(i, ((at[0] * spread_[1] + at[1]) * spread_[2] + at[2] + 1) * kTileLanes + lane);
      }
    }
  }

  const LaneTiling& tiling_;
  Place table_, spread_;
};

// Cuts a box into boxes of at most kBoxKeys keys that begin at even keys, their rows counted with an even number.
template <class Use>
void for_boxes(KeyBox all, const Use& use) {
  all.first[2] = all.first[2] / 2 * 2;
  int32_t part[kGridAxes];
  const auto length = [&](int axis) { return all.end[axis] - all.first[axis]; };
  part[2] = std::min<int32_t>(length(2), kBoxKeys);
  part[1] = std::clamp<int32_t>(int32_t(kBoxKeys / even(part[2])), 1, length(1));
  part[0] = part[2] < length(2) || part[1] < length(1)
                ? 1
                : std::clamp<int32_t>(int32_t(kBoxKeys / (even(part[2]) * part[1])), 1, length(0));
  KeyBox box;
  for (box.first[0] = all.first[0]; box.first[0] < all.end[0]; box.first[0] = box.end[0]) {
    box.end[0] = std::min(box.first[0] + part[0], all.end[0]);
    for (box.first[1] = all.first[1]; box.first[1] < all.end[1]; box.first[1] = box.end[1]) {
      box.end[1] = std::min(box.first[1] + part[1], all.end[1]);
      for (box.first[2] = all.first[2]; box.first[2] < all.end[2]; box.first[2] = box.end[2]) {
        box.end[2] = std::min(box.first[2] + part[2], all.end[2]);
        use(box);
      }
    }
  }
}

inline float* take(float*& at, int64_t count) {
  float* here = at;
  at += (count + 15) / 16 * 16;
  return here;
}

// What every worker needs of a call.
struct LaneCall {
  const Table& table;
  const NeighborhoodArguments& a;
  LaneTiling tiling;
  int step;  // elements of a unit

  LaneCall(const Table& t, const NeighborhoodArguments& arguments)
      : table(t), a(arguments), tiling(arguments.axes), step(arguments.type == DType::bf16 && has_pairs(t) ? 2 : 1) {}
  int64_t units(int dim) const { return (dim + step - 1) / step; }
  int64_t repeats() const { return a.heads / a.kv_heads; }
  int64_t place(int64_t batch, int64_t head, int64_t position) const {  // in [batch, heads, positions]
    return (batch * a.heads + head) * a.positions() + position;
  }
  void* row(const View& view, DType type, int64_t batch, int64_t head, int64_t position) const {
    return static_cast<char*>(view.data) +
           (batch * view.batch + head * view.head + position * view.row) * int64_t(bytes_of(type));
  }
};

// What every tile of a call has.
inline void start_tile(const LaneCall& call, const LaneBias& bias, float* scratch, LaneTile& t) {
  t.dim = call.a.dim, t.value_dim = call.a.value_dim;
  t.scale = call.a.scale * kLog2e;
  t.scratch = scratch;
  bias.set_strides(t);
}

// k or v of a call, packed once: dilation groups apart, rows along the last axis an even number of keys long.
class PackedGrid {
 public:
  enum class Form {
    units,  // [key][steps]
    by_dim  // each row along the last axis as Table::pack_by_dim has it
  };
  PackedGrid(const LaneCall& call, const View& view, int dim, Form form, const Pool& pool);

  bool is_bad() const { return bad_; }  // NaN or Inf among what is packed by dim, as 0
  // Of a key head and a group: the row of its first key.
  const float* data(int64_t batch, int64_t kv_head, const Group& group) const {
    return memory_.data() + ((batch * call_.a.kv_heads + kv_head) * keys_ + group.first_key) * floats_ / scale_;
  }
  // From a row along the last axis to the next.
  int64_t row_floats(const Group& group) const { return even(group.size[2]) * floats_ / scale_; }

 private:
  bool pack_row(const View& view, int64_t batch, const Group& group, int64_t row) const;

  const LaneCall& call_;
  int dim_;
  Form form_;
  int64_t keys_, floats_, scale_;  // of all groups; a key has floats / scale
  Floats64 memory_;
  bool bad_ = false;
};

// Rows of the queries of a tile.
class LaneRows {
 public:
  explicit LaneRows(const LaneCall& call) : call_(call), rows_(kTileLanes) {}
  // Null where a lane is no query.
  const void* const* of(const View& view, DType type, int64_t batch, int64_t head, const TilePlace& tile);

 private:
  const LaneCall& call_;
  std::vector<const void*> rows_;
};

// A box of a group: which of the packed keys `k` and `by_dim` it stands for.
void set_box(LaneTile& t, const KeyBox& box, const LaneCall& call, const Group& group, const float* k,
             const PackedGrid& by_dim, const float* dims, int dim);

// Workers of a pool, made where they are needed.
template <class Worker>
class Workers {
 public:
  explicit Workers(int threads) : all_(size_t(std::max(threads, 1))) {}
  template <class Make>
  Worker& get(int worker, const Make& make) {
    auto& own = all_[size_t(worker)];
    if (!own) own = make();
    return *own;
  }

 private:
  std::vector<std::unique_ptr<Worker>> all_;
};

// The biases of all heads over lanes; empty without one.
std::vector<float> spread_biases(const LaneCall& call);

}  // namespace foveate::kernels
