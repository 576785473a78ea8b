#include "foveate/attention/sparse/lines.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/sums/sums.h"

namespace foveate::attention {

namespace {

at::Tensor first_key_of_last(const Inputs& asking, std::string_view owner) {
  const int64_t last = first_query_key(asking, owner) + asking.q.size(2) - 1;
  const SeenKeys text = shown_keys(without_windows(asking.rule), asking.q.size(2), asking.k.size(2), owner);
  require(text.end.select(1, -1).eq(last + 1).all().item<bool>(),
          "{}: the last row, whose attention chooses, must see its own key {}, got padding behind a text; pad in front",
          owner, last);
  return text.start.select(1, -1);
}

}  // namespace

LineSums line_sums(const Inputs& asking, const at::Tensor& lse, std::string_view owner) {
  const at::Tensor first_key = first_key_of_last(asking, owner);
  const auto sums = [&](ops::SumBy by) {
    return ops::attention_sums(asking.q, asking.k, lse.detach(), asking.rule, asking.score, {.by = by});
  };
  return {sums(ops::SumBy::key), sums(ops::SumBy::diagonal), first_key};
}

LineSums line_sums_of_last(const Inputs& in, int64_t count, std::string_view owner) {
  const at::NoGradGuard no_gradients;
  const int64_t queries = in.q.size(2), rows = std::min(count, queries);
  const Inputs asking = narrow_rows(in, queries - rows, rows);
  // lse alone is wanted: a few dims of any values will do, and cost less than all of them
  constexpr int64_t kFewDims = 16;
  const at::Tensor values =
      in.k.scalar_type() == at::kByte ? in.v : in.k.narrow(3, 0, std::min(kFewDims, in.k.size(3)));
  ops::Score score = asking.score;
  score.dropout = 0, score.sink.reset();
  return line_sums(asking, ops::attend(asking.q, asking.k, values, asking.rule, score).lse, owner);
}

}  // namespace foveate::attention
