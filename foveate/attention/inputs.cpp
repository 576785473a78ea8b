#include "foveate/attention/mechanism.h"
#include "foveate/base/error.h"

namespace foveate::attention {

Inputs narrow_rows(const Inputs& in, int64_t first, int64_t count) {
  Inputs part = in;
  part.q = in.q.narrow(2, first, count);
  if (in.hidden) part.hidden = in.hidden->narrow(1, first, count);
  part.rule.query_start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2)) + first;
  if (in.first_position) part.first_position = *in.first_position + first;
  const auto by_query = [&](std::optional<at::Tensor>& t, int64_t axis) {
    if (t && t->size(axis) != 1) t = t->narrow(axis, first, count);
  };
  by_query(part.rule.query_documents, 1);
  by_query(part.rule.row_start, 2);
  by_query(part.rule.row_end, 2);
  by_query(part.score.bias, 2);
  if (part.score.relative) {
    ops::Relative& relative = *part.score.relative;
    if (relative.logits.size(2) != 1) relative.logits = relative.logits.narrow(2, first, count);
    relative.queries = relative.queries.narrow(1, first, count);
  }
  return part;
}

const at::Tensor& learned(const Inputs& in, std::string_view owner, std::string_view name) {
  require(in.learned, "{}: has learned parts, got no adapter; give the file that training wrote", owner);
  const auto found = in.learned->find(name);
  require(found != in.learned->end(), "{}: the adapter must have {}, got none", owner, name);
  return found->second;
}

}  // namespace foveate::attention
