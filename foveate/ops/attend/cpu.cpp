#include "foveate/ops/attend/cpu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>
#include <utility>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/kernels/attend.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/attend/storage.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using kernels::DType;

constexpr int64_t kMostKeys = std::numeric_limits<int32_t>::max() - kernels::kPanelKeys;

// Of results that belong to `like`.
Tensor empty_result(const Problem& p, const Tensor& like, int64_t dim, at::ScalarType type) {
  if (p.keeps_layout) return empty_rows(like, dim, type);
  return at::empty({like.size(0), like.size(1), like.size(2), dim}, like.options().dtype(type));
}
Tensor empty_result(const Problem& p, const Tensor& like) {
  return empty_result(p, like, like.size(3), like.scalar_type());
}

// Where the kernels put the gradients of keys and values: one of each for every group of heads, summed up by head
// where a head map makes groups share heads.
struct KeySums {
  Tensor k, v;

  KeySums(const Problem& p, const kernels::Arguments& a) {
    if (!p.heads.keys) {
      k = empty_result(p, p.k).zero_(), v = empty_result(p, p.v).zero_();
      return;
    }
    std::vector<int64_t> key_heads, value_heads;
    for (const kernels::HeadGroup& g : kernels::group_heads(a)) {
      key_heads.push_back(g.key_head);
      value_heads.push_back(g.value_head);
    }
    key_heads_ = at::tensor(key_heads, at::kLong), value_heads_ = at::tensor(value_heads, at::kLong);
    const auto floats = p.k.options().dtype(at::kFloat);
    const int64_t groups = std::ssize(key_heads);
    k = at::zeros({a.batch, groups, a.keys, a.dim}, floats),
    v = at::zeros({a.batch, groups, a.keys, a.value_dim}, floats);
  }
  Tensor of_k(const Problem& p) const { return give(k, key_heads_, p.k); }
  Tensor of_v(const Problem& p) const { return give(v, value_heads_, p.v); }

 private:
  Tensor key_heads_, value_heads_;
  static Tensor give(const Tensor& sums, const Tensor& heads, const Tensor& like) {
    if (!heads.defined()) return sums;
    return at::zeros(like.sizes(), sums.options()).index_add_(1, heads, sums).to(like.scalar_type());
  }
};

// Where the kernels add up the gradients of score terms, and what becomes of that.
struct TermSums {
  Tensor bias, rows;
  kernels::ScoreGradients views;
  int64_t bias_batch = 0, bias_part = 0;
  bool groups_in_turn = false;

  TermSums(const Problem& p, const kernels::Arguments& a) {
    const auto floats = p.q.options().dtype(at::kFloat);
    const auto take = [&](int64_t columns) { return std::exchange(views.columns, views.columns + int(columns)); };
    if (p.wants_bias()) {
      const Tensor& b = *p.score.bias;
      if (b.size(3) == 1) {
        views.bias_column = take(1);
      } else if (b.size(2) == 1) {  // copies of the parts, each with all heads: nobody shares
        bias = at::zeros({kernels::kMostParts, a.batch, a.heads, a.keys}, floats);
        bias_part = bias.stride(0), bias_batch = bias.stride(1);
        views.bias_head = a.keys, views.bias_key = 1;
      } else {
        bias = at::zeros(b.sizes(), floats);
        const auto stride = [&](int axis) { return bias.size(axis) == 1 ? 0 : bias.stride(axis); };
        bias_batch = stride(0);
        views.bias_head = stride(1), views.bias_query = a.keys, views.bias_key = 1;
        groups_in_turn = b.size(0) < a.batch || b.size(1) < a.heads;
      }
      if (bias.defined()) views.bias = bias.data_ptr<float>();
    }
    if (p.wants_slopes()) views.slope_column = take(1);
    if (p.wants_relative()) views.relative_column = take(a.score.relative.columns);
    rows = at::zeros({a.batch, a.heads, a.queries, views.columns}, floats);
    views.rows = rows.data_ptr<float>();
  }

  // Sums over what `like` broadcasts.
  static Tensor sum_to(Tensor sums, const Tensor& like) {
    for (const int64_t axis : {0, 1, 2})
      if (like.size(axis) == 1 && sums.size(axis) != 1) sums = sums.sum(c10::IntArrayRef{axis}, true);
    return sums;
  }

  void give(const Problem& p, Gradients& g) const {
    if (views.bias_column >= 0)
      g.bias = sum_to(rows.narrow(3, views.bias_column, 1), *p.score.bias);
    else if (bias.defined())
      g.bias = bias_part > 0 ? sum_to(bias.sum(0).unsqueeze(2), *p.score.bias) : bias;
    if (views.slope_column >= 0) g.slopes = rows.select(3, views.slope_column).sum(c10::IntArrayRef{0, 2});
    if (views.relative_column >= 0)
      g.relative =
          sum_to(rows.narrow(3, views.relative_column, p.score.relative->logits.size(3)), p.score.relative->logits);
  }
};

bool fits_int32(const std::optional<Tensor>& t) {
  if (!t || t->numel() == 0) return true;
  return t->min().item<int64_t>() > std::numeric_limits<int32_t>::min() &&
         t->max().item<int64_t>() < std::numeric_limits<int32_t>::max();
}

}  // namespace

