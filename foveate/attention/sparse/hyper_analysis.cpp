#include "foveate/attention/sparse/hyper_analysis.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "foveate/attention/sparse/hyper_groups.h"
#include "foveate/ops/sums/sums.h"

namespace foveate::attention {
namespace {

using at::Tensor;

Tensor lse_of(const Tensor& q, const Tensor& k, const Plan& plan, const ops::Score& score) {
  return ops::attend(q, k, k.narrow(3, 0, 1), plan, score).lse;
}

// All queries and keys as one sorted rectangle.
HyperGroup sort_all(const Hyper& o, const Tensor& q, const Tensor& k, const Tensor& projections) {
  o.validate();
  require(o.block_size > 0, "hyper: the sortLSH mask needs blocks, got block_size={}", o.block_size);
  return sort_group(o, {{0, q.size(2), 0, k.size(2)}}, ops::angular_buckets(q, projections, o.gray),
                    ops::angular_buckets(k, projections, o.gray));
}

Inputs inputs_of(const Tensor& q, const Tensor& k) {
  Inputs in;
  in.q = q.detach(), in.k = k.detach(), in.v = in.k.narrow(3, 0, 1);
  return in;
}

}  // namespace

Tensor hyper_alpha(const Tensor& q, const Tensor& k, const Plan& plan, const ops::Score& score, int64_t first_key) {
  const at::NoGradGuard no_grad;
  require(first_key >= 0 && first_key < k.size(2), "hyper_alpha: first_key must be 0 .. {}, got {}", k.size(2) - 1,
          first_key);
  const Tensor squares =
      ops::attention_sums(q, k, lse_of(q, k, plan, score), plan, score, {.by = ops::SumBy::key, .squared = true});
  return squares.narrow(2, first_key, k.size(2) - first_key).amax(2) * double(q.size(2));
}

TokenPlan sortlsh_mask(const Hyper& o, const Tensor& q, const Tensor& k, const Tensor& projections) {
  return block_plan(sort_all(o, q, k, projections), Rule::full());
}

Tensor heavy_mass(const Tensor& q, const Tensor& k, const TokenPlan& mask, const Rule& all, const ops::Score& score) {
  const at::NoGradGuard no_grad;
  TokenPlan shown = mask;
  shown.rule = all;
  shown.rule.query_order = mask.rule.query_order;
  return ops::attention_sums(q, k, lse_of(q, k, all, score), shown, score, {.by = ops::SumBy::row}).mean(2);
}

Tensor hyper_kappa(const Hyper& o, const Tensor& q, const Tensor& k, const Tensor& projections,
                   const ops::Score& score) {
  const at::NoGradGuard no_grad;
  require(k.size(2) > o.block_size, "hyper_kappa: there must be more than block_size = {} keys, got {}", o.block_size,
          k.size(2));
  const SortedRectangle r = sorted_rectangle(sort_all(o, q, k, projections), 0, inputs_of(q, k));
  const int64_t blocks = (q.size(2) + r.query_block - 1) / r.query_block;
  const Tensor sums = outside_lse(r, r.q, at::arange(blocks, at::kLong), r.query_block, score);
  return (sums.amax(2) - sums.amin(2)).exp();
}

Tensor approx_d(const Hyper& o, const Tensor& q, const Tensor& k, const Tensor& projections, const Tensor& drawn,
                const Tensor& asked, const ops::Score& score) {
  const at::NoGradGuard no_grad;
  require(o.residual == Hyper::Residual::capped, "approx_d: options must be those of residual=capped, got {}",
          enum_names(o.residual)[size_t(o.residual)]);
  require(k.size(2) > o.block_size, "approx_d: there must be more than block_size = {} keys, got {}", o.block_size,
          k.size(2));
  const HyperGroup all = sort_all(o, q, k, projections);
  const SortedRectangle r = sorted_rectangle(all, 0, inputs_of(q, k));
  const Tensor block = lse_of(q, k, block_plan(all, Rule::full()), score).gather(2, r.queries);
  const CappedResidual c = capped_residual(o, r, block, drawn, asked, score);
  return at::empty_like(block).scatter_(2, r.queries, at::logaddexp(block, c.lse));
}

Tensor operator_norm(const Tensor& x) {
  const Tensor wide = x.detach().to(at::kDouble);
  return at::linalg_eigvalsh(at::matmul(wide.transpose(-2, -1), wide)).amax(-1).clamp_min(0).sqrt();
}

Tensor attention_norm(const Tensor& q, const Tensor& k, const Plan& plan, const ops::Score& score) {
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor queries = q.detach().to(type), keys = k.detach().to(type);
  const Tensor head = at::arange(q.size(1), at::kLong);
  const ops::HeadMap own_values{.keys = head.div(q.size(1) / k.size(1), "floor"), .values = head};
  // P has no negative entry, nor has its first singular vector: ones are not orthogonal to it
  Tensor x = at::ones({q.size(0), q.size(1), k.size(2), 1}, keys.options());
  Tensor norm = at::zeros({q.size(0), q.size(1)}, keys.options());
  constexpr int kMostRounds = 300;
  const double settled = type == at::kDouble ? 1e-9 : 1e-6;
  for (int round = 0; round < kMostRounds; ++round) {
    x = (x / x.norm(2, {2}, true)).detach().requires_grad_();
    const at::AutoGradMode with_gradients(true);
    const Tensor y = ops::attend(queries, keys, x, plan, score, own_values).out;
    y.backward(y.detach());  // P^T y
    const Tensor next = y.detach().norm(2, {2, 3});
    const double change = ((next - norm).abs() / next).max().item<double>();
    x = x.grad(), norm = next;
    if (change < settled) break;
  }
  return norm;
}

Tensor operator_norm_error(const Tensor& out, const Tensor& q, const Tensor& k, const Tensor& v, const Plan& plan,
                           const ops::Score& score) {
  const at::NoGradGuard no_grad;
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor want = ops::attend(q.to(type), k.to(type), v.to(type), plan, score).out;
  const Tensor of_values = operator_norm(v).repeat_interleave(q.size(1) / k.size(1), 1);
  return operator_norm(out.to(at::kDouble) - want.to(at::kDouble)) /
         (attention_norm(q, k, plan, score).to(at::kDouble) * of_values);
}

}  // namespace foveate::attention
