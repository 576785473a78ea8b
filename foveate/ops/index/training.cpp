#include "foveate/ops/index/training.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/ops/once.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr double kLeastLog = -100;

void check_rows(const IndexerRows& rows) {
  const auto& [q, k, weights, start, end] = rows;
  require(q.dim() == 3 && k.dim() == 2 && weights.dim() == 2 && q.size(2) == k.size(1) && q.size(1) >= 1 &&
              weights.size(0) == q.size(0) && weights.size(1) == q.size(1),
          "indexer: q [M, HI, D], k [N, D] and weights [M, HI] must agree, got [{}], [{}] and [{}]",
          fmt::join(q.sizes(), ", "), fmt::join(k.sizes(), ", "), fmt::join(weights.sizes(), ", "));
  for (const Tensor* t : {&q, &k, &weights})
    require(t->scalar_type() == q.scalar_type() && (q.scalar_type() == at::kFloat || q.scalar_type() == at::kDouble),
            "indexer: q, k and weights must share fp32 or fp64, got {} and {}", c10::toString(q.scalar_type()),
            c10::toString(t->scalar_type()));
  for (const Tensor* t : {&start, &end})
    require(t->scalar_type() == at::kLong && t->dim() == 1 && t->size(0) == q.size(0),
            "indexer: start and end must be int64 [{}], got {} [{}]", q.size(0), c10::toString(t->scalar_type()),
            fmt::join(t->sizes(), ", "));
}

// [rows, N] bool
Tensor in_range(const Tensor& start, const Tensor& end, int64_t keys) {
  const Tensor place = at::arange(keys, at::kLong);
  return place.ge(start.unsqueeze(1)).logical_and_(place.lt(end.unsqueeze(1)));
}

// relu(q . k) [rows, HI, N]
Tensor positive_products(const Tensor& q, const Tensor& k) { return at::relu(at::matmul(q, k.t())); }

struct Tile {
  IndexerRows rows;
  IndexerTarget target;
  Tensor seen;  // [rows, N] bool
};

Tile tile_of(const IndexerRows& all, const IndexerTarget& target, const std::optional<Tensor>& index, int64_t first,
             int64_t count) {
  const auto cut = [&](const Tensor& t) { return t.narrow(0, first, count); };
  Tile tile{{cut(all.q), all.k, cut(all.weights), cut(all.start), cut(all.end)}, target, {}};
  tile.target.q = target.q.narrow(1, first, count);
  const int64_t keys = all.k.size(0);
  tile.seen = in_range(tile.rows.start, tile.rows.end, keys);
  if (!index) return tile;
  const Tensor list = cut(*index).to(at::kLong), legal = list.ge(0).logical_and_(list.lt(keys));
  const Tensor hits = at::zeros({count, keys + 1}, at::kBool);  // empty entries fall behind the keys
  hits.scatter_(1, list.masked_fill(legal.logical_not(), keys), at::ones_like(legal));
  tile.seen.logical_and_(hits.narrow(1, 0, keys));
  return tile;
}

// p [rows, N]: of rows that see nothing, 0.
Tensor target_probabilities(const Tile& tile, at::ScalarType type) {
  const Tensor q = tile.target.q.to(type), k = tile.target.k.to(type);
  const int64_t groups = k.size(0);
  Tensor s = at::matmul(q.unflatten(0, {groups, q.size(0) / groups}), k.transpose(1, 2).unsqueeze(1));
  s.mul_(tile.target.scale);
  if (tile.target.soft_cap) s = at::tanh(s / *tile.target.soft_cap) * *tile.target.soft_cap;
  const Tensor p = at::softmax(s.masked_fill_(tile.seen.logical_not(), kMinusInfinity), -1);
  return p.sum(c10::IntArrayRef{0, 1}).div_(double(q.size(0))).masked_fill_(tile.seen.logical_not(), 0);
}

struct Result {
  Tensor loss, d_q, d_k, d_weights;
};