std::string decline_reason(const Problem& given) {
  const Problem p = shaped(given);
  const int64_t largest = std::max(p.q.size(3), p.v.size(3));
  if (const std::string reason = decline_reason(p.q.scalar_type()); !reason.empty()) return reason;
  if (largest > kernels::kLargestDim || p.v.size(3) < 1)
    return fmt::format("head dims must be 1 .. {}, got {} and {}", kernels::kLargestDim, p.q.size(3), p.v.size(3));
  if (p.k.size(2) > kMostKeys) return fmt::format("keys must be <= {}, got {}", kMostKeys, p.k.size(2));
  if (!fits_int32(rule_of(p.plan).query_documents) || !fits_int32(rule_of(p.plan).key_documents))
    return "document ids must fit 32 bits";
  if (p.score.landmarks && landmark_block(p) == 0)
    return "landmarks must close blocks of 16, 32 or 64 keys that are not gathered";
  const int64_t start = rule_of(p.plan).query_start.value_or(p.k.size(2) - p.q.size(2));
  constexpr int64_t kFar = int64_t{1} << 30;
  if ((p.score.slopes || p.score.landmarks) && (start < -kFar || start + p.q.size(2) > kFar))
    return fmt::format("{} need positions within 2^30, got {}", p.score.slopes ? "slopes" : "landmarks", start);
  return {};
}

std::string describe(const Problem& p, Pass pass) {
  const Prepared prepared(p);
  const auto f = kernels::forecast(*kernel_table(), prepared.arguments, pass == Pass::backward, torch_pool().threads);
  const bool pairs = prepared.arguments.type == DType::bf16 && kernels::has_pairs(*kernel_table());
  return fmt::format(
      "{}: {} products, {} tiles of up to {} rows, {} panels of 64 {}keys{} ({} checked), {:.1f} MiB extra",
      kernel_table()->name,
      f.codes ? "whole-number"
      : pairs ? "bf16"
              : "fp32",
      f.tiles, f.tile_rows, f.visited_panels, f.gathers ? "gathered " : "", f.packs ? "" : " as they are",
      f.checked_panels, double(f.bytes) / (1 << 20));
}

Attended attend_cpu(const Problem& p) {
  const Prepared prepared(p);
  const auto& a = prepared.arguments;
  const Tensor out = empty_result(p, p.q, a.value_dim, p.has_wide_out ? at::kFloat : p.q.scalar_type());
  const Tensor lse = at::empty({a.batch, a.heads, a.queries}, p.q.options().dtype(at::kFloat));
  if (a.query_order.data) {  // of queries that no row of the plan is
    out.zero_();
    lse.fill_(-std::numeric_limits<double>::infinity());
    if (p.score.sink) lse.copy_(p.score.sink->view({1, -1, 1}).expand(lse.sizes()));
  }
  kernels::forward(*kernel_table(), a, {view_of(out), dtype_of(out), lse.data_ptr<float>()}, torch_pool());
  return {out, lse};
}

Gradients attend_backward_cpu(const Problem& p, const Attended& attended, const Tensor& d_out, const Tensor& d_lse) {
  const Prepared prepared(p);
  const auto& a = prepared.arguments;
  const auto floats = p.q.options().dtype(at::kFloat);
  const Tensor d_q = empty_result(p, p.q);
  if (a.query_order.data) d_q.zero_();
  const KeySums keys(p, a);
  const TermSums terms(p, a);
  const Tensor given = readable(d_out), out = readable(attended.out), lse = attended.lse.contiguous();
  const Tensor given_lse = d_lse.defined() ? d_lse.to(at::kFloat).contiguous() : Tensor();
  kernels::GradientViews g;
  g.d_out = view_of(given), g.out = view_of(out);
  g.lse = lse.data_ptr<float>();
  g.delta_lse = given_lse.defined() ? given_lse.data_ptr<float>() : nullptr;
  g.d_q = view_of(d_q), g.d_k = view_of(keys.k), g.d_v = view_of(keys.v);
  g.key_type = dtype_of(keys.k);
  g.terms = terms.views, g.bias_batch = terms.bias_batch, g.bias_part = terms.bias_part;
  g.groups_in_turn = terms.groups_in_turn;
  kernels::backward(*kernel_table(), a, g, torch_pool());
  const auto none = [&] { return at::empty({0}, floats); };  // an operator's results must not share memory
  Gradients gradients{d_q, keys.of_k(p), keys.of_v(p), none(), none(), none(), none()};
  terms.give(p, gradients);
  if (p.wants_sink()) {
    Tensor delta = (given.to(at::kFloat) * out.to(at::kFloat)).sum(-1);
    if (given_lse.defined()) delta = delta - given_lse;
    const Tensor weight = (p.score.sink->to(at::kFloat).view({1, -1, 1}) - lse).exp_();
    gradients.sink = weight.mul_(delta).neg_().sum(c10::IntArrayRef{0, 2});
  }
  cast_score_gradients(p, gradients);
  return gradients;
}

}  // namespace foveate::ops
