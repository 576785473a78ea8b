#include "foveate/ops/pairs/pair_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/kernels/level.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/once.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Where entries of lists [B, Hq, Lq, C] point, and which are empty.
struct Places {
  Tensor batch, head, key, empty;

  Places(const Tensor& index, int64_t kv_heads, int64_t keys)
      : batch(at::arange(index.size(0), at::kLong).view({-1, 1, 1, 1})),
        head(at::arange(index.size(1), at::kLong).div(index.size(1) / kv_heads, "floor").view({1, -1, 1, 1})),
        empty(index.lt(0).logical_or(index.ge(keys))) {
    key = index.to(at::kLong).masked_fill(empty, 0);
  }
};

at::ScalarType wide(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// In plain ATen, differentiable: the definition, and what fp64 runs in.
Tensor by_definition(const Tensor& q, const Tensor& k, const Tensor& index, double scale) {
  const auto type = wide(q);
  if (k.size(2) == 0)
    return at::zeros({q.size(0), q.size(1), q.size(2), index.size(3)}, q.options().dtype(type)) + kMinusInfinity;
  const Places at(index, k.size(1), k.size(2));
  const Tensor keys = k.to(type).index({at.batch, at.head, at.key}).masked_fill(at.empty.unsqueeze(4), 0);
  const Tensor scores = (q.to(type).unsqueeze(3) * keys).sum(4) * scale;
  return scores.masked_fill(at.empty, kMinusInfinity);
}

// Rows of q and k, and the lists [B, Hq, Lq, C] int32, as pointers.
struct Pairs {
  Tensor q, k, index;
  kernels::DType type;
  int64_t heads, repeats, queries, keys, capacity;
  int dim;

  Pairs(const Tensor& given_q, const Tensor& given_k, const Tensor& given_index)
      : q(readable(given_q)),
        k(readable(given_k)),
        index(given_index),
        type(dtype_of(q)),
        heads(q.size(1)),
        repeats(heads / k.size(1)),
        queries(q.size(2)),
        keys(k.size(2)),
        capacity(index.size(3)),
        dim(int(q.size(3))) {}

  int64_t lists() const { return q.size(0) * heads * queries; }
  const int32_t* list(int64_t row) const {
    const int64_t b = row / queries / heads, h = row / queries % heads, i = row % queries;
    return index.const_data_ptr<int32_t>() + b * index.stride(0) + h * index.stride(1) + i * index.stride(2);
  }
  const void* query(int64_t row) const {
    return row_of(q, row / queries / heads, row / queries % heads, row % queries);
  }
  const void* key(int64_t row, int32_t id) const {  // null: empty
    return id < 0 || id >= keys ? nullptr : row_of(k, row / queries / heads, row / queries % heads / repeats, id);
  }

 private:
  static const void* row_of(const Tensor& t, int64_t b, int64_t h, int64_t row) {
    return static_cast<const char*>(t.const_data_ptr()) +
           (b * t.stride(0) + h * t.stride(1) + row * t.stride(2)) * int64_t(t.element_size());
  }
};

constexpr int64_t kRowsAtOnce = 64;

Tensor scores_of(const Pairs& p, double scale) {
  const kernels::Table& table = *kernel_table();
  const Tensor scores = at::empty({p.q.size(0), p.heads, p.queries, p.capacity}, p.q.options().dtype(at::kFloat));
  float* to = scores.mutable_data_ptr<float>();
  run_queue(torch_pool(), (p.lists() + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int) {
    std::vector<const void*> queries(static_cast<size_t>(p.capacity)), keys(queries);
    for (int64_t row = item * kRowsAtOnce; row < std::min((item + 1) * kRowsAtOnce, p.lists()); ++row) {
      const int32_t* ids = p.list(row);
      std::fill(queries.begin(), queries.end(), p.query(row));
      for (int64_t c = 0; c < p.capacity; ++c) keys[size_t(c)] = p.key(row, ids[c]);
      float* own = to + row * p.capacity;
      table.row_dots(queries.data(), keys.data(), int(p.capacity), p.dim, p.type, own);
      for (int64_t c = 0; c < p.capacity; ++c) own[c] = keys[size_t(c)] ? own[c] * float(scale) : float(kMinusInfinity);
    }
  });
  return scores;
}

Tensor query_gradient(const Pairs& p, const float* d_scores, double scale) {
  const kernels::Table& table = *kernel_table();
  const Tensor d_q = at::zeros(p.q.sizes(), p.q.options().dtype(at::kFloat));
  run_queue(torch_pool(), (p.lists() + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int) {
    for (int64_t row = item * kRowsAtOnce; row < std::min((item + 1) * kRowsAtOnce, p.lists()); ++row)
      for (int64_t c = 0; c < p.capacity; ++c)
        if (const void* key = p.key(row, p.list(row)[c]))
          table.add_scaled(key, p.dim, p.type, d_scores[row * p.capacity + c] * float(scale),
                           d_q.mutable_data_ptr<float>() + row * p.dim);
  });
  return d_q;
}

// An item owns a range of one head's keys and reads all lists in their order: what a key gets does not depend on
// threads.
Tensor key_gradient(const Pairs& p, const float* d_scores, double scale) {
  const kernels::Table& table = *kernel_table();
  const Tensor d_k = at::zeros(p.k.sizes(), p.k.options().dtype(at::kFloat));
  const int64_t kv_heads = p.k.size(1), groups = p.k.size(0) * kv_heads, rows = p.repeats * p.queries;
  const int64_t parts = std::clamp<int64_t>(16 / std::max<int64_t>(groups, 1), 1, 16);
  run_queue(torch_pool(), groups * parts, [&](int64_t item, int) {
    const int64_t group = item / parts, part = item % parts;
    const int64_t first = p.keys * part / parts, end = p.keys * (part + 1) / parts;
    float* to = d_k.mutable_data_ptr<float>() + group * p.keys * p.dim;
    for (int64_t row = group * rows; row < (group + 1) * rows; ++row)
      for (int64_t c = 0; c < p.capacity; ++c)
        if (const int64_t key = p.list(row)[c]; key >= first && key < end)
          table.add_scaled(p.query(row), p.dim, p.type, d_scores[row * p.capacity + c] * float(scale),
                           to + key * p.dim);
  });
  return d_k;
}

class PairScores : public torch::autograd::Function<PairScores> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& q, const Tensor& k,
                        const Tensor& index, double scale) {
    context->save_for_backward({q, k, index});
    context->saved_data["scale"] = scale;
    return scores_of(Pairs(q, k, index), scale);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Pairs pairs(saved[0], saved[1], saved[2]);
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor d = gradients[0].to(at::kFloat).contiguous();
    return once_differentiable(
        "pair_scores",
        {query_gradient(pairs, d.const_data_ptr<float>(), scale).to(saved[0].scalar_type()),
         key_gradient(pairs, d.const_data_ptr<float>(), scale).to(saved[1].scalar_type()), Tensor(), Tensor()},
        {saved[0], saved[1], gradients[0]});
  }
};

