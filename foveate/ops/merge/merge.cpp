#include "foveate/ops/merge/merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/kernels/level.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

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
  const auto &out = parts[0].out, &lse = parts[0].lse;
  require(out.dim() >= 1 && lse.sizes() == out.sizes().slice(0, size_t(out.dim() - 1)),
          "{}: lse must be as out without its last axis, got [{}] and [{}]", name,
          fmt::join(lse.sizes().begin(), lse.sizes().end(), ", "),
          fmt::join(out.sizes().begin(), out.sizes().end(), ", "));
}

// The softmax over the first axis of logits [parts, ...] as weights before normalising, their sum (1 where all
// are -inf) and the constant taken off.
struct Weights {
  at::Tensor logits, parts, sum, top, empty;

  explicit Weights(const at::Tensor& given) : logits(given) {
    // The top is a constant of the softmax: without detach, rows where all are empty would give NaN gradients.
    top = logits.detach().amax(0);
    top = top.masked_fill(top.eq(kMinusInfinity), 0);
    parts = (logits - top).exp();
    const at::Tensor total = parts.sum(0);
    empty = total.eq(0);
    sum = total.masked_fill(empty, 1);
  }
  // The weighted mean of outs, in their dtype.
  at::Tensor of(const std::vector<at::Tensor>& outs) const {
    const bool learns =
        at::GradMode::is_enabled() &&
        (parts.requires_grad() || std::ranges::any_of(outs, [](const auto& t) { return t.requires_grad(); }));
    const bool has_memory = outs[0].is_cpu() && !at::isTensorSubclassLike(outs[0]);  // else a graph is being traced
    if (!learns && kernel_table() && has_memory && parts.scalar_type() == at::kFloat) return row_by_row(outs);
    std::vector<at::Tensor> wide;  // what is not read may be NaN
    for (size_t i = 0; i < outs.size(); ++i)
      wide.push_back(
          outs[i].to(parts.scalar_type()).masked_fill(logits[int64_t(i)].eq(kMinusInfinity).unsqueeze(-1), 0));
    return ((parts.unsqueeze(-1) * at::stack(wide)).sum(0) / sum.unsqueeze(-1)).to(outs[0].scalar_type());
  }

 private:
  // The same without a copy of the parts: each is read once, and not where it is empty.
  at::Tensor row_by_row(const std::vector<at::Tensor>& outs) const {
    const kernels::Table& table = *kernel_table();
    const at::Tensor result = at::empty(outs[0].sizes(), outs[0].options().memory_format(at::MemoryFormat::Contiguous));
    const kernels::DType type = dtype_of(result);
    const at::Tensor weights = (parts / sum).contiguous(), given = logits.detach().contiguous();
    std::vector<at::Tensor> sources;
    for (const at::Tensor& out : outs) sources.push_back(out.contiguous());
    const int dim = int(result.size(-1));
    const int64_t rows = sum.numel(), bytes = int64_t(kernels::bytes_of(type)) * dim;
    constexpr int64_t kRowsAtOnce = 256;
    run_queue(torch_pool(), (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int) {
      std::vector<float> mean(size_t(kernels::padded(dim)));
      for (int64_t row = item * kRowsAtOnce; row < std::min((item + 1) * kRowsAtOnce, rows); ++row) {
        std::ranges::fill(mean, 0.0f);
        for (size_t i = 0; i < sources.size(); ++i) {
          const int64_t place = int64_t(i) * rows + row;
          if (given.const_data_ptr<float>()[place] == float(kMinusInfinity)) continue;
          table.add_scaled(static_cast<const char*>(sources[i].const_data_ptr()) + row * bytes, dim, type,
                           weights.const_data_ptr<float>()[place], mean.data());
        }
        table.scale_row(mean.data(), dim, 1, type, static_cast<char*>(result.data_ptr()) + row * bytes);
      }
    });
    return result;
  }
};

}  // namespace

Attended merge_by_lse(std::span<const Attended> parts) {
  check_parts(parts, "merge_by_lse");
  std::vector<at::Tensor> lses, outs;
  for (const Attended& part : parts) {
    lses.push_back(part.lse);
    outs.push_back(part.out);
  }
  const Weights weights(at::stack(lses));
  return {weights.of(outs), (weights.sum.log() + weights.top).masked_fill(weights.empty, kMinusInfinity)};
}

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  library.def("merge_by_lse(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)",
              [](const std::vector<at::Tensor>& outs, const std::vector<at::Tensor>& lses) {
                require(outs.size() == lses.size(), "merge_by_lse: outs and lses must be as many, got {} and {}",
                        outs.size(), lses.size());
                std::vector<Attended> parts;
                for (size_t i = 0; i < outs.size(); ++i) parts.push_back({outs[i], lses[i]});
                const auto [out, lse] = merge_by_lse(parts);
                return std::tuple(out, lse);
              });
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
    outs.push_back(parts[i].out);
  }
  return Weights(at::stack(gates)).of(outs);
}

}  // namespace foveate::ops