void add_tile(const Tile& tile, int64_t first, Result& result) {
  const auto& [q, k, weights, start, end] = tile.rows;
  const Tensor hidden = tile.seen.logical_not(), products = positive_products(q, k);
  const Tensor logits = (products * weights.unsqueeze(2)).sum(1).masked_fill_(hidden, kMinusInfinity);
  const Tensor p = target_probabilities(tile, q.scalar_type());
  const Tensor own = at::log_softmax(logits, 1).masked_fill_(hidden, kLeastLog);  // a row without a key: NaN before
  const Tensor counts = own.gt(kLeastLog);                                        // what is cut has no gradient
  const Tensor log_p = at::where(p.gt(0), p.log(), at::zeros_like(p));
  result.loss.add_((p * (log_p - own.clamp_min(kLeastLog))).sum());
  const Tensor pulled = p * counts;
  const Tensor g = own.exp().masked_fill_(hidden, 0) * pulled.sum(1, true) - pulled;  // [rows, N]
  const auto cut = [&](const Tensor& t) { return t.narrow(0, first, q.size(0)); };
  cut(result.d_weights).copy_((products * g.unsqueeze(1)).sum(2));
  const Tensor d = g.unsqueeze(1) * weights.unsqueeze(2) * products.gt(0);  // [rows, HI, N]
  cut(result.d_q).copy_(at::matmul(d, k));
  result.d_k.add_(at::matmul(d.flatten(0, 1).t(), q.flatten(0, 1)));
}

Result make_loss(const IndexerRows& rows, const IndexerTarget& target, const std::optional<Tensor>& index) {
  const at::NoGradGuard no_grad;
  Result r{at::zeros({}, rows.q.options()), at::zeros_like(rows.q), at::zeros_like(rows.k),
           at::zeros_like(rows.weights)};
  const int64_t keys = rows.k.size(0);
  constexpr int64_t kElements = int64_t{1} << 22;  // of products at a time
  const int64_t widest = std::max(rows.q.size(1), target.q.size(0)) * std::max<int64_t>(keys, 1);
  const int64_t step = std::max<int64_t>(kElements / widest, 1);
  int64_t counted = 0;
  for (int64_t first = 0; keys > 0 && first < rows.q.size(0); first += step) {
    const Tile tile = tile_of(rows, target, index, first, std::min(step, rows.q.size(0) - first));
    counted += tile.seen.any(1).sum().item<int64_t>();
    add_tile(tile, first, r);
  }
  for (Tensor* t : {&r.loss, &r.d_q, &r.d_k, &r.d_weights}) t->div_(double(std::max<int64_t>(counted, 1)));
  return r;
}

class IndexerLoss : public torch::autograd::Function<IndexerLoss> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& q, const Tensor& k,
                        const Tensor& weights, const Result& made) {
    context->save_for_backward({q, k, weights, made.d_q, made.d_k, made.d_weights});
    return made.loss;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor& d = gradients[0];
    return once_differentiable("indexer_loss", {saved[3] * d, saved[4] * d, saved[5] * d, Tensor()},
                               {saved[0], saved[1], saved[2], d});
  }
};

}  // namespace

Tensor differentiable_index_logits(const IndexerRows& rows) {
  check_rows(rows);
  const Tensor logits = (positive_products(rows.q, rows.k) * rows.weights.unsqueeze(2)).sum(1);
  return logits.masked_fill(in_range(rows.start, rows.end, rows.k.size(0)).logical_not(), kMinusInfinity);
}

Tensor indexer_loss(const IndexerRows& rows, const IndexerTarget& target, const std::optional<Tensor>& index) {
  check_rows(rows);
  const Tensor &q = target.q, &k = target.k;
  require(q.dim() == 3 && k.dim() == 3 && q.size(1) == rows.q.size(0) && k.size(1) == rows.k.size(0) &&
              q.size(2) == k.size(2) && k.size(0) >= 1 && q.size(0) % k.size(0) == 0,
          "indexer_loss: the target must be q [Hq, {}, D] and k [Hkv, {}, D], Hq a multiple of Hkv, got [{}] and [{}]",
          rows.q.size(0), rows.k.size(0), fmt::join(q.sizes(), ", "), fmt::join(k.sizes(), ", "));
  require(!index || (index->dim() == 2 && index->size(0) == rows.q.size(0) && !index->is_floating_point()),
          "indexer_loss: index must be integers [{}, K], got {} axes", rows.q.size(0), index ? index->dim() : 0);
  const auto detached = [](const Tensor& t) { return t.detach(); };
  const IndexerRows plain{detached(rows.q), detached(rows.k), detached(rows.weights), rows.start, rows.end};
  IndexerTarget fixed = target;
  fixed.q = detached(q), fixed.k = detached(k);
  return IndexerLoss::apply(rows.q, rows.k, rows.weights, make_loss(plain, fixed, index));
}

}  // namespace foveate::ops
