// The plan and the score as flat arguments: what schemas of operators can say.  Named once here, taken apart once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <utility>

#include "foveate/ops/attend/definition.h"

namespace foveate::ops {

using OptionalTensor = const std::optional<at::Tensor>&;
using OptionalInt = std::optional<int64_t>;
using OptionalDouble = std::optional<double>;

// The plan and the score as the schema's flat arguments, in its order.
inline constexpr const char* kSchema =
    "Tensor? bias=None, Tensor? sink=None, float? scale=None, float? soft_cap=None, "
    "Tensor? slopes=None, Tensor? relative=None, Tensor? relative_queries=None, Tensor? relative_keys=None, "
    "int[] relative_sizes=[], float? leaky=None, float dropout=0.0, Tensor? dropout_seed=None, "
    "Tensor? landmarks=None, Tensor? key_heads=None, Tensor? value_heads=None, "
    "int? query_start=None, int? window_left=None, int? window_right=None, int sinks=0, Tensor? head_window=None, "
    "Tensor? key_lengths=None, Tensor? query_documents=None, Tensor? key_documents=None, Tensor? row_start=None, "
    "Tensor? row_end=None, int query_block=0, int key_block=0, Tensor? count=None, Tensor? index=None, "
    "Tensor? full_count=None, Tensor? full_index=None, Tensor? run_end=None, Tensor? query_order=None, "
    "Tensor? pages=None";

Problem make_problem(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, OptionalTensor bias,
                     OptionalTensor sink, OptionalDouble scale, OptionalDouble soft_cap, OptionalTensor slopes,
                     OptionalTensor relative, OptionalTensor relative_queries, OptionalTensor relative_keys,
                     at::IntArrayRef relative_sizes, OptionalDouble leaky, double dropout, OptionalTensor dropout_seed,
                     OptionalTensor landmarks, OptionalTensor key_heads, OptionalTensor value_heads,
                     OptionalInt query_start, OptionalInt window_left, OptionalInt window_right, int64_t sinks,
                     OptionalTensor head_window, OptionalTensor key_lengths, OptionalTensor query_documents,
                     OptionalTensor key_documents, OptionalTensor row_start, OptionalTensor row_end,
                     int64_t query_block, int64_t key_block, OptionalTensor count, OptionalTensor index,
                     OptionalTensor full_count, OptionalTensor full_index, OptionalTensor run_end,
                     OptionalTensor query_order, OptionalTensor pages);

// The inverse of make_problem; refers to the problem.
inline auto flatten(const Problem& p) {
  const Rule& r = rule_of(p.plan);
  int64_t query_block = 0, key_block = 0;
  std::optional<at::Tensor> count, index, full_count, full_index, run_end;
  if (const auto* blocks = std::get_if<BlockPlan>(&p.plan)) {
    query_block = blocks->query_block, key_block = blocks->key_block;
    count = blocks->count, index = blocks->index;
    full_count = blocks->full_count, full_index = blocks->full_index;
  } else if (const auto* tokens = std::get_if<TokenPlan>(&p.plan)) {
    query_block = tokens->query_block, index = tokens->index;
  } else if (const auto* runs = std::get_if<RunPlan>(&p.plan)) {
    query_block = runs->query_block, index = runs->start, run_end = runs->end;
  }
  const Score& s = p.score;
  std::optional<at::Tensor> relative, relative_queries, relative_keys;
  if (s.relative)
    relative = s.relative->logits, relative_queries = s.relative->queries, relative_keys = s.relative->keys;
  return std::tuple(p.q, p.k, p.v, s.bias, s.sink, s.scale, s.soft_cap, s.slopes, relative, relative_queries,
                    relative_keys, s.relative ? at::IntArrayRef(s.relative->sizes) : at::IntArrayRef(), s.leaky,
                    s.dropout, s.dropout_seed, s.landmarks, p.heads.keys, p.heads.values, r.query_start, r.window_left,
                    r.window_right, r.sinks, r.head_window, r.key_lengths, r.query_documents, r.key_documents,
                    r.row_start, r.row_end, query_block, key_block, count, index, full_count, full_index, run_end,
                    r.query_order, p.pages);
}

using Arguments = decltype(flatten(std::declval<Problem>()));

}  // namespace foveate::ops
