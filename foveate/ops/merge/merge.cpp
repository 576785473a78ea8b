#include "foveate/ops/merge/merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>

#include <limits>
#include <vector>

#include "foveate/base/error.h"

namespace foveate::ops {

Attended merge_by_lse(std::span<const Attended> parts) {
  require(!parts.empty(), "merge_by_lse: at least one part is needed, got 0");
  std::vector<at::Tensor> lses, outs;
  for (const Attended& part : parts) {
    require(part.lse.sizes() == parts[0].lse.sizes() && part.out.sizes() == parts[0].out.sizes(),
            "merge_by_lse: parts must have one shape, got [{}] and [{}]",
            fmt::join(part.out.sizes().begin(), part.out.sizes().end(), ", "),
            fmt::join(parts[0].out.sizes().begin(), parts[0].out.sizes().end(), ", "));
    lses.push_back(part.lse);
    outs.push_back(part.out.to(part.lse.scalar_type()));
  }
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const at::Tensor all = at::stack(lses);  // [parts, B, Hq, Lq]
  // The top is a constant of the softmax: without detach, rows where all parts are empty would give NaN gradients.
  at::Tensor top = all.detach().amax(0);
  top = top.masked_fill(top.eq(kMinusInfinity), 0);
  const at::Tensor weights = (all - top).exp();
  const at::Tensor sum = weights.sum(0);
  const at::Tensor empty = sum.eq(0);
  const at::Tensor safe_sum = sum.masked_fill(empty, 1);
  const at::Tensor out = (weights.unsqueeze(-1) * at::stack(outs)).sum(0) / safe_sum.unsqueeze(-1);
  return {out.to(parts[0].out.scalar_type()), (safe_sum.log() + top).masked_fill(empty, kMinusInfinity)};
}

}  // namespace foveate::ops
