// What a kernel works on: one tile of query rows against panels of 64 packed keys.  Plain pointers, so that the files
// of an instruction set need nothing else.
//
// Everything packed is counted in 32-bit units: one float, or a pair of bf16 that one dot-product instruction takes.
//   rows     [rows][steps]              query side, read by broadcasting a unit; steps = units of the inner axis
//   by key   [steps][64 keys]           a panel of K (or of V, backward): the inner axis is the head dim
//   by dim   [dim / 64][64 keys][64]    a panel of V (or of K, backward): the inner axis is the key, 64 or 32 steps;
//                                       the last block of dims is 16, 32 or 48 wide
#pragma once

#include <cstddef>
#include <cstdint>

namespace foveate::kernels {

constexpr float kLog2e = 1.44269504088896341f;
constexpr int kPanelKeys = 64;   // keys of a panel
constexpr int kGroupRows = 6;    // query rows whose scores stand in registers at a time
constexpr int kStripPanels = 8;  // panels whose scores stand in the first-level cache at a time (512 keys)
constexpr int kStripKeys = kStripPanels * kPanelKeys;
constexpr int kLargestDim = 576;  // of a row of q, k or v
constexpr int kDimMultiple = 16;  // rows of outputs are padded to this many floats
constexpr int kMostAhead = 128;   // rows of k and v that are fetched before they are read

// q8: a row of keys or values is int8 codes, one for each element, and then a bf16 scale for each kScaled of them: an
// element is code * scale.  Strides of such rows are in bytes.
enum class DType : uint8_t { f32, bf16, f16, q8 };
constexpr int kScaled = 32;
constexpr size_t bytes_of(DType type) { return type == DType::f32 ? 4 : type == DType::q8 ? 1 : 2; }
constexpr int64_t row_bytes(int64_t dim, DType type) {
  return type == DType::q8 ? dim + 2 * ((dim + kScaled - 1) / kScaled) : dim * int64_t(bytes_of(type));
}

// Keys [floor, high) are visible to a row from `low` on, and below `sinks` of the tile.
struct RowBounds {
  int32_t floor, low, high;
};

enum class Check : uint8_t {
  none,  // every row sees every key
  end,   // every row sees the keys below `keys` of the tile
  rule,  // bounds and documents decide
};

struct Panel {
  const void* const* keys = nullptr;     // forward: [64] rows of k and of v as they are (null: none), then nothing is
  const void* const* values = nullptr;   //   packed; behind them kMostAhead that are read next
  const float* k = nullptr;              // by key
  const float* v = nullptr;              // forward: by dim; backward: by key
  const float* k_by_dim = nullptr;       // backward
  float *d_k = nullptr, *d_v = nullptr;  // backward: [64][padded dims], added to
  const int32_t* ids = nullptr;          // [64] which key each one is, where they are gathered
  const int32_t* documents = nullptr;    // [64]
  int32_t first = 0;                     // where ids is null: key j of the panel is first + j
  Check check = Check::none;
  const void* const* bad_values = nullptr;  // [64] rows of v that hold NaN or Inf (else null): packed as 0
};

constexpr int kMostAxes = 4;

// Logits for places instead of keys (ops::Relative): column first[a] + clamp(keys[a][j] - queries[a][i], 0, size - 1).
struct RelativeTerm {
  const float* logits = nullptr;  // of the tile's first head; null: none
  int64_t head = 0, query = 0;    // strides; 0 where broadcast
  int axes = 0, columns = 0;      // columns of all axes
  int32_t sizes[kMostAxes] = {};
  const int32_t* queries = nullptr;  // [axes][query_stride]
  const int32_t* keys = nullptr;     // [axes][key_stride]
  int64_t query_stride = 0, key_stride = 0;
};

// How a logit is made beyond scale * q.k.
struct ScoreTerms {
  float scale = 1;
  float soft_cap = 0;          // 0: none
  const char* bias = nullptr;  // of the tile's first head
  DType bias_type = DType::f32;
  int64_t bias_head = 0, bias_query = 0, bias_key = 0;  // strides in elements; 0 where it is broadcast
  const float* slopes = nullptr;                        // of the tile's first head
  RelativeTerm relative;
  float leaky = 1;          // factor of logits that are not positive
  int landmark_block = 0;   // > 0: grouped softmax over blocks of so many keys (ops::Score::landmarks)
  uint32_t drop_below = 0;  // dropout_threshold(probability); 0: no dropout
  float keep_scale = 1;     // 1 / (1 - probability)
  bool adds() const { return bias != nullptr || slopes != nullptr || relative.logits != nullptr; }
  // Whether a logit depends on where its key stands.
  bool uses_places() const { return adds() || landmark_block != 0 || drop_below != 0; }
  bool plain() const { return soft_cap == 0 && !adds() && leaky == 1 && landmark_block == 0 && scale > 0; }
};

// Where gradients of score terms go.  Terms that are summed over keys have columns in `rows`, [rows of the
// tile][columns], added to; -1: none.
struct ScoreGradients {
  float* bias = nullptr;                                // of the tile's first head, where the bias has a key axis
  int64_t bias_head = 0, bias_query = 0, bias_key = 0;  // strides
  float* rows = nullptr;
  int columns = 0, bias_column = -1, slope_column = -1, relative_column = -1;
  bool any() const { return bias != nullptr || columns > 0; }
};

struct Tile {
  int rows = 0;         // heads x queries, query fastest
  int queries = 0;      // rows of one head
  int depth = 0;        // steps of q and k
  int value_depth = 0;  // backward: steps of v and d_out
  int dim = 0, value_dim = 0;
  const Panel* panels = nullptr;
  int panel_count = 0;
  const RowBounds* bounds = nullptr;     // [rows]
  const int32_t* documents = nullptr;    // [rows]; null: no documents
  const int32_t* query_ids = nullptr;    // [rows] which query of q a row is
  const int32_t* positions = nullptr;    // [rows], where the score has slopes
  const uint32_t* drop_words = nullptr;  // [rows][2] dropout_row, where there is dropout
  int32_t sinks = 0, keys = 0;
  DType key_type = DType::f32;  // of keys and values as they are
  ScoreTerms score;
};

struct ForwardTile : Tile {
  const float* q = nullptr;       // rows, q_stride units apart
  int64_t q_stride = 0;           // the depth; for keys as they are whole vectors, zeros behind
  const char* q_codes = nullptr;  // the rows in whole numbers, query_code_bytes apart, for rows of q8; null: none
  float* top = nullptr;           // [rows] largest logit so far, in the units of the products where the score is plain
  float* sum = nullptr;           // [rows]
  float* acc = nullptr;           // [rows][padded value_dim]
  float* strip = nullptr;         // forward_scratch() bytes
};

// A row of a query in whole numbers (Table::pack_query_codes).
constexpr int64_t query_code_bytes(int dim) { return (dim + 63) / 64 * 192 + 64; }

struct BackwardTile : Tile {
  const float *q = nullptr, *d_out = nullptr;                // rows
  const float *q_by_dim = nullptr, *d_out_by_dim = nullptr;  // by dim, the inner axis is the row
  const float* lse = nullptr;                                // [rows] times log2(e); +inf for a row without a key
  const float* delta = nullptr;                              // [rows]
  float* d_q = nullptr;  // [rows][padded dim], added to; without the factor `scale`, as d_k
  ScoreGradients terms;
  float* scratch = nullptr;  // backward_scratch() bytes
};

enum class SumBy : uint8_t { row, key, diagonal, block };

// Probabilities exp(s - lse) of a tile, added up: sums[head][place of the row][column].
struct SumTile : BackwardTile {  // q, lse and scratch of it
  SumBy by = SumBy::key;
  bool squared = false;
  float farthest = 0;     // > 0: times the distance between position and key, at most this
  float* sums = nullptr;  // of the tile's first head
  int64_t head = 0, place = 0, column_count = 0;
  const int32_t* places = nullptr;  // [rows]
  int64_t key_block = 1;            // by block
};

constexpr int padded(int dim) { return (dim + kDimMultiple - 1) / kDimMultiple * kDimMultiple; }
// Units of a panel.
constexpr int64_t by_key_units(int steps) { return int64_t{steps} * kPanelKeys; }
constexpr int64_t by_dim_units(int inner_steps, int dim) { return int64_t{inner_steps} * padded(dim); }

constexpr size_t forward_scratch() { return size_t{4} * kGroupRows * kStripPanels * kPanelKeys * 2; }
constexpr size_t backward_scratch(int rows) {
  const size_t pairs = size_t(rows) + kGroupRows;  // P and dS of the whole tile, and the rows of one group
  return size_t{4} * kStripPanels * kPanelKeys * (2 * pairs + kGroupRows) + size_t{4} * 5 * kGroupRows * kPanelKeys;
}

// Where the rows of a finished tile go.
struct Finish {
  int rows, value_dim;
  const float *top, *sum, *acc;
  float top_scale;    // natural logit per unit of top
  float out_scale;    // of what dropout keeps
  const float* sink;  // [rows] natural logits; null: none
  void* const* out;   // [rows]; null: the row is no query
  DType type;
  float* const* lse;  // [rows]
};

constexpr int kPackedRows = 16;     // output rows of a row block of packed weights
constexpr int kPackedInputs = 32;   // inputs whose codes stand together
constexpr int kPackedVectors = 16;  // vectors of x against which packed weights are read once
constexpr int kPackedPass = 4;      // of them whose sums stand in registers at a time

// Row blocks of packed weights (packed.h).
struct PackedView {
  const char* data = nullptr;
  int64_t block_bytes = 0;  // of a row block
  int in = 0, bits = 0, lowest = 0, group = 0, block = 0;
  bool has_minimum = false;
  int64_t first = 0, count = 0;  // output rows, the first counted in the first row block
};

// A row block is a row of pieces: scales of so many inputs (fewer in the last), padded to whole cache lines, and codes.
constexpr int packed_piece(int block) { return block == kPackedInputs ? 2 * kPackedInputs : block; }
constexpr int packed_scale_bytes(int group, int block, bool has_minimum) {  // of a block
  return kPackedRows * (2 + (block > group ? block / group : 0)) * (has_minimum ? 2 : 1);
}
constexpr int packed_codes_at(int group, int block, bool has_minimum) {  // in a piece
  return (packed_scale_bytes(group, block, has_minimum) * (packed_piece(block) / block) + 63) / 64 * 64;
}
constexpr int packed_code_bytes(int bits) { return 4 * kPackedRows * bits; }  // of kPackedInputs

// y[v / terms][row] = sum of x[v][..] * weights[row][..] over the `terms` vectors that make up a row of x.  Vectors are
// read in passes of kPackedPass, the last perhaps fewer, side by side: x [pass][unit][vector of it], units floats or
// pairs of bf16, and likewise sums [pass][in / group][vector of it] of the numbers in x.
struct PackedTile {
  PackedView weights;  // first = 0
  const float *x = nullptr, *sums = nullptr;
  int vectors = 0, terms = 1;
  float* y = nullptr;
  int64_t y_stride = 0;
};

constexpr int kIndexColumn = 16;  // keys of an indexer that stand side by side in a panel

// to[column][j] = scales[column][j] * sum over heads of weights[h] * max(q[h] . k, 0) for the keys k of some columns:
// 16 neighbours of a panel by key each.  The bits of a key do not depend on what stands beside it.
struct IndexTile {
  const float* q = nullptr;        // rows [heads][steps]
  const float* weights = nullptr;  // [heads]
  int heads = 0, steps = 0;
  const float* const* columns = nullptr;  // units [steps][16], kPanelKeys apart
  const float* const* scales = nullptr;   // [16] of each column; null: 1
  int column_count = 0;
  float* to = nullptr;  // [columns][16]
};

// Rows of a decoder layer (ops/fused.h); sizes are at least 1, types f32 or bf16, all norms divide by the root of the
// mean square + epsilon.
struct BranchRow {
  float* x = nullptr;            // += norm(branch)
  const void* branch = nullptr;  // null: x stays
  DType branch_type = DType::f32;
  const float *branch_norm = nullptr, *norm = nullptr;  // [width] factors; null: no norm
  float epsilon = 0;
  int width = 0;
  void* to = nullptr;  // norm(x)
  DType type = DType::f32;
};
struct HeadRows {
  const void* from = nullptr;  // [heads][dim]
  void* to = nullptr;          // the same, heads `stride` elements apart
  int64_t stride = 0;
  DType type = DType::f32;
  int heads = 0, dim = 0;
  const float* norm = nullptr;  // [dim] factors of every head; null: no norm
  float epsilon = 0;
  int half = 0;  // channels i and half + i turn by cos[i], sin[i]; those from 2 * half on pass
  const float *cos = nullptr, *sin = nullptr;
};
struct GateRow {
  const void *gate = nullptr, *up = nullptr;  // to = act(gate) * up; null: act(gate)
  void* to = nullptr;
  DType type = DType::f32;
  int count = 0;
  bool is_gelu = false;  // by tanh; else silu
};

struct LaneForward;  // neighborhood_tile.h
struct LaneBackward;

// to[t] = sum over rows of weights[row][t] * rows[row]; the bits of an element do not depend on other targets.
struct WeighedRows {
  const void* const* rows = nullptr;
  int count = 0;                   // of rows
  const float* weights = nullptr;  // [count][targets]
  void* const* to = nullptr;       // [targets]
  int targets = 0, dim = 0;
  DType type = DType::f32;  // of rows and targets: f32, bf16, f16
};
// to[row][t] = rows[row] . targets[t]
struct RowDots {
  const void* const* rows = nullptr;
  const void* const* targets = nullptr;
  int count = 0, target_count = 0, dim = 0;  // at least 1
  DType type = DType::f32;
  float* to = nullptr;  // [count][target_count]
};

// One level of instructions.  What stands at [1] is null where bf16 is not multiplied as it is.
struct Table {
  const char* name;
  // Pack `count` rows of dim elements (null: zeros), `step` elements of the inner axis a unit (1 float, 2 bf16).  By
  // key the rows are the first of 64 and a multiple of 16; by dim they are the first of `all`, both multiples of
  // `step`.
  void (*pack_rows)(const void* const* rows, int count, int dim, DType type, int step, float* to);
  // `ahead`: as many rows that will be packed next, fetched meanwhile; null: none.
  void (*pack_by_key)(const void* const* rows, int count, int dim, DType type, int step, float* to,
                      const void* const* ahead);
  // NaN and Inf are packed as 0; returns whether there were any.
  bool (*pack_by_dim)(const void* const* rows, int count, int all, int dim, DType type, int step, float* to,
                      const void* const* ahead);
  void (*forward[2])(const ForwardTile&);    // [step - 1]
  void (*backward[2])(const BackwardTile&);  // [step - 1]
  void (*finish)(const Finish&);
  void (*sums[2])(const SumTile&);  // [step - 1]
  // out[row] = sum_d a[row][d] * b[row][d]
  void (*row_dots)(const void* const* a, const void* const* b, int rows, int dim, DType type, float* out);
  // to[d] = from[d] * factor, converted to `type`.
  void (*scale_row)(const float* from, int dim, float factor, DType type, void* to);
  // to[d] += from[d] * factor
  void (*add_scaled)(const void* from, int dim, DType type, float factor, float* to);
  // to[d] += from[d]
  void (*add_row)(const float* from, int dim, float* to);
  // Sums of each 16 of `count` numbers of x; and, at levels with pairs, x as the sum of `terms` rows of bf16: then the
  // sums are those of each term.  Rows of sums and of units are `strides` apart.
  void (*packed_inputs)(const float* x, int count, int terms, float* units, float* sums);
  void (*packed_multiply)(const PackedTile&);
  void (*packed_values)(const PackedView&, DType type, void* to, int64_t stride);
  // A row of q8: codes are x / scale to the nearest (ties to even), the scale is the largest |x| / 127, rounded up.  A
  // block with NaN or Inf becomes NaN.
  void (*quantise_row)(const void* from, int dim, DType type, void* to);
  // A row of a query in whole numbers; returns false where it is not finite.  Null at levels that multiply no codes.
  bool (*pack_query_codes)(const void* row, int dim, DType type, void* to);
  void (*index_scores[2])(const IndexTile&);  // [step - 1]
  // Neighborhood attention of a tile; return false where a number that counts is not finite.
  bool (*lane_forward[2])(const LaneForward&);    // [step - 1]
  bool (*lane_backward[2])(const LaneBackward&);  // [step - 1]
  void (*take_in)(const BranchRow&);
  void (*rotate_heads)(const HeadRows&);
  void (*gate_row)(const GateRow&);
  // What the machine can do: products in registers alone, returns the operations done; and reading memory.
  double (*peak_products[2])(int64_t rounds);  // [step - 1]
  float (*read)(const float* from, int64_t count);
  void (*weigh_rows)(const WeighedRows&);
  void (*dot_rows)(const RowDots&);
};

}  // namespace foveate::kernels
