// Attention over raw views: cuts a problem into tiles, packs keys and values, and drives a level's tile kernels.
// Free of torch; ops/attend/cpu.cpp makes these arguments of tensors.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "foveate/base/work_queue.h"
#include "foveate/kernels/level.h"

namespace foveate::kernels {

constexpr int64_t kMostParts = 4;  // of the queries whose listed keys are summed up side by side
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max() / 4;

// [batch, heads, rows, dim], the last stride 1; strides in elements.
struct View {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
};

// [B|1, Hq|1, Lq] int64.
struct RowNumbers {
  const int64_t* data = nullptr;
  int64_t batch = 0, head = 0;
};

// plan/plan.h's Rule with the defaults filled in.
struct RuleView {
  int64_t query_start = 0, left = kNoLimit, right = kNoLimit, sinks = 0;
  const int64_t *head_window = nullptr, *key_lengths = nullptr;        // [Hq], [B]
  const int32_t *query_documents = nullptr, *key_documents = nullptr;  // [B, Lq], [B, Lk]
  RowNumbers row_start, row_end;
};

// Blocks, single keys (key_block 1, no count) or ranges of keys (end) for each block of queries.
struct ListView {
  const int32_t *count = nullptr, *index = nullptr;  // [batch, head, blocks], [batch, head, blocks, capacity]
  const int32_t* end = nullptr;                      // shape of the index, which then holds where ranges start
  int64_t batch = 0, head = 0;                       // strides in blocks; 0 where broadcast
  int64_t heads = 1, capacity = 0;
  bool checks_rule = true;
};

struct Arguments {
  DType type = DType::f32;
  bool keys_in_8_bits = false;  // k and v are rows of q8; forward alone
  DType key_type() const { return keys_in_8_bits ? DType::q8 : type; }
  int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0, keys = 0;
  const int64_t *key_heads = nullptr, *value_heads = nullptr;  // [Hq] which head of k and of v; null: equal groups
  int64_t rows = 0;                                            // of the plan: queries, or those of query_order
  RowNumbers query_order;                                      // [B|1, Hq|1, rows] which query a row is, -1 none
  int dim = 0, value_dim = 0;
  View q, k, v;
  // [batch][page_count]: key j stands in row j % page_size of page pages[j / page_size] of k and v, whose batch axis is
  // pages then; null: k and v are whole.  Forward alone.
  const int32_t* pages = nullptr;
  int64_t page_size = 0, page_count = 0;
  RuleView rule;
  int64_t query_block = 0, key_block = 0;  // 0: the rule alone
  std::vector<ListView> lists;
  ScoreTerms score;  // of batch 0 and head 0; strides of the batch:
  int64_t bias_batch = 0, relative_batch = 0;
  uint64_t dropout_seed = 0;
  bool wants_places = false;    // rows shall know which query they are and where it sits, whatever the score
  const float* sink = nullptr;  // [Hq]
};

struct Results {
  View out;
  DType type = DType::f32;  // of out
  float* lse = nullptr;     // [B, Hq, Lq]
};

struct GradientViews {
  View d_out;                                        // in
  const float *lse = nullptr, *delta_lse = nullptr;  // [B, Hq, Lq]; d loss / d lse, null: zero
  View out;
  View d_q;       // out, dtype of the inputs
  View d_k, d_v;  // out, a head for each of group_heads()
  DType key_type = DType::f32;
  // Of score terms.  bias: of a bias with a key axis, strides 0 where it is broadcast, zeros before; columns: see
  // tile.h; rows: [B, Hq, Lq, columns].
  ScoreGradients terms;
  int64_t bias_batch = 0;
  int64_t bias_part = 0;        // stride of kMostParts copies of it, where rows share it; else 0
  bool groups_in_turn = false;  // (batch, key head) groups share elements of it
};

// What a call does, without doing it.
struct Forecast {
  int64_t tiles = 0, visited_panels = 0, checked_panels = 0;  // panels of 64 keys, summed over tiles
  int64_t tile_rows = 0;
  bool gathers = false;  // keys are gathered for each tile
  bool packs = true;     // keys and values are packed; else read as they are
  bool codes = false;    // rows of q8 are multiplied in whole numbers
  int64_t bytes = 0;     // extra memory of a call
};

// Query heads that read the same key and the same value head: one group for each key head where there is no head map.
struct HeadGroup {
  int64_t key_head, value_head;
  std::vector<int64_t> heads;
};
std::vector<HeadGroup> group_heads(const Arguments& arguments);

void forward(const Table& table, const Arguments& arguments, const Results& results, const Pool& pool);
// Without a query nothing is written. Gradients are bit-equal for any number of threads.
void backward(const Table& table, const Arguments& arguments, const GradientViews& gradients, const Pool& pool);
Forecast forecast(const Table& table, const Arguments& arguments, bool backward, int threads);

}  // namespace foveate::kernels