// Lists [B|1, 1|Hkv|Hq, Lq, C] for every head of a batch.
Tensor lists_of(const Tensor& index, int64_t batch, int64_t heads, int64_t kv_heads) {
  Tensor lists = index;
  if (lists.size(1) != 1 && lists.size(1) != heads) lists = lists.repeat_interleave(heads / kv_heads, 1);
  return lists.expand({batch, heads, -1, -1});
}
Tensor kernel_lists(const Tensor& lists) {
  const Tensor narrow = lists.clamp(-1, std::numeric_limits<int32_t>::max()).to(at::kInt);
  return narrow.stride(3) == 1 ? narrow : narrow.contiguous();
}
bool runs(const char* name, const Tensor& t, Pass pass = Pass::forward) {
  return choose_kernel(name, decline_reason(t.scalar_type()), pass);
}

}  // namespace

Tensor pair_scores(const Tensor& q, const Tensor& k, const Tensor& index, double scale) {
  const auto text = [](const Tensor& t) {
    return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  };
  require(q.dim() == 4 && k.dim() == 4 && q.scalar_type() == k.scalar_type() && q.is_floating_point() &&
              k.size(0) == q.size(0) && k.size(3) == q.size(3) && k.size(1) >= 1 && q.size(1) % k.size(1) == 0,
          "pair_scores: q [B, Hq, Lq, D] and k [B, Hkv, Lk, D] must agree and share a dtype, got {} {} and {} {}",
          c10::toString(q.scalar_type()), text(q), c10::toString(k.scalar_type()), text(k));
  const bool integer = index.scalar_type() == at::kInt || index.scalar_type() == at::kLong;
  require(integer && index.dim() == 4 && (index.size(0) == 1 || index.size(0) == q.size(0)) &&
              (index.size(1) == 1 || index.size(1) == k.size(1) || index.size(1) == q.size(1)) &&
              index.size(2) == q.size(2),
          "pair_scores: index must be integers [{} or 1, one of 1/{}/{}, {}, entries], got {} {}", q.size(0), k.size(1),
          q.size(1), q.size(2), c10::toString(index.scalar_type()), text(index));
  const Tensor lists = lists_of(index, q.size(0), q.size(1), k.size(1));
  const bool is_empty = q.numel() == 0 || k.numel() == 0 || index.numel() == 0;
  if (is_empty || !runs("pair_scores", q)) return by_definition(q, k, lists.to(at::kLong), scale);
  return PairScores::apply(q, k, kernel_lists(lists), scale);
}

