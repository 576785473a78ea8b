#include "foveate/ops/sums/visible.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros.h>

#include "foveate/base/error.h"
#include "foveate/ops/attend/attend.h"

namespace foveate::ops {
namespace {

using at::Tensor;

bool only_causal(const Rule& r) {
  return r.window_right && !r.window_left && !r.head_window && !r.key_lengths && !r.query_documents && !r.row_start &&
         !r.row_end && !r.query_order;
}

// A row takes the running sum up to its last key.
VisibleSum causal_sum(const Tensor& v, const Rule& rule, int64_t heads, int64_t queries, at::ScalarType type) {
  const int64_t keys = v.size(2), start = rule.query_start.value_or(keys - queries) + *rule.window_right + 1;
  const Tensor seen = at::arange(start, start + queries, at::kLong).clamp_(0, keys);
  const Tensor running = at::constant_pad_nd(v.cumsum(2, at::kDouble), {0, 0, 1, 0});  // [B, Hkv, Lk + 1, Dv]
  const Tensor sum = running.index_select(2, seen).to(type).repeat_interleave(heads / v.size(1), 1);
  return {sum, seen.to(type).view({1, 1, -1}).expand({v.size(0), heads, queries})};
}

}  // namespace

VisibleSum visible_sum(const Tensor& v, const Plan& plan, int64_t heads, int64_t queries) {
  require(v.dim() == 4 && v.size(1) >= 1 && heads % v.size(1) == 0 && queries >= 0,
          "visible_sum: v must be [B, Hkv, Lk, Dv] and heads a multiple of Hkv, got [{}] and {}",
          fmt::join(v.sizes().begin(), v.sizes().end(), ", "), heads);
  const auto type = v.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor q = at::zeros({v.size(0), heads, queries, 1}, v.options().dtype(type));
  const Tensor k = at::zeros({v.size(0), v.size(1), v.size(2), 1}, q.options());
  if (const auto* rule = std::get_if<Rule>(&plan); rule && only_causal(*rule)) {
    check_plan(plan, q, k);
    return causal_sum(v, *rule, heads, queries, type);
  }
  const Attended mean = attend(q, k, v.to(type), plan);  // all logits 0: lse is the logarithm of the count
  const Tensor count = mean.lse.detach().exp().round();
  return {mean.out * count.unsqueeze(3), count};
}

}  // namespace foveate::ops
