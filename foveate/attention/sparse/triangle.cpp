#include "foveate/attention/sparse/triangle.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "foveate/attention/dense.h"
#include "foveate/attention/window.h"

namespace foveate::attention {

Attended Triangle::attend(const Inputs& in) const {
  return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended Triangle::attend_prompt(const Inputs& in) const {
  validate();
  require(!in.rule.query_order, "triangle: ordered queries are not supported, choose queries as they come");
  const Window window{.size = size, .sinks = sinks};
  const int64_t queries = in.q.size(2), dense = in.ends_prompt ? std::min(last, queries) : 0, rows = queries - dense;
  if (rows == 0) return Dense{}.attend(in);
  if (dense == 0) return window.attend(in);
  Attended head = window.attend(narrow_rows(in, 0, rows)), tail = Dense{}.attend(narrow_rows(in, rows, dense));
  tail.plans[0].first_row = rows;
  head.out = at::cat({head.out, tail.out}, 2);
  head.lse = at::cat({*head.lse, *tail.lse}, 2);
  head.plans.push_back(std::move(tail.plans[0]));
  return head;
}

std::unique_ptr<State> Triangle::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<Triangle>>(*this, options);
}

}  // namespace foveate::attention
