#include "foveate/attention/routing/grouping.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include "foveate/base/error.h"

namespace foveate::attention {
namespace {

// Along `axis`, unless one entry stands for all.
void select(std::optional<at::Tensor>& t, int64_t axis, const at::Tensor& entries) {
  if (t && t->size(axis) != 1) t = t->index_select(axis, entries);
}

void refuse_dropout(const Inputs& in) {
  require(in.score.dropout == 0, "attention: parts of a call can not have dropout, got {}", in.score.dropout);
}

}  // namespace

at::Tensor readers_of(const at::Tensor& heads, int64_t group) {
  return (heads.unsqueeze(1) * group + at::arange(group, at::kLong)).flatten();
}

Inputs select_heads(const Inputs& in, const at::Tensor& heads) {
  refuse_dropout(in);
  const at::Tensor readers = readers_of(heads, in.q.size(1) / in.k.size(1));
  Inputs part = in;
  part.q = in.q.index_select(1, readers);
  part.k = in.k.index_select(1, heads);
  part.v = in.v.index_select(1, heads);
  if (in.q.size(1) == 1) return part;
  select(part.rule.head_window, 0, readers);
  for (auto* rows : {&part.rule.row_start, &part.rule.row_end, &part.rule.query_order, &part.score.bias})
    select(*rows, 1, readers);
  select(part.score.sink, 0, readers);
  select(part.score.slopes, 0, readers);
  if (part.score.relative && part.score.relative->logits.size(1) != 1)
    part.score.relative->logits = part.score.relative->logits.index_select(1, readers);
  return part;
}

Inputs select_sequences(const Inputs& in, const at::Tensor& sequences) {
  if (in.q.size(0) == 1) return in;
  refuse_dropout(in);
  Inputs part = in;
  part.shared = nullptr;  // what it holds is of the whole batch
  for (at::Tensor* t : {&part.q, &part.k, &part.v}) *t = t->index_select(0, sequences);
  if (part.hidden) part.hidden = part.hidden->index_select(0, sequences);
  Rule& rule = part.rule;
  for (auto* t : {&rule.key_lengths, &rule.query_documents, &rule.key_documents, &rule.row_start, &rule.row_end,
                  &rule.query_order, &part.score.bias, &part.score.landmarks})
    select(*t, 0, sequences);
  if (part.score.relative && part.score.relative->logits.size(0) != 1)
    part.score.relative->logits = part.score.relative->logits.index_select(0, sequences);
  return part;
}

}  // namespace foveate::attention
