// Windows on a grid of one to three axes: each query sees the keys nearest to it.
// Sources: Hassani et al., 2204.07143 (windows), 2209.15001 (dilation), 2504.16922 (stride: Generalized Neighborhood
// Attention).
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "foveate/kernels/neighborhood.h"
#include "foveate/plan/plan.h"

namespace foveate {

using kernels::NeighborhoodAxis;

// Who sees whom is the product of what each axis says.  Tokens are the places of the grid, the last axis inner.
// Along an axis, in coordinates p of the query's dilation group (positions with the same x % dilation, p = x /
// dilation, `size` of them):
//   leader a = min(stride * (p / stride) + stride / 2, size - 1)      all queries of a stride group share its window
//   keys [s, s + kernel),  s = clamp(a - kernel / 2, 0, size - kernel)     shifted inward at the edges, never cut
//   causal:  a = min(stride * (p / stride) + stride - 1, size - 1),   keys [max(a - kernel + 1, 0), p]
// so that every query sees itself, and exactly kernel keys (causal: 1 .. kernel).
struct Neighborhood {
  std::vector<NeighborhoodAxis> axes;  // 1 .. 3

  int64_t positions() const;
  int64_t window_keys() const;           // of a query, causality aside
  int64_t group_queries() const;         // of a whole stride group
  kernels::Neighborhood padded() const;  // with axes of one place in front
};

// Throws Error unless there are 1 .. 3 axes, each with length >= 1, kernel >= 1, 1 <= stride <= kernel, dilation >= 1
// and kernel * dilation <= length.
void check_neighborhood(const Neighborhood& neighborhood);

// The same as lists, for queries [first, first + count): index [1, 1, count, window_keys()], -1 where a causal axis
// hides a key.
TokenPlan token_plan(const Neighborhood& neighborhood, int64_t first, int64_t count);

// The same as ranges of keys, where there are such: one axis is a rule of a range for each query; with more of them, a
// stride group is a block of queries that share lines of keys (Rule::query_order).  Nothing with dilation, nor with a
// causal axis of more than one key beside others.
std::optional<Plan> range_plan(const Neighborhood& neighborhood);

// A place's coordinates in its dilation groups as one number, such that number(key) - number(query) + `offset` is the
// place in a table [2 kernel - 1 of each axis] of key - query + kernel - 1.  numbers: [positions] int64.
struct BiasPlaces {
  at::Tensor numbers;
  int64_t offset, size;
};
BiasPlaces bias_places(const Neighborhood& neighborhood);

// What tiles of queries would visit in tiles of keys (GNA's simulator, 2504.16922, section 4, for tiles of any shape).
struct TileCost {
  int64_t visited = 0;                                              // pairs of tiles, summed over dilation groups
  int64_t dense = 0;                                                // all pairs there are
  double bound() const { return double(dense) / double(visited); }  // of the speed-up over dense attention
};
// is_dynamic: key tiles of a query tile begin at its first key; else at multiples of their size.
// Throws Error: tiles that are no positive sizes of as many axes.
TileCost tile_cost(const Neighborhood& neighborhood, const std::vector<int64_t>& query_tile,
                   const std::vector<int64_t>& key_tile, bool is_dynamic);

// Whether no pair of tiles needs a mask: all queries of a tile share one window, which begins and ends where key tiles
// do, in every dilation group.  Never with a causal axis whose kernel is longer than 1.
bool is_block_sparse(const Neighborhood& neighborhood, const std::vector<int64_t>& query_tile,
                     const std::vector<int64_t>& key_tile);

}  // namespace foveate
