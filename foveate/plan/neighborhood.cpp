#include "foveate/plan/neighborhood.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <tuple>

#include "foveate/base/error.h"

namespace foveate {

using at::Tensor;

int64_t Neighborhood::positions() const {
  int64_t product = 1;
  for (const NeighborhoodAxis& axis : axes) product *= axis.length;
  return product;
}

int64_t Neighborhood::window_keys() const {
  int64_t product = 1;
  for (const NeighborhoodAxis& axis : axes) product *= axis.kernel;
  return product;
}

int64_t Neighborhood::group_queries() const {
  int64_t product = 1;
  for (const NeighborhoodAxis& axis : axes) product *= axis.stride;
  return product;
}

kernels::Neighborhood Neighborhood::padded() const {
  kernels::Neighborhood all;
  std::copy(axes.begin(), axes.end(), all.end() - std::ssize(axes));
  return all;
}

void check_neighborhood(const Neighborhood& neighborhood) {
  const auto& axes = neighborhood.axes;
  require(axes.size() >= 1 && axes.size() <= kernels::kGridAxes, "neighborhood: axes must be 1 .. 3, got {}",
          axes.size());
  for (size_t i = 0; i < axes.size(); ++i) {
    const NeighborhoodAxis& a = axes[i];
    require(a.length >= 1, "neighborhood: length must be >= 1, got {} on axis {}", a.length, i);
    require(a.kernel >= 1, "neighborhood: kernel must be >= 1, got {} on axis {}", a.kernel, i);
    require(a.stride >= 1 && a.stride <= a.kernel, "neighborhood: stride must be 1 .. kernel = {}, got {} on axis {}",
            a.kernel, a.stride, i);
    require(a.dilation >= 1, "neighborhood: dilation must be >= 1, got {} on axis {}", a.dilation, i);
    require(a.kernel <= a.length / a.dilation,
            "neighborhood: kernel * dilation must be <= length, got {} * {} > {} on axis {}; pad the grid or take less",
            a.kernel, a.dilation, a.length, i);
  }
}

namespace {

// The keys along an axis that a query at position x sees, as positions; causal axes give fewer than kernel.
std::vector<int64_t> keys_along(const NeighborhoodAxis& axis, int64_t x) {
  const int64_t group = x % axis.dilation;
  const auto [start, end] = axis.window(x / axis.dilation, axis.group_length(group));
  std::vector<int64_t> keys;
  for (int64_t key = start; key < end; ++key) keys.push_back(key * axis.dilation + group);
  return keys;
}

}  // namespace

TokenPlan token_plan(const Neighborhood& neighborhood, int64_t first, int64_t count) {
  const auto axes = neighborhood.padded();
  const int64_t capacity = neighborhood.window_keys();
  Tensor index = at::empty({1, 1, count, capacity}, at::kInt);
  int32_t* to = index.data_ptr<int32_t>();
  for (int64_t query = first; query < first + count; ++query) {
    const auto outer = keys_along(axes[0], query / axes[2].length / axes[1].length);
    const auto middle = keys_along(axes[1], query / axes[2].length % axes[1].length);
    const auto inner = keys_along(axes[2], query % axes[2].length);
    int32_t* const end = to + capacity;
    for (const int64_t a : outer)
      for (const int64_t b : middle)
        for (const int64_t c : inner) *to++ = int32_t((a * axes[1].length + b) * axes[2].length + c);
    while (to < end) *to++ = -1;
  }
  return {.query_block = 1, .index = index, .rule = Rule::full()};
}

namespace {

Rule rule_of_one_axis(const NeighborhoodAxis& axis) {
  Tensor start = at::empty({1, 1, axis.length}, at::kLong), end = at::empty_like(start);
  int64_t *const first = start.data_ptr<int64_t>(), *const last = end.data_ptr<int64_t>();
  for (int64_t x = 0; x < axis.length; ++x) std::tie(first[x], last[x]) = axis.window(x, axis.length);
  Rule rule = Rule::full();
  rule.row_start = start, rule.row_end = end;
  return rule;
}

// Calls use(place on each axis) for a box of places, the last axis inner.
template <class Use>
void for_places(const std::array<std::pair<int64_t, int64_t>, kernels::kGridAxes>& box, const Use& use) {
  for (int64_t a = box[0].first; a < box[0].second; ++a)
    for (int64_t b = box[1].first; b < box[1].second; ++b)
      for (int64_t c = box[2].first; c < box[2].second; ++c) use(std::array{a, b, c});
}

}  // namespace

std::optional<Plan> range_plan(const Neighborhood& neighborhood) {
  const auto all = neighborhood.padded();
  for (const NeighborhoodAxis& axis : all)
    if (axis.dilation > 1 || (axis.is_causal && axis.kernel > 1 && neighborhood.axes.size() > 1)) return std::nullopt;
  if (neighborhood.axes.size() == 1) return rule_of_one_axis(neighborhood.axes[0]);
  const auto position = [&](const auto& place) {
    return (place[0] * all[1].length + place[1]) * all[2].length + place[2];
  };
  std::array<std::pair<int64_t, int64_t>, kernels::kGridAxes> groups, box;
  for (size_t i = 0; i < all.size(); ++i) groups[i] = {0, (all[i].length + all[i].stride - 1) / all[i].stride};
  const int64_t count = groups[0].second * groups[1].second * groups[2].second, queries = neighborhood.group_queries();
  Tensor order = at::full({1, 1, count * queries}, -1, at::kLong);
  Tensor start = at::empty({1, 1, count, all[0].kernel * all[1].kernel}, at::kInt);
  int64_t* row = order.data_ptr<int64_t>();
  int32_t* line = start.data_ptr<int32_t>();
  for_places(groups, [&](const auto& group) {
    for (size_t i = 0; i < all.size(); ++i)
      box[i] = {group[i] * all[i].stride, std::min((group[i] + 1) * all[i].stride, all[i].length)};
    int64_t* next = row;
    for_places(box, [&](const auto& place) { *next++ = position(place); });
    row += queries;
    for (size_t i = 0; i < all.size(); ++i) box[i] = all[i].window(box[i].first, all[i].length);
    box[2].second = box[2].first + 1;  // where lines start
    for_places(box, [&](const auto& place) { *line++ = int32_t(position(place)); });
  });
  Rule rule = Rule::full();
  rule.query_order = order;
  return RunPlan{.query_block = queries, .start = start, .end = start + all[2].kernel, .rule = rule};
}

BiasPlaces bias_places(const Neighborhood& neighborhood) {
  BiasPlaces places{at::empty({neighborhood.positions()}, at::kLong), 0, 1};
  for (const NeighborhoodAxis& axis : neighborhood.axes) {
    const int64_t width = 2 * axis.kernel - 1;
    places.size *= width, places.offset = places.offset * width + axis.kernel - 1;
  }
  int64_t* to = places.numbers.data_ptr<int64_t>();
  for (int64_t position = 0; position < neighborhood.positions(); ++position) {
    int64_t rest = position, number = 0, pitch = 1;
    for (auto axis = neighborhood.axes.rbegin(); axis != neighborhood.axes.rend(); ++axis) {
      number += rest % axis->length / axis->dilation * pitch;
      rest /= axis->length, pitch *= 2 * axis->kernel - 1;
    }
    to[position] = number;
  }
  return places;
}

namespace {

void check_tiles(const Neighborhood& neighborhood, const std::vector<int64_t>& tile) {
  require(tile.size() == neighborhood.axes.size(), "neighborhood: a tile must have {} sizes, got {}",
          neighborhood.axes.size(), tile.size());
  for (const int64_t size : tile) require(size >= 1, "neighborhood: sizes of a tile must be >= 1, got {}", size);
}

}  // namespace

TileCost tile_cost(const Neighborhood& neighborhood, const std::vector<int64_t>& query_tile,
                   const std::vector<int64_t>& key_tile, bool is_dynamic) {
  check_neighborhood(neighborhood);
  check_tiles(neighborhood, query_tile);
  check_tiles(neighborhood, key_tile);
  TileCost cost{1, 1};
  for (size_t i = 0; i < neighborhood.axes.size(); ++i) {
    const NeighborhoodAxis& axis = neighborhood.axes[i];
    const auto tiles = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
    int64_t visited = 0, dense = 0;
    for (int64_t group = 0; group < axis.dilation; ++group) {
      const int64_t size = axis.group_length(group);
      visited += kernels::visited_tiles(axis, size, query_tile[i], key_tile[i], is_dynamic);
      dense += tiles(size, query_tile[i]) * tiles(size, key_tile[i]);
    }
    cost.visited *= visited, cost.dense *= dense;
  }
  return cost;
}

bool is_block_sparse(const Neighborhood& neighborhood, const std::vector<int64_t>& query_tile,
                     const std::vector<int64_t>& key_tile) {
  check_neighborhood(neighborhood);
  check_tiles(neighborhood, query_tile);
  check_tiles(neighborhood, key_tile);
  for (size_t i = 0; i < neighborhood.axes.size(); ++i) {
    const NeighborhoodAxis& axis = neighborhood.axes[i];
    if (axis.is_causal && axis.kernel > 1) return false;
    for (int64_t group = 0; group < axis.dilation; ++group) {
      const int64_t size = axis.group_length(group);
      for (int64_t first = 0; first < size; first += query_tile[i]) {
        const auto window = axis.window(first, size);
        if (window.first % key_tile[i] != 0 || (window.second % key_tile[i] != 0 && window.second != size))
          return false;
        for (int64_t p = first + 1; p < std::min(first + query_tile[i], size); ++p)
          if (axis.window(p, size) != window) return false;
      }
    }
  }
  return true;
}

}  // namespace foveate
