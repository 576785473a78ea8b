#include "foveate/ops/merge/attend_parts.h"

#include <ATen/TensorOperators.h>

#include "foveate/base/error.h"
#include "foveate/ops/attend/cpu.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/gradient.h"
#include "foveate/ops/merge/merge.h"

namespace foveate::ops {
namespace {

using at::Tensor;

struct Call {
  Problem problem;
  std::vector<Part> parts;
};

Problem problem_of_part(const Call& c, size_t i) {
  Problem p = c.problem;
  p.plan = c.parts[i].plan;
  if (i > 0) p.score.sink.reset();
  if (const auto& weight = c.parts[i].key_weight) p.score.bias = p.score.bias ? *p.score.bias + *weight : *weight;
  p.wanted.bias &= c.problem.score.bias.has_value();
  return p;
}

// Adds up gradients of parts in fp32: there may be many, and each is rounded already.
void add(Tensor& sum, const Tensor& part, const Tensor& like) {
  const Tensor fits = part.sizes() == like.sizes() ? part : part.sum_to_size(like.sizes());
  const auto type = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  sum = sum.defined() ? sum.add_(fits) : fits.to(type, /*non_blocking=*/false, /*copy=*/true);
}

struct Operator {
  using Call = ops::Call;
  static constexpr std::string_view name = "attend_parts";
  static Problem& problem_of(Call& c) { return c.problem; }

  static Forward forward(const Call& c) {
    std::vector<Attended> done;
    for (size_t i = 0; i < c.parts.size(); ++i) {
      const Problem p = problem_of_part(c, i);
      done.push_back(attend(p.q, p.k, p.v, p.plan, p.score));
      if (const auto& weight = c.parts[i].row_weight) done.back().lse = done.back().lse + *weight;
    }
    const Attended all = done.size() == 1 ? done[0] : merge_by_lse(done);
    return {all.out, all.lse};
  }

  // P = exp(s + weight - lse) and delta = rowsum(d_out * out) - d_lse are those of the whole softmax in every part.
  static Backward backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse, const Mask&,
                           const Call& c) {
    Gradients sums;
    for (size_t i = 0; i < c.parts.size(); ++i) {
      const Problem p = problem_of_part(c, i);
      const auto& weight = c.parts[i].row_weight;
      const Attended whole{out, weight ? lse - *weight : lse};
      const auto run = choose(p, Pass::backward) ? attend_backward_cpu : attend_backward_definition;
      const Gradients g = run(p, whole, d_out, d_lse.value_or(Tensor()));
      add(sums.q, g.q, p.q), add(sums.k, g.k, p.k), add(sums.v, g.v, p.v);
      if (p.wants_bias()) add(sums.bias, g.bias, *c.problem.score.bias);
      if (p.wants_sink()) add(sums.sink, g.sink, *p.score.sink);
      if (p.wants_slopes()) add(sums.slopes, g.slopes, *p.score.slopes);
      if (p.wants_relative()) add(sums.relative, g.relative, p.score.relative->logits);
    }
    const Problem& p = c.problem;
    cast_score_gradients(p, sums);
    return {sums.q.to(p.q.scalar_type()),
            sums.k.to(p.k.scalar_type()),
            sums.v.to(p.v.scalar_type()),
            sums.bias,
            sums.sink,
            sums.slopes,
            sums.relative};
  }
};

}  // namespace

Attended attend_parts(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const Part> parts,
                      const Score& score) {
  require(!parts.empty(), "attend_parts: at least one part is needed, got 0");
  require(!score.landmarks, "attend_parts: landmarks need one plan, got {} parts; leave them out", parts.size());
  const auto [out, lse] =
      with_gradient<Operator>({{q, k, v, Rule{}, score, {}, {}, {}}, std::vector<Part>(parts.begin(), parts.end())});
  return {out, lse};
}

}  // namespace foveate::ops
