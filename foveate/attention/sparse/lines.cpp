#include "foveate/attention/sparse/lines.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "foveate/ops/sums/sums.h"

namespace foveate::attention {

LineSums line_sums(const Inputs& asking, const at::Tensor& lse) {
  const auto sums = [&](ops::SumBy by) {
    return ops::attention_sums(asking.q, asking.k, lse.detach(), asking.rule, asking.score, {.by = by});
  };
  const SeenKeys text = shown_keys(without_windows(asking.rule), asking.q.size(2), asking.k.size(2), "lines");
  return {sums(ops::SumBy::key), sums(ops::SumBy::diagonal), text.start.select(1, text.start.size(1) - 1)};
}

LineSums line_sums_of_last(const Inputs& in, int64_t count) {
  const at::NoGradGuard no_gradients;
  const int64_t queries = in.q.size(2), rows = std::min(count, queries);
  const Inputs asking = narrow_rows(in, queries - rows, rows);
  // lse alone is wanted: a few dims of any values will do, and cost less than all of them
  constexpr int64_t kFewDims = 16;
  const at::Tensor values =
      in.k.scalar_type() == at::kByte ? in.v : in.k.narrow(3, 0, std::min(kFewDims, in.k.size(3)));
  ops::Score score = asking.score;
  score.dropout = 0, score.sink.reset();
  return line_sums(asking, ops::attend(asking.q, asking.k, values, asking.rule, score).lse);
}

}  // namespace foveate::attention
