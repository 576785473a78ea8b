#include "foveate/ops/attend/definition.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "foveate/ops/neighborhood/problem.h"

namespace foveate::ops {
namespace {

using at::Tensor;

// Attention of queries [first, first + count) over lists of their keys.
Problem listed(const NeighborhoodProblem& p, const BiasPlaces& places, int64_t first, int64_t count) {
  Problem part{p.q.narrow(2, first, count), p.k, p.v, token_plan(p.neighborhood, first, count)};
  part.score.scale = p.scale();
  if (!p.score.bias) return part;
  part.score.relative = Relative{.logits = p.score.bias->reshape({1, p.q.size(1), 1, places.size}),
                                 .queries = places.numbers.narrow(0, first, count).unsqueeze(0),
                                 .keys = places.numbers.unsqueeze(0) + places.offset,
                                 .sizes = {places.size}};
  return part;
}

// Calls use(problem, first, count) for parts of the queries whose lists fit into memory.
template <class Use>
void for_parts(const NeighborhoodProblem& p, const Use& use) {
  constexpr int64_t kEntries = int64_t{1} << 22;
  const int64_t rows = std::max<int64_t>(kEntries / p.neighborhood.window_keys(), 1), all = p.q.size(2);
  const BiasPlaces places = p.score.bias ? bias_places(p.neighborhood) : BiasPlaces{};
  for (int64_t first = 0; first < all; first += rows) {
    const int64_t count = std::min(rows, all - first);
    use(listed(p, places, first, count), first, count);
  }
}

}  // namespace

Attended neighborhood_definition(const NeighborhoodProblem& p) {
  std::vector<Tensor> outs, lses;
  for_parts(p, [&](const Problem& part, int64_t, int64_t) {
    const Attended attended = attend_definition(part);
    outs.push_back(attended.out), lses.push_back(attended.lse);
  });
  const Tensor out = empty_rows(p.q, p.v.size(3));
  return {out.copy_(at::cat(outs, 2)), at::cat(lses, 2)};
}

NeighborhoodResults neighborhood_backward_definition(const NeighborhoodProblem& p, const Attended& attended,
                                                     const Tensor& d_out, const Tensor& d_lse) {
  const auto wide = p.q.options().dtype(attended.lse.scalar_type());
  const Tensor d_q = empty_rows(p.q, p.q.size(3));
  Tensor d_k = at::zeros_like(p.k, wide), d_v = at::zeros_like(p.v, wide), d_bias;
  if (p.score.bias) d_bias = at::zeros_like(*p.score.bias, wide);
  for_parts(p, [&](const Problem& part, int64_t first, int64_t count) {
    const auto rows = [&](const Tensor& t) { return t.defined() ? t.narrow(2, first, count) : t; };
    const Gradients g =
        attend_backward_definition(part, {rows(attended.out), rows(attended.lse)}, rows(d_out), rows(d_lse));
    d_q.narrow(2, first, count).copy_(g.q);
    d_k += g.k, d_v += g.v;
    if (d_bias.defined()) d_bias += g.relative.view(d_bias.sizes());
  });
  const auto as = [](const Tensor& t, const Tensor& like) { return empty_rows(like, like.size(3)).copy_(t); };
  return {d_q, as(d_k, p.k), as(d_v, p.v), d_bias.defined() ? d_bias.to(p.score.bias->scalar_type()) : d_bias, {}, {}};
}

}  // namespace foveate::ops
