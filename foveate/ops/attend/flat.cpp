#include "foveate/ops/attend/flat.h"

#include "foveate/base/error.h"

namespace foveate::ops {

using at::Tensor;

namespace {

Plan make_plan(Rule rule, int64_t query_block, int64_t key_block, OptionalTensor count, OptionalTensor index,
               OptionalTensor full_count, OptionalTensor full_index, OptionalTensor run_end) {
  require(index || (!count && !run_end), "attend: count and run_end need an index, got them alone");
  require(!count || !run_end, "attend: a plan has count or run_end, got both");
  if (!index) return rule;
  if (run_end) return RunPlan{.query_block = query_block, .start = *index, .end = *run_end, .rule = std::move(rule)};
  if (!count) return TokenPlan{.query_block = query_block, .index = *index, .rule = std::move(rule)};
  return BlockPlan{.query_block = query_block,
                   .key_block = key_block,
                   .count = *count,
                   .index = *index,
                   .full_count = full_count,
                   .full_index = full_index,
                   .rule = std::move(rule)};
}

}  // namespace

Problem make_problem(const Tensor& q, const Tensor& k, const Tensor& v, OptionalTensor bias, OptionalTensor sink,
                     OptionalDouble scale, OptionalDouble soft_cap, OptionalTensor slopes, OptionalTensor relative,
                     OptionalTensor relative_queries, OptionalTensor relative_keys, at::IntArrayRef relative_sizes,
                     OptionalDouble leaky, double dropout, OptionalTensor dropout_seed, OptionalTensor landmarks,
                     OptionalTensor key_heads, OptionalTensor value_heads, OptionalInt query_start,
                     OptionalInt window_left, OptionalInt window_right, int64_t sinks, OptionalTensor head_window,
                     OptionalTensor key_lengths, OptionalTensor query_documents, OptionalTensor key_documents,
                     OptionalTensor row_start, OptionalTensor row_end, int64_t query_block, int64_t key_block,
                     OptionalTensor count, OptionalTensor index, OptionalTensor full_count, OptionalTensor full_index,
                     OptionalTensor run_end, OptionalTensor query_order, OptionalTensor pages) {
  Rule rule{query_start,     window_left,   window_right, sinks,   head_window, key_lengths,
            query_documents, key_documents, row_start,    row_end, query_order};
  Score score{scale, soft_cap, bias, sink, slopes, {}, leaky, landmarks, dropout, dropout_seed};
  require(relative.has_value() == relative_queries.has_value() && relative.has_value() == relative_keys.has_value(),
          "attend: relative, relative_queries and relative_keys must come together, got {}",
          relative.has_value() + relative_queries.has_value() + relative_keys.has_value());
  if (relative) score.relative = Relative{*relative, *relative_queries, *relative_keys, relative_sizes.vec()};
  Plan plan = make_plan(std::move(rule), query_block, key_block, count, index, full_count, full_index, run_end);
  return {q, k, v, std::move(plan), std::move(score), {key_heads, value_heads}, {}, pages};
}

}  // namespace foveate::ops
