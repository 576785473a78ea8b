#include "foveate/ops/attend/cpu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/kernels/attend.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using kernels::DType;

constexpr int64_t kMostKeys = std::numeric_limits<int32_t>::max() - kernels::kPanelKeys;

DType dtype_of(const Tensor& t) {
  if (t.scalar_type() == at::kBFloat16) return DType::bf16;
  return t.scalar_type() == at::kHalf ? DType::f16 : DType::f32;
}

// Unit last stride: anything else is copied.
Tensor readable(const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1 ? t : t.contiguous(); }

kernels::View view_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// A problem as the kernels want it; keeps alive what it points to.
struct Prepared {
  kernels::Arguments arguments;
  std::vector<Tensor> held;

  Prepared(const Problem& p, Pass pass) {
    auto& a = arguments;
    const Tensor q = keep(readable(p.q)), k = keep(readable(p.k)), v = keep(readable(p.v));
    a.type = dtype_of(q);
    a.batch = q.size(0), a.heads = q.size(1), a.queries = q.size(2);
    a.kv_heads = k.size(1), a.keys = k.size(2);
    a.dim = int(q.size(3)), a.value_dim = int(v.size(3));
    a.q = view_of(q), a.k = view_of(k), a.v = view_of(v);
    set_rule(rule_of(p.plan));
    if (const auto* blocks = std::get_if<BlockPlan>(&p.plan)) {
      a.query_block = blocks->query_block, a.key_block = blocks->key_block;
      add_list(blocks->index, &blocks->count, true);
      if (blocks->full_index) add_list(*blocks->full_index, &*blocks->full_count, false);
    } else if (const auto* tokens = std::get_if<TokenPlan>(&p.plan)) {
      a.query_block = tokens->query_block, a.key_block = 1;
      add_list(tokens->index, nullptr, true);
    }
    set_score(p.score, pass == Pass::backward && p.bias_gradient);
  }

 private:
  const Tensor& keep(Tensor t) { return held.emplace_back(std::move(t)); }

  void set_rule(const Rule& rule) {
    kernels::RuleView& r = arguments.rule;
    r.query_start = rule.query_start.value_or(arguments.keys - arguments.queries);
    r.left = rule.window_left.value_or(kernels::kNoLimit);
    r.right = rule.window_right.value_or(kernels::kNoLimit);
    r.sinks = rule.sinks;
    const auto longs = [&](const std::optional<Tensor>& t) {
      return t ? keep(t->contiguous()).data_ptr<int64_t>() : nullptr;
    };
    r.head_window = longs(rule.head_window);
    r.key_lengths = longs(rule.key_lengths);
    const auto documents = [&](const std::optional<Tensor>& t) {
      return t ? keep(t->to(at::kInt).contiguous()).data_ptr<int32_t>() : nullptr;
    };
    r.query_documents = documents(rule.query_documents);
    r.key_documents = documents(rule.key_documents);
    const auto numbers = [&](const std::optional<Tensor>& t) -> kernels::RowNumbers {
      if (!t) return {};
      const Tensor& whole = keep(t->contiguous());
      return {whole.data_ptr<int64_t>(), whole.size(0) == 1 ? 0 : whole.stride(0),
              whole.size(1) == 1 ? 0 : whole.stride(1)};
    };
    r.row_start = numbers(rule.row_start);
    r.row_end = numbers(rule.row_end);
  }

  void add_list(const Tensor& index, const Tensor* count, bool checks_rule) {
    const auto ints = [&](const Tensor& t) -> const int32_t* {
      return keep(t.clamp(-1, std::numeric_limits<int32_t>::max()).to(at::kInt).contiguous()).data_ptr<int32_t>();
    };
    kernels::ListView list;
    list.index = ints(index);
    list.count = count ? ints(*count) : nullptr;
    const int64_t blocks = index.size(2);
    list.heads = index.size(1), list.capacity = index.size(3);
    list.batch = index.size(0) == 1 ? 0 : index.size(1) * blocks;
    list.head = index.size(1) == 1 ? 0 : blocks;
    list.checks_rule = checks_rule;
    arguments.lists.push_back(list);
  }

  void set_score(const Score& score, bool bias_gradient) {
    auto& s = arguments.score;
    s.scale = float(score.scale.value_or(1 / std::sqrt(double(arguments.dim))));
    s.soft_cap = float(score.soft_cap.value_or(0));
    if (score.bias) {
      Tensor bias = score.bias->scalar_type() == at::kDouble ? score.bias->to(at::kFloat) : *score.bias;
      bias = keep(bias_gradient ? bias.contiguous() : bias);  // its gradient has the same strides
      const auto stride = [&](int axis) { return bias.size(axis) == 1 ? 0 : bias.stride(axis); };
      s.bias = static_cast<const char*>(bias.data_ptr());
      s.bias_type = dtype_of(bias);
      arguments.bias_batch = stride(0), s.bias_head = stride(1), s.bias_query = stride(2), s.bias_key = stride(3);
    }
    if (score.sink) arguments.sink = keep(score.sink->to(at::kFloat).contiguous()).data_ptr<float>();
  }
};

