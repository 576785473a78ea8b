// What a level's kernels for neighborhood attention are given: queries in the lanes of a vector against a box of keys.
#pragma once

#include "foveate/kernels/tile.h"

namespace foveate::kernels {

constexpr int kGridAxes = 3;
constexpr int kTileLanes = 16;  // queries of a tile: one vector, or two of 8
constexpr int kQuad = 4;        // neighbouring lanes whose sums over keys stand in registers at a time
constexpr int kBoxKeys = 512;   // keys of a call at most; even

// Keys [first, end) of each axis, in coordinates of the group.
struct KeyBox {
  int32_t first[kGridAxes], end[kGridAxes];
};

// What the queries of a tile see.
struct LaneWindows {
  // The window of each lane, empty where a lane is no query; and what each quad of lanes sees together.
  int32_t first[kGridAxes][kTileLanes], end[kGridAxes][kTileLanes];
  KeyBox quads[kTileLanes / kQuad];
};

// Keys and values stand packed: a whole range of the group's places, rows along the last axis an even number of keys
// long.  The box begins at an even key of it.
struct LaneTile : LaneWindows {
  int dim = 0, value_dim = 0;
  KeyBox box;
  int width = 0;                   // keys of a row of the box, rounded up to an even number
  int keys = 0;                    // rows of the box * width, at most kBoxKeys
  int64_t stride[kGridAxes] = {};  // from a packed key to the next along an axis, in keys
  const float* k = nullptr;        // units of the box's first key, then of the others: [steps] each
  // Values (forward) or keys (backward) by dim, as Table::pack_by_dim has the rows along the last axis one by one: that
  // of the box's first key; where in it the box begins, and how long it is, in units.
  const float* by_dim = nullptr;
  int row_at = 0, row_units = 0;
  float scale = 1;                      // times log2(e)
  const float* bias = nullptr;          // times log2(e), for the first key of the box: [lanes]; null: none
  int64_t bias_stride[kGridAxes] = {};  // from a key to the next along an axis
  const float* q = nullptr;             // units by dim: [steps][64], the lanes first
  float* scratch = nullptr;             // kLaneScratch floats
};

struct LaneForward : LaneTile {
  float *top = nullptr, *sum = nullptr;  // [lanes], logits times log2(e)
  float* acc = nullptr;                  // [lanes][padded value_dim]
};

struct LaneBackward : LaneTile {
  const float* v = nullptr;                                  // as k
  const float* d_out = nullptr;                              // as q
  const float *q_by_dim = nullptr, *d_out_by_dim = nullptr;  // Table::pack_by_dim of all lanes
  const float *lse = nullptr, *delta = nullptr;              // [lanes]; lse times log2(e)
  float* d_q = nullptr;                                      // [lanes][padded dim], added to, without the scale
  // Added to, without the scale: of the first key of the box, [padded dim] and [padded value_dim] of each key, and how
  // many keys it is from one to the next along an axis.
  float *d_k = nullptr, *d_v = nullptr;
  int64_t sum_stride[kGridAxes] = {};
  float* d_bias = nullptr;  // as bias, of natural logits; null: not wanted
};

constexpr int64_t kLaneScratch = kBoxKeys * (4 * kTileLanes + 4);

}  // namespace foveate::kernels
