// attend_neighborhood on the CPU kernels (kernels/neighborhood.h), where they take a problem.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/kernels/neighborhood.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/neighborhood/problem.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;

// Kernel arguments, and what they point to.
struct RawProblem {
  kernels::NeighborhoodArguments arguments;
  Tensor q, k, v, bias;

  explicit RawProblem(const NeighborhoodProblem& p) : q(readable(p.q)), k(readable(p.k)), v(readable(p.v)) {
    auto& a = arguments;
    a.type = dtype_of(q);
    a.batch = q.size(0), a.heads = q.size(1), a.kv_heads = k.size(1);
    a.dim = int(q.size(3)), a.value_dim = int(v.size(3));
    a.axes = p.neighborhood.padded();
    a.q = view_of(q), a.k = view_of(k), a.v = view_of(v);
    a.scale = float(p.scale());
    if (!p.score.bias) return;
    bias = p.score.bias->detach().to(at::kFloat).contiguous();
    a.bias = bias.const_data_ptr<float>();
  }
};

// Windows as ranges of keys for attend's tiles, whose packed keys serve many more queries than a tile of a grid has:
// from where LOG.md found them faster.  Nothing for others.
std::optional<Problem> as_ranges(const NeighborhoodProblem& p) {
  constexpr int64_t kLongWindow = 192, kManyQueries = 64, kMostPositions = int64_t{1} << 30;
  const Neighborhood& n = p.neighborhood;
  if (p.score.bias || n.window_keys() < kLongWindow || n.positions() > kMostPositions) return std::nullopt;
  const at::ScalarType type = p.q.scalar_type();
  const bool fast = type == at::kFloat || (type == at::kBFloat16 && kernels::has_pairs(*kernel_table()));
  if (n.axes.size() == 1 ? !fast : n.group_queries() < kManyQueries) return std::nullopt;
  std::optional<Plan> plan = range_plan(n);
  if (!plan) return std::nullopt;
  Problem problem{p.q, p.k, p.v, *std::move(plan)};
  problem.score.scale = p.scale();
  problem.keeps_layout = true, problem.has_wide_out = p.has_extra();
  return problem;
}

// Infinite sums of finite numbers count as well: what is left to the definition is slow, not wrong.
bool all_finite(std::initializer_list<Tensor> tensors) {
  return std::ranges::all_of(tensors, [](const Tensor& t) { return std::isfinite(t.sum(at::kFloat).item<float>()); });
}

}  // namespace

std::string neighborhood_decline_reason(const NeighborhoodProblem& p) {
  if (const std::string reason = decline_reason(p.q.scalar_type()); !reason.empty()) return reason;
  const int64_t largest = std::max(p.q.size(3), p.v.size(3));
  if (largest > kernels::kLargestDim || p.q.size(3) < 1 || p.v.size(3) < 1)
    return fmt::format("head dims must be 1 .. {}, got {} and {}", kernels::kLargestDim, p.q.size(3), p.v.size(3));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  for (const NeighborhoodAxis& axis : p.neighborhood.axes)
    if (axis.length > kMost) return fmt::format("axes must be <= {} long, got {}", kMost, axis.length);
  return {};
}

std::optional<Attended> neighborhood_cpu(const NeighborhoodProblem& p) {
  if (const auto ranges = as_ranges(p)) return attend_cpu(*ranges);
  const RawProblem raw(p);
  const Tensor out = empty_rows(p.q, p.v.size(3), p.has_extra() ? at::kFloat : p.q.scalar_type());
  const Tensor lse = at::empty({p.q.size(0), p.q.size(1), p.q.size(2)}, p.q.options().dtype(at::kFloat));
  const bool sound = kernels::neighborhood_forward(*kernel_table(), raw.arguments,
                                                   {view_of(out), dtype_of(out), lse.data_ptr<float>()}, torch_pool());
  return sound ? std::optional(Attended{out, lse}) : std::nullopt;
}

std::optional<NeighborhoodResults> neighborhood_backward_cpu(const NeighborhoodProblem& p, const Attended& attended,
                                                             const Tensor& d_out, const Tensor& d_lse) {
  if (const auto ranges = as_ranges(p)) {
    if (!all_finite({p.q, p.k, p.v, d_out})) return std::nullopt;  // attend's kernels go on without such numbers
    const Gradients g = attend_backward_cpu(*ranges, attended, d_out, d_lse);
    return NeighborhoodResults{g.q, g.k, g.v, {}, {}, {}};
  }
  const RawProblem raw(p);
  const Tensor given = readable(d_out), out = readable(attended.out), lse = attended.lse.contiguous();
  const Tensor given_lse = d_lse.defined() ? d_lse.to(at::kFloat).contiguous() : Tensor();
  NeighborhoodResults results{
      empty_rows(p.q, p.q.size(3)), empty_rows(p.k, p.k.size(3)), empty_rows(p.v, p.v.size(3)), {}, {}, {}};
  kernels::NeighborhoodGradients g;
  g.d_out = view_of(given), g.out = view_of(out);
  g.lse = lse.const_data_ptr<float>();
  g.delta_lse = given_lse.defined() ? given_lse.const_data_ptr<float>() : nullptr;
  g.d_q = view_of(results.q), g.d_k = view_of(results.k), g.d_v = view_of(results.v);
  if (p.score.bias) {
    results.bias = at::zeros(p.score.bias->sizes(), p.q.options().dtype(at::kFloat));
    g.d_bias = results.bias.data_ptr<float>();
  }
  if (!kernels::neighborhood_backward(*kernel_table(), raw.arguments, g, torch_pool())) return std::nullopt;
  if (p.score.bias) results.bias = results.bias.to(p.score.bias->scalar_type());
  return results;
}

namespace {

std::string describe_windows(const NeighborhoodProblem& p, Pass pass) {
  const std::string reason = neighborhood_decline_reason(p);
  if (!reason.empty()) return "definition: " + reason;
  if (const auto ranges = as_ranges(p)) return "windows as ranges of keys, " + describe(*ranges, pass);
  const auto f = kernels::neighborhood_forecast(p.neighborhood.padded());
  const bool pairs = p.q.scalar_type() == at::kBFloat16 && kernels::has_pairs(*kernel_table());
  const std::vector<int64_t> tile(f.tile.end() - std::ssize(p.neighborhood.axes), f.tile.end());
  const bool is_sparse = is_block_sparse(p.neighborhood, tile, std::vector<int64_t>(tile.size(), 1));
  return fmt::format("{}: {} products, {} tiles of {} queries a head, boxes of {:.2f} keys for each one that is seen{}",
                     kernel_table()->name, pairs ? "bf16" : "fp32", f.tiles, fmt::join(tile, " x "),
                     f.visited_keys / f.visible_keys, is_sparse ? ", the same for all queries of a tile" : "");
}

}  // namespace

std::string explain_neighborhood(const Tensor& q, const Tensor& k, const Tensor& v, const Neighborhood& neighborhood,
                                 const NeighborhoodScore& score, Pass pass) {
  const NeighborhoodProblem problem{q, k, v, neighborhood, score};
  check_neighborhood_problem(problem);
  if (q.numel() == 0) return "nothing to do: there is no query";
  const std::string windows = describe_windows(problem, pass);
  if (!problem.has_extra()) return windows;
  const Problem extra = problem.extra();
  return windows + "; extra keys: " + explain(q, extra.k, extra.v, extra.plan, extra.score, pass);
}

}  // namespace foveate::ops
