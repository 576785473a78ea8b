// Neighborhood attention over raw views: queries of a grid stand in the lanes of vectors, keys are read one by one.
// Free of torch; ops/neighborhood/cpu.cpp makes these arguments of tensors.
// Source: Hassani et al., Generalized Neighborhood Attention, 2504.16922; the loop order is for CPUs.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "foveate/kernels/attend.h"
#include "foveate/kernels/neighborhood_tile.h"

namespace foveate::kernels {

// Who sees whom along one axis of a grid.  Positions x with the same x % dilation are a group; query and key must be of
// the same one, and everything is counted in coordinates p = x / dilation of the group.
struct NeighborhoodAxis {
  int64_t length = 1, kernel = 1, stride = 1, dilation = 1;
  bool is_causal = false;
  // Whether the leader of the last, incomplete stride group of a causal axis is the last query there is, or the one
  // that would be if the axis went on.
  bool clamps_last_group = true;

  int64_t group_length(int64_t group) const { return (length - group + dilation - 1) / dilation; }
  // Keys [first, second) that query p of a group of `size` sees.
  std::pair<int64_t, int64_t> window(int64_t p, int64_t size) const;
};

// Key tiles that all query tiles of a group visit, summed up: a query tile visits what lies between the first and the
// last key that any of its queries sees, in key tiles that start anywhere (dynamic) or at multiples of their size.
int64_t visited_tiles(const NeighborhoodAxis& axis, int64_t size, int64_t query_tile, int64_t key_tile,
                      bool is_dynamic);

using Neighborhood = std::array<NeighborhoodAxis, kGridAxes>;  // the last axis is the inner one

struct NeighborhoodArguments {
  DType type = DType::f32;
  int64_t batch = 0, heads = 0, kv_heads = 0;
  int dim = 0, value_dim = 0;
  Neighborhood axes;
  View q, k, v;  // rows are positions, the last axis inner
  float scale = 1;
  const float* bias = nullptr;  // [heads][2 kernel - 1 of each axis] by key - query in the group; null: none

  int64_t positions() const { return axes[0].length * axes[1].length * axes[2].length; }
};

struct NeighborhoodGradients {
  View d_out, out;                                   // in
  const float *lse = nullptr, *delta_lse = nullptr;  // [batch, heads, positions]; d loss / d lse, null: zero
  View d_q, d_k, d_v;                                // results, dtype of the inputs
  float* d_bias = nullptr;                           // [heads][2 kernel - 1 ..]; null: not wanted
};

// Both return false where a number among the inputs or results was not finite: the results then mean nothing.
bool neighborhood_forward(const Table& table, const NeighborhoodArguments& arguments, const Results& results,
                          const Pool& pool);
// Bit-equal for any number of threads.
bool neighborhood_backward(const Table& table, const NeighborhoodArguments& arguments,
                           const NeighborhoodGradients& gradients, const Pool& pool);

// What a call does, without doing it.
struct NeighborhoodForecast {
  std::array<int, kGridAxes> tile = {1, 1, 1};  // queries
  int64_t tiles = 0;                            // of all groups of one head
  double visited_keys = 0, visible_keys = 0;    // summed over the queries of one head
};
NeighborhoodForecast neighborhood_forecast(const Neighborhood& axes);

}  // namespace foveate::kernels