Tensor weighted_keys(const Tensor& weights, const Tensor& k, const Tensor& index) {
  const int64_t batch = weights.size(0), heads = weights.size(1), queries = weights.size(2);
  const Tensor lists = lists_of(index, batch, heads, k.size(1));
  if (weights.numel() == 0 || k.numel() == 0 || !runs("weighted_keys", k)) {
    const Places at(lists, k.size(1), k.size(2));
    const Tensor keys = k.to(wide(k)).index({at.batch, at.head, at.key});
    return (weights.to(wide(k)).masked_fill(at.empty, 0).unsqueeze(4) * keys)
        .masked_fill(at.empty.unsqueeze(4), 0)
        .sum(3)
        .to(k.scalar_type());
  }
  const Tensor like = at::empty({batch, heads, queries, k.size(3)}, k.options());  // only its sizes count
  const Tensor w = weights.to(at::kFloat).contiguous();
  return query_gradient(Pairs(like, k, kernel_lists(lists)), w.const_data_ptr<float>(), 1).to(k.scalar_type());
}

Tensor weighted_queries(const Tensor& weights, const Tensor& q, const Tensor& index, int64_t kv_heads, int64_t keys) {
  const Tensor lists = lists_of(index, q.size(0), q.size(1), kv_heads);
  const auto sizes = {q.size(0), kv_heads, keys, q.size(3)};
  if (weights.numel() == 0 || q.numel() == 0 || !runs("weighted_queries", q, Pass::backward)) {
    const Places at(lists, kv_heads, keys);
    const Tensor parts = weights.to(wide(q)).unsqueeze(4) * q.to(wide(q)).unsqueeze(3);
    const Tensor sums = at::zeros(sizes, q.options().dtype(wide(q)));
    return sums.index_put({at.batch, at.head, at.key}, parts.masked_fill(at.empty.unsqueeze(4), 0), true)
        .to(q.scalar_type());
  }
  const Tensor like = at::empty(sizes, q.options());  // only its sizes count
  const Tensor w = weights.to(at::kFloat).contiguous();
  return key_gradient(Pairs(q, like, kernel_lists(lists)), w.const_data_ptr<float>(), 1).to(q.scalar_type());
}

}  // namespace foveate::ops
