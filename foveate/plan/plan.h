// Who sees whom, as data.  A plan says nothing about scores: ops::attend combines it with a Score.
// Positions: query i sits at key index query_start + i (see Rule); a key sits at its own index.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <variant>

namespace foveate {

// Visibility by arithmetic on positions.  Query at position p sees key j iff
//   p - window_left <= j or j < sinks,  and  j <= p + window_right,  and every optional tensor below allows it.
// The default is causal attention over everything before.
struct Rule {
  std::optional<int64_t> query_start;  // position of query 0; unset: Lk - Lq (bottom-right, as FlashAttention >= 2.1)
  std::optional<int64_t> window_left;  // >= 0; unset: no limit.  A window of W keys with the query itself is W - 1
  std::optional<int64_t> window_right = 0;  // >= 0; 0 is causal, unset sees all later keys
  int64_t sinks = 0;                        // the first keys, seen in spite of window_left
  std::optional<at::Tensor> head_window;    // [Hq] int64: window_left of each query head, -1 = no limit
  std::optional<at::Tensor> key_lengths;    // [B] int64: keys at or behind this index are padding
  std::optional<at::Tensor> query_documents, key_documents;  // [B, Lq], [B, Lk] int64: only equal ids see each other
  std::optional<at::Tensor> row_start, row_end;              // [B|1, Hq|1, Lq] int64: keys in [row_start, row_end) only
  // [B|1, Hq|1, N] int64: row n of the plan is this query, -1 none: queries sorted by bucket, or some of them.  Blocks
  // of queries count rows of the plan; positions, documents and all else belong to the query itself.  No query twice.
  std::optional<at::Tensor> query_order;  // unset: row n is query n

  static Rule full() { return {.window_right = std::nullopt}; }
};

// Whether padding, documents or ranges of rows hide keys, beside windows and causality.
bool cuts_texts(const Rule& rule);

// Whole blocks of keys for each block of queries, as FlexAttention and FlashAttention-4 store them.  Head axis H in
// {1, Hkv, Hq}; N = ceil(rows / query_block); capacity = the longest list.  Entries behind `count` are ignored.
// Keys of a partial block are checked by the rule; keys of a full block are all seen by all rows of the query block.
struct BlockPlan {
  int64_t query_block = 128, key_block = 128;
  at::Tensor count, index;                           // [B|1, H, N], [B|1, H, N, capacity] int32
  std::optional<at::Tensor> full_count, full_index;  // the same for full blocks
  Rule rule;
};

// Single keys for each block of queries (query_block 1: for each query); every listed key is checked by the rule.
// -1 is an empty entry.  A key listed twice counts twice (sampling with replacement).
struct TokenPlan {
  int64_t query_block = 1;
  at::Tensor index;  // [B|1, H, N, capacity] int32
  Rule rule;
};

// Ranges of keys for each block of queries: vertical lines and slashes, spans, slices.  Every key of a range is checked
// by the rule.  A range with end <= start is empty; a key in two ranges counts twice.
struct RunPlan {
  int64_t query_block = 128;
  at::Tensor start, end;  // [B|1, H, N, capacity] int32: keys [start, end)
  Rule rule;
};

using Plan = std::variant<Rule, BlockPlan, TokenPlan, RunPlan>;

const Rule& rule_of(const Plan& plan);

// Rows of the plan: Lq, or those that Rule::query_order lists.
int64_t rows_of(const Plan& plan, const at::Tensor& q);

// Throws Error unless the plan's tensors fit q [B, Hq, Lq, D] and k [B, Hkv, Lk, D].
void check_plan(const Plan& plan, const at::Tensor& q, const at::Tensor& k);

// Visible (query, key) pairs summed over batch and query heads, computed in pieces: no L x L matrix.
double visible_pairs(const Plan& plan, const at::Tensor& q, const at::Tensor& k);

}  // namespace foveate
