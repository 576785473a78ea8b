#include "foveate/attention/local/sorted_groups.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "foveate/base/error.h"

namespace foveate::attention {
namespace {

using at::Tensor;

std::string text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", ")); }

Tensor wide(const Tensor& t) { return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat); }

Tensor directions(const Tensor& t) { return t / t.norm(2, -1, true).clamp_min(1e-12); }

void check_tokens(const Tensor& x, const Tensor& centres) {
  require(x.dim() == 3 && centres.dim() == 2 && centres.size(0) >= 1 && x.size(2) == centres.size(1),
          "centres: x must be [B, N, C] and centres [M, C], got {} and {}", text(x), text(centres));
}

}  // namespace

Tensor first_centres(const Tensor& x, int64_t count) {
  require(x.dim() == 3 && count >= 1, "centres: x must be [B, N, C] and their number >= 1, got {} and {}", text(x),
          count);
  const int64_t tokens = x.size(1), appended = count - tokens % count;
  require(tokens >= count, "centres: there must be as many tokens as centres ({}), got {}", count, tokens);
  const Tensor tail = x.narrow(1, tokens - appended, appended).flip({1});
  return at::cat({wide(x), wide(tail)}, 1).unflatten(1, {count, -1}).mean(c10::IntArrayRef{0, 2});
}

Tensor nearest_centres(const Tensor& x, const Tensor& centres) {
  check_tokens(x, centres);
  const at::NoGradGuard no_gradients;
  // a token's own length changes no order
  return at::matmul(wide(x), directions(wide(centres)).t()).argmax(-1);
}

Tensor sort_by_centre(const Tensor& nearest) { return nearest.argsort(/*stable=*/true, -1); }

Tensor refine_centres(const Tensor& x, const Tensor& centres) {
  check_tokens(x, centres);
  const Tensor tokens = directions(wide(x)).flatten(0, 1), before = directions(wide(centres));
  const Tensor nearest = nearest_centres(x, centres).flatten();
  const Tensor sums = at::zeros(before.sizes(), before.options()).index_add(0, nearest, tokens);
  const Tensor is_empty = at::ones({before.size(0), 1}, at::kBool).index_fill(0, nearest, false);
  return at::where(is_empty, before, directions(sums));
}

Tensor refine_centres(const Tensor& x, const Tensor& centres, int64_t iterations) {
  require(iterations >= 1, "centres: iterations must be >= 1, got {}", iterations);
  Tensor now = centres;
  {
    const at::NoGradGuard no_gradients;
    for (int64_t i = 1; i < iterations; ++i) now = refine_centres(x, now);
  }
  return refine_centres(x, now);
}

namespace {

// The keys of a window for each group, [B, 1, groups, keys] int32.
TokenPlan window_plan(const Tensor& order, const SortedGroups& o) {
  const int64_t tokens = order.size(1), group = std::min(o.group, tokens), groups = (tokens + group - 1) / group;
  const int64_t missing = groups * group - tokens;
  const int64_t before = o.window == GroupWindow::both ? group : 0;
  const int64_t behind = missing + (o.window == GroupWindow::own ? 0 : group);
  const Tensor extended =
      at::cat({order.narrow(1, 0, before).flip({1}), order, order.narrow(1, tokens - behind, behind).flip({1})}, 1);
  const int64_t reach = group * (o.window == GroupWindow::own ? 1 : o.window == GroupWindow::next ? 2 : 3);
  TokenPlan plan{.query_block = group, .index = {}, .rule = Rule::full()};
  plan.index = extended.unfold(1, reach, group).unsqueeze(1).to(at::kInt);
  plan.rule.query_order = at::constant_pad_nd(order, {0, missing}, -1).unsqueeze(1);
  return plan;
}

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& order,
           const std::optional<CentreRows>& centres, const SortedGroups& o) {
  require(o.group >= 1, "sorted groups: group must be >= 1, got {}", o.group);
  require(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && k.size(2) == q.size(2) && v.size(2) == q.size(2) &&
              q.size(2) >= 1,
          "sorted groups: q, k and v must be [B, heads, N, d] of one N >= 1, got {}, {} and {}", text(q), text(k),
          text(v));
  require(
      order.dim() == 2 && order.size(0) == q.size(0) && order.size(1) == q.size(2) && order.scalar_type() == at::kLong,
      "sorted groups: order must be int64 [{}, {}], got {} {}", q.size(0), q.size(2),
      c10::toString(order.scalar_type()), text(order));
  const int64_t tokens = q.size(2);
  require(o.window == GroupWindow::own || tokens <= o.group || 2 * tokens >= 3 * o.group,
          "sorted groups: sequences must have up to {} or at least {} tokens, got {}", o.group, (3 * o.group + 1) / 2,
          tokens);
  if (centres)
    require(centres->k.dim() == 3 && centres->v.dim() == 3 && centres->k.size(0) == k.size(1) &&
                centres->v.size(0) == v.size(1) && centres->k.size(2) == k.size(3) && centres->v.size(2) == v.size(3) &&
                centres->k.size(1) == centres->v.size(1),
            "sorted groups: centres must be [{}, M, {}] and [{}, M, {}], got {} and {}", k.size(1), k.size(3),
            v.size(1), v.size(3), text(centres->k), text(centres->v));
}

}  // namespace

