#include "foveate/attention/sparse/mla.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "foveate/base/error.h"
#include "foveate/ops/attend/attend.h"
#include "foveate/ops/pairs/pair_scores.h"

namespace foveate::attention {
namespace {

using at::Tensor;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

const Tensor& part(const Learned& parts, std::string_view name) {
  const auto found = parts.find(name);
  require(found != parts.end(), "mla: the layer must have {}, got none", name);
  return found->second;
}

// index [S, K], entries that count for nothing -1, as int32.
Tensor legal_entries(const Tensor& index, int64_t keys, const SparseMlaOptions& o) {
  Tensor list = index.to(at::kLong);
  Tensor legal = list.ge(0).logical_and_(list.lt(keys));
  const int64_t rows = list.size(0);
  if (o.topk_length) legal.logical_and_(at::arange(list.size(1), at::kLong).lt(o.topk_length->unsqueeze(1)));
  if (o.causal) legal.logical_and_(list.le(at::arange(keys - rows, keys, at::kLong).unsqueeze(1)));
  return list.masked_fill(legal.logical_not(), -1).to(at::kInt);
}

at::ScalarType wide(const Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

// In fp32, rounded once.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  const Tensor all = x.to(wide(x));
  const Tensor normed = all * at::rsqrt(all.square().mean(-1, true) + epsilon) * weight.to(all.scalar_type());
  return normed.to(x.scalar_type());
}

// Channels 2i and 2i + 1 turn together; x [S, H, D].
Tensor rotate_pairs(const Tensor& x, const ops::Rotation& turn) {
  const int64_t half = x.size(2) / 2;
  const Tensor halves = x.unflatten(2, {half, 2}).transpose(2, 3).flatten(2);
  const Tensor turned = turn.rotate(halves.transpose(0, 1).unsqueeze(0)).squeeze(0).transpose(0, 1);
  return turned.unflatten(2, {2, half}).transpose(2, 3).flatten(2);
}

// kv_up [heads * (plain + value), latent] by head.
Tensor up_by_head(const Learned& parts, const MlaShape& shape) {
  return part(parts, "kv_up").unflatten(0, {shape.heads, shape.plain + shape.value});
}

double scale_of(const MlaShape& shape) {
  return shape.scale != 0 ? shape.scale : 1 / std::sqrt(double(shape.plain + shape.rotated));
}

Tensor project_out(const Tensor& heads, const Learned& parts) {
  return at::linear(heads.flatten(1), part(parts, "out"));
}

}  // namespace

SparseMla sparse_mla(const Tensor& q, const Tensor& kv, const Tensor& index, const SparseMlaOptions& o) {
  require(q.dim() == 3 && kv.dim() == 3 && kv.size(1) == 1 && kv.size(2) == q.size(2) && o.value_dim >= 1 &&
              o.value_dim <= q.size(2),
          "sparse_mla: q [S, H, D] and kv [N, 1, D >= {}] must agree, got [{}] and [{}]", o.value_dim,
          fmt::join(q.sizes(), ", "), fmt::join(kv.sizes(), ", "));
  require(index.dim() == 3 && index.size(0) == q.size(0) && index.size(1) == 1 && !index.is_floating_point(),
          "sparse_mla: index must be integers [{}, 1, K], got [{}]", q.size(0), fmt::join(index.sizes(), ", "));
  require(!o.topk_length || (o.topk_length->dim() == 1 && o.topk_length->size(0) == q.size(0) &&
                             o.topk_length->scalar_type() == at::kLong),
          "sparse_mla: topk_length must be int64 [{}]", q.size(0));
  require(!o.sink || (o.sink->dim() == 1 && o.sink->size(0) == q.size(1) && o.sink->is_floating_point()),
          "sparse_mla: sink must be floating point [{}]", q.size(1));
  const Tensor list = legal_entries(index.select(1, 0), kv.size(0), o).unsqueeze(0).unsqueeze(0);  // [1, 1, S, K]
  const Tensor heads = q.transpose(0, 1).unsqueeze(0), keys = kv.transpose(0, 1).unsqueeze(0);
  const ops::Attended attended =
      ops::attend(heads, keys, keys.narrow(3, 0, o.value_dim), TokenPlan{1, list, Rule::full()}, {.scale = o.scale});
  Tensor out = attended.out.squeeze(0).transpose(0, 1), lse = attended.lse.squeeze(0).t();
  const Tensor empty = lse.detach().eq(-kInfinity);
  lse = lse.masked_fill(empty, kInfinity);
  if (o.sink) out = (out * at::sigmoid(lse.masked_fill(empty, 0) - *o.sink).unsqueeze(2)).to(out.scalar_type());
  if (!o.wants_max) return {out, lse, std::nullopt};
  if (list.size(3) == 0) return {out, lse, lse.detach().mul(-1)};  // no entry: -inf
  return {out, lse, ops::pair_scores(heads.detach(), keys.detach(), list, o.scale).amax(3).squeeze(0).t()};
}

double yarn_scale(int64_t dim, double factor) {
  require(dim >= 1 && factor >= 1, "yarn_scale: dim and factor must be >= 1, got {} and {}", dim, factor);
  const double m = 0.1 * std::log(factor) + 1;
  return m * m / std::sqrt(double(dim));
}

std::vector<double> yarn_divisors(int64_t dim, double base, double factor, int64_t original_length, double fast,
                                  double slow) {
  require(dim >= 2 && dim % 2 == 0 && base > 1 && factor >= 1 && original_length >= 1 && fast > slow && slow > 0,
          "yarn_divisors: dim must be even, base > 1, factor >= 1 and fast > slow > 0, got {}, {}, {}, {} and {}", dim,
          base, factor, fast, slow);
  // The channel whose angle turns so many times in the original length.
  const auto channel = [&](double turns) {
    return double(dim) * std::log(double(original_length) / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
  };
  const double low = std::max(std::floor(channel(fast)), 0.0);
  const double high = std::max(std::min(std::ceil(channel(slow)), double(dim - 1)), low + 0.001);
  std::vector<double> divisors;
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    divisors.push_back(1 / (ramp / factor + 1 - ramp));
  }
  return divisors;
}

std::vector<LearnedPart> mla_parts(const MlaShape& s, int64_t width, int64_t query_rank) {
  const Init normal{Init::Kind::normal, 0.006}, ones{Init::Kind::ones, 0};
  return {{"q_down", {query_rank, width}, normal},
          {"q_norm", {query_rank}, ones},
          {"q_up", {s.heads * (s.plain + s.rotated), query_rank}, normal},
          {"kv_down", {s.latent + s.rotated, width}, normal},
          {"kv_norm", {s.latent}, ones},
          {"kv_up", {s.heads * (s.plain + s.value), s.latent}, normal},
          {"out", {width, s.heads * s.value}, normal}};
}

MlaRows mla_rows(const Tensor& hidden, const Learned& parts, const MlaShape& s, const ops::Rotary& rotary,
                 const Tensor& positions) {
  const ops::Rotation turn = rotary.rotation(positions, wide(hidden));
  const Tensor low_rank = rms_norm(at::linear(hidden, part(parts, "q_down")), part(parts, "q_norm"), s.epsilon);
  const Tensor q = at::linear(low_rank, part(parts, "q_up")).unflatten(1, {s.heads, s.plain + s.rotated});
  const Tensor down = at::linear(hidden, part(parts, "kv_down"));
  const Tensor latent = rms_norm(down.narrow(1, 0, s.latent), part(parts, "kv_norm"), s.epsilon);
  const Tensor key = rotate_pairs(down.narrow(1, s.latent, s.rotated).unsqueeze(1), turn).squeeze(1);
  return {low_rank, at::cat({q.narrow(2, 0, s.plain), rotate_pairs(q.narrow(2, s.plain, s.rotated), turn)}, 2),
          at::cat({latent, key}, 1)};
}

Tensor mla_absorbed(const MlaRows& rows, const Tensor& kv, const Learned& parts, const MlaShape& s,
                    const std::optional<Tensor>& index) {
  const Tensor up = up_by_head(parts, s);
  const Tensor moved = at::einsum("shp,hpc->shc", {rows.q.narrow(2, 0, s.plain), up.narrow(1, 0, s.plain)});
  const Tensor q = at::cat({moved, rows.q.narrow(2, s.plain, s.rotated)}, 2), keys = kv.unsqueeze(1);
  Tensor latent;  // [S, heads, latent]
  if (index) {
    latent = sparse_mla(q, keys, index->unsqueeze(1), {.scale = scale_of(s), .value_dim = s.latent}).out;
  } else {
    const Tensor all = keys.transpose(0, 1).unsqueeze(0);
    latent =
        ops::attend(q.transpose(0, 1).unsqueeze(0), all, all.narrow(3, 0, s.latent), Rule{}, {.scale = scale_of(s)})
            .out.squeeze(0)
            .transpose(0, 1);
  }
  return project_out(at::einsum("shc,hvc->shv", {latent, up.narrow(1, s.plain, s.value)}), parts);
}

Tensor mla_expanded(const MlaRows& rows, const Tensor& kv, const Learned& parts, const MlaShape& s,
                    const std::optional<Tensor>& index) {
  const Tensor up = at::einsum("nc,hec->hne", {kv.narrow(1, 0, s.latent), up_by_head(parts, s)});
  const Tensor rotated = kv.narrow(1, s.latent, s.rotated).unsqueeze(0).expand({s.heads, -1, -1});
  const Tensor k = at::cat({up.narrow(2, 0, s.plain), rotated}, 2).unsqueeze(0), v = up.narrow(2, s.plain, s.value);
  Plan plan = Rule{};
  if (index) plan = TokenPlan{1, legal_entries(*index, kv.size(0), {}).unsqueeze(0).unsqueeze(0), Rule{}};
  const ops::Attended attended =
      ops::attend(rows.q.transpose(0, 1).unsqueeze(0), k, v.unsqueeze(0), plan, {.scale = scale_of(s)});
  return project_out(attended.out.squeeze(0).transpose(0, 1), parts);
}

}  // namespace foveate::attention
