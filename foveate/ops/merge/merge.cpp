#include "foveate/ops/merge/merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>

#include <limits>
#include <vector>

#include "foveate/base/error.h"

namespace foveate::ops {

namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

void check_parts(std::span<const Attended> parts, std::string_view name) {
  require(!parts.empty(), "{}: at least one part is needed, got 0", name);
  for (const Attended& part : parts)
    require(part.lse.sizes() == parts[0].lse.sizes() && part.out.sizes() == parts[0].out.sizes(),
            "{}: parts must have one shape, got [{}] and [{}]", name,
            fmt::join(part.out.sizes().begin(), part.out.sizes().end(), ", "),
            fmt::join(parts[0].out.sizes().begin(), parts[0].out.sizes().end(), ", "));
}

// The softmax over the first axis of logits [parts, B, Hq, Lq] as weights before normalising, their sum (1 where all
// are -inf) and the constant taken off.
struct Weights {
  at::Tensor parts, sum, top, empty;

  explicit Weights(const at::Tensor& logits) {
    // The top is a constant of the softmax: without detach, rows where all are empty would give NaN gradients.
    top = logits.detach().amax(0);
    top = top.masked_fill(top.eq(kMinusInfinity), 0);
    parts = (logits - top).exp();
    const at::Tensor total = parts.sum(0);
    empty = total.eq(0);
    sum = total.masked_fill(empty, 1);
  }
  at::Tensor of(const std::vector<at::Tensor>& outs) const {
    return (parts.unsqueeze(-1) * at::stack(outs)).sum(0) / sum.unsqueeze(-1);
  }
};

}  // namespace

Attended merge_by_lse(std::span<const Attended> parts) {
  check_parts(parts, "merge_by_lse");
  std::vector<at::Tensor> lses, outs;
  for (const Attended& part : parts) {
    lses.push_back(part.lse);
    outs.push_back(part.out.to(part.lse.scalar_type()));
  }
  const Weights weights(at::stack(lses));
  return {weights.of(outs).to(parts[0].out.scalar_type()),
          (weights.sum.log() + weights.top).masked_fill(weights.empty, kMinusInfinity)};
}

at::Tensor mix(std::span<const Attended> parts, std::span<const at::Tensor> logits) {
  check_parts(parts, "mix");
  require(logits.size() == parts.size(), "mix: a logit for each part is needed, got {} for {}", logits.size(),
          parts.size());
  std::vector<at::Tensor> gates, outs;
  for (size_t i = 0; i < parts.size(); ++i) {
    const at::Tensor& lse = parts[i].lse;
    require(logits[i].sizes() == lse.sizes() && logits[i].is_floating_point(),
            "mix: logits must be floating point [{}], got {} [{}]",
            fmt::join(lse.sizes().begin(), lse.sizes().end(), ", "), c10::toString(logits[i].scalar_type()),
            fmt::join(logits[i].sizes().begin(), logits[i].sizes().end(), ", "));
    gates.push_back(logits[i].to(lse.scalar_type()).masked_fill(lse.detach().eq(kMinusInfinity), kMinusInfinity));
    outs.push_back(parts[i].out.to(lse.scalar_type()));
  }
  return Weights(at::stack(gates)).of(outs).to(parts[0].out.scalar_type());
}

}  // namespace foveate::ops