Tensor sorted_group_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& order,
                              const std::optional<CentreRows>& centres, const SortedGroups& o) {
  check(q, k, v, order, centres, o);
  ops::Score score;
  score.scale = o.scale;
  const ops::Attended within = ops::attend(q, k, v, window_plan(order, o), score);
  if (!centres) return within.out;
  const auto for_all = [&](const Tensor& t) { return t.unsqueeze(0).expand({q.size(0), -1, -1, -1}); };
  const ops::Attended global = ops::attend(q, for_all(centres->k), for_all(centres->v), Rule::full(), score);
  if (o.merge == CentreMerge::sum) return within.out + global.out;
  // of the centres in the joint softmax; not merge_by_lse, which reads memory where nothing learns: a trace has none
  const Tensor share = at::sigmoid(global.lse - within.lse).unsqueeze(-1);
  return (within.out + share * (global.out - within.out)).to(q.scalar_type());
}

namespace {

GroupWindow window_named(c10::string_view name) {
  if (name == "own") return GroupWindow::own;
  if (name == "next") return GroupWindow::next;
  require(name == "both", "sorted groups: window must be own, next or both, got '{}'", std::string(name));
  return GroupWindow::both;
}

CentreMerge merge_named(c10::string_view name) {
  if (name == "sum") return CentreMerge::sum;
  require(name == "joint", "sorted groups: merge must be sum or joint, got '{}'", std::string(name));
  return CentreMerge::joint;
}

Tensor flat_sorted_groups(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& order,
                          const std::optional<Tensor>& centre_k, const std::optional<Tensor>& centre_v, int64_t group,
                          c10::string_view window, c10::string_view merge, std::optional<double> scale) {
  require(centre_k.has_value() == centre_v.has_value(), "sorted groups: centre_k and centre_v must be given together");
  const auto centres = centre_k ? std::optional(CentreRows{*centre_k, *centre_v}) : std::nullopt;
  return sorted_group_attention(
      q, k, v, order, centres,
      {.group = group, .window = window_named(window), .merge = merge_named(merge), .scale = scale});
}

Tensor refine_times(const Tensor& x, const Tensor& centres, int64_t iterations) {
  return refine_centres(x, centres, iterations);
}

}  // namespace

// Made of other operators: tracing and autograd see those.
TORCH_LIBRARY_FRAGMENT(foveate, library) {
  library.def("first_centres(Tensor x, int count) -> Tensor", TORCH_FN(first_centres));
  library.def("refine_centres(Tensor x, Tensor centres, int iterations=1) -> Tensor", TORCH_FN(refine_times));
  library.def("nearest_centres(Tensor x, Tensor centres) -> Tensor", TORCH_FN(nearest_centres));
  library.def("sort_by_centre(Tensor nearest) -> Tensor", TORCH_FN(sort_by_centre));
  library.def(
      "sorted_group_attention(Tensor q, Tensor k, Tensor v, Tensor order, Tensor? centre_k=None, "
      "Tensor? centre_v=None, int group=128, str window='next', str merge='sum', float? scale=None) -> Tensor",
      TORCH_FN(flat_sorted_groups));
}

}  // namespace foveate::attention