bool fits_int32(const std::optional<Tensor>& t) {
  if (!t || t->numel() == 0) return true;
  return t->min().item<int64_t>() > std::numeric_limits<int32_t>::min() &&
         t->max().item<int64_t>() < std::numeric_limits<int32_t>::max();
}

}  // namespace

std::string decline_reason(const Problem& p, Pass pass) {
  const int64_t largest = std::max(p.q.size(3), p.v.size(3));
  if (!kernel_table()) return "FOVEATE_BACKEND=definition";
  if (p.q.scalar_type() == at::kDouble) return "fp64 runs in the definition";
  if (largest > kernels::kLargestDim || p.v.size(3) < 1)
    return fmt::format("head dims must be 1 .. {}, got {} and {}", kernels::kLargestDim, p.q.size(3), p.v.size(3));
  if (p.k.size(2) > kMostKeys) return fmt::format("keys must be <= {}, got {}", kMostKeys, p.k.size(2));
  if (!fits_int32(rule_of(p.plan).query_documents) || !fits_int32(rule_of(p.plan).key_documents))
    return "document ids must fit 32 bits";
  if (pass == Pass::backward && p.score.bias && p.bias_gradient) {
    const int64_t whole[] = {p.q.size(0), p.q.size(1), p.q.size(2), p.k.size(2)};
    for (int axis = 0; axis < 4; ++axis)
      if (p.score.bias->size(axis) != whole[axis]) return "the gradient of a broadcast bias runs in the definition";
  }
  return {};
}

std::string describe(const Problem& p, Pass pass) {
  const Prepared prepared(p, pass);
  const auto f = kernels::forecast(*kernel_table(), prepared.arguments, pass == Pass::backward, torch_pool().threads);
  const bool pairs = prepared.arguments.type == DType::bf16 && kernels::has_pairs(*kernel_table());
  return fmt::format(
      "{}: {} products, {} tiles of up to {} rows, {} panels of 64 {}keys ({} checked), {:.1f} MiB extra",
      kernel_table()->name, pairs ? "bf16" : "fp32", f.tiles, f.tile_rows, f.visited_panels,
      f.gathers ? "gathered " : "", f.checked_panels, double(f.bytes) / (1 << 20));
}

Attended attend_cpu(const Problem& p) {
  const Prepared prepared(p, Pass::forward);
  const auto& a = prepared.arguments;
  const Tensor out = at::empty({a.batch, a.heads, a.queries, a.value_dim}, p.q.options());
  const Tensor lse = at::empty({a.batch, a.heads, a.queries}, p.q.options().dtype(at::kFloat));
  kernels::forward(*kernel_table(), a, {view_of(out), lse.data_ptr<float>()}, torch_pool());
  return {out, lse};
}

Gradients attend_backward_cpu(const Problem& p, const Attended& attended, const Tensor& d_out, const Tensor& d_lse) {
  const Prepared prepared(p, Pass::backward);
  const auto& a = prepared.arguments;
  const auto floats = p.q.options().dtype(at::kFloat);
  const Tensor d_q = at::empty(p.q.sizes(), p.q.options());
  const Tensor d_k = at::zeros(p.k.sizes(), p.k.options()), d_v = at::zeros(p.v.sizes(), p.v.options());
  Tensor d_bias = at::empty({0}, floats), d_sink = at::empty({0}, floats);
  const Tensor given = readable(d_out), out = readable(attended.out), lse = attended.lse.contiguous();
  const Tensor given_lse = d_lse.defined() ? d_lse.to(at::kFloat).contiguous() : Tensor();
  kernels::GradientViews g;
  g.d_out = view_of(given), g.out = view_of(out);
  g.lse = lse.data_ptr<float>();
  g.delta_lse = given_lse.defined() ? given_lse.data_ptr<float>() : nullptr;
  g.d_q = view_of(d_q), g.d_k = view_of(d_k), g.d_v = view_of(d_v);
  const bool bias_gradient = p.score.bias && p.bias_gradient;
  if (bias_gradient) {
    d_bias = at::zeros(p.score.bias->sizes(), floats);
    g.d_bias = d_bias.data_ptr<float>();
  }
  kernels::backward(*kernel_table(), a, g, torch_pool());
  if (p.score.sink) {
    Tensor delta = (given.to(at::kFloat) * out.to(at::kFloat)).sum(-1);
    if (given_lse.defined()) delta = delta - given_lse;
    const Tensor weight = (p.score.sink->to(at::kFloat).view({1, -1, 1}) - lse).exp_();
    d_sink = weight.mul_(delta).neg_().sum(c10::IntArrayRef{0, 2});
  }
  const auto as = [](const Tensor& gradient, const std::optional<Tensor>& like) {
    return like ? gradient.to(like->scalar_type()) : gradient;
  };
  return {d_q, d_k, d_v, as(d_bias, bias_gradient ? p.score.bias : std::nullopt), as(d_sink, p.score.sink)};
}

}  // namespace foveate::ops
