#include "foveate/ops/select/stripes.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/kernels/level.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;

constexpr int64_t kQueriesAtOnce = 64;  // their keys of one stripe stay in the first-level cache for all heads

// One key head's queries [first, first + count) of one batch element.
struct Block {
  int64_t batch, key_head, first, count;
};

class Search {
 public:
  Search(const StripeProblem& p, int64_t count, const Tensor& to)
      : p_(p),
        table_(p.q.scalar_type() == at::kDouble ? nullptr : kernel_table()),
        q_(table_ ? readable(p.q) : p.q.to(at::kDouble).contiguous()),
        k_(table_ ? readable(p.k) : p.k.to(at::kDouble).contiguous()),
        first_(p.first.contiguous()),
        end_(p.end.contiguous()),
        to_(to),
        best_(count),
        repeats_(p.q.size(1) / p.k.size(1)) {}

  void run(const Block& block) const {
    const int64_t rows = block.count * repeats_;
    std::vector<double> scores(size_t(rows * best_));
    std::vector<int64_t> keys(size_t(rows * best_), -1);
    std::vector<const void*> of_q(size_t(block.count)), of_k(of_q);
    std::vector<int64_t> row(size_t(block.count)), key(row);
    std::vector<float> dots(size_t(block.count));
    const int64_t last = p_.query_start + block.first + block.count - 1;
    std::vector<int64_t> low(size_t(block.count)), high(low);
    for (int64_t i = 0; i < block.count; ++i)
      low[size_t(i)] = bound(first_, block, i), high[size_t(i)] = bound(end_, block, i);
    const int64_t lowest = *std::ranges::min_element(low);
    for (const int64_t distance : p_.distances) {
      if (last - distance < lowest) break;
      size_t count = 0;
      for (int64_t i = 0; i < block.count; ++i) {
        const int64_t j = p_.query_start + block.first + i - distance;
        if (j < low[size_t(i)] || j >= high[size_t(i)]) continue;
        row[count] = i, key[count] = j, of_k[count++] = at(k_, block.batch, block.key_head, j);
      }
      for (int64_t r = 0; r < repeats_; ++r) {
        const int64_t head = block.key_head * repeats_ + r;
        for (size_t c = 0; c < count; ++c) of_q[c] = at(q_, block.batch, head, block.first + row[c]);
        dot(of_q.data(), of_k.data(), int(count), dots.data());
        for (size_t c = 0; c < count; ++c) {
          const int64_t place = (r * block.count + row[c]) * best_;
          insert(table_ ? double(dots[c]) : double_dot(of_q[c], of_k[c]), key[c], &scores[size_t(place)],
                 &keys[size_t(place)]);
        }
      }
    }
    for (int64_t r = 0; r < repeats_; ++r)
      std::copy_n(keys.data() + r * block.count * best_, block.count * best_,
                  to_.mutable_data_ptr<int64_t>() +
                      ((block.batch * q_.size(1) + block.key_head * repeats_ + r) * q_.size(2) + block.first) * best_);
  }

 private:
  static const void* at(const Tensor& t, int64_t b, int64_t h, int64_t row) {
    return static_cast<const char*>(t.const_data_ptr()) +
           (b * t.stride(0) + h * t.stride(1) + row * t.stride(2)) * int64_t(t.element_size());
  }
  static int64_t bound(const Tensor& t, const Block& block, int64_t i) {
    return t.const_data_ptr<int64_t>()[(t.size(0) == 1 ? 0 : block.batch) * t.size(1) + block.first + i];
  }
  void dot(const void* const* q, const void* const* k, int count, float* to) const {
    if (table_ && count > 0) table_->row_dots(q, k, count, int(q_.size(3)), dtype_of(q_), to);
  }
  double double_dot(const void* q, const void* k) const {
    const double *x = static_cast<const double*>(q), *y = static_cast<const double*>(k);
    double sum = 0;
    for (int64_t d = 0; d < q_.size(3); ++d) sum += x[d] * y[d];
    return sum;
  }
  // Keys come in ascending distance, so of equal scores the newcomer stands first.
  void insert(double score, int64_t key, double* scores, int64_t* keys) const {
    if (std::isnan(score) || (keys[best_ - 1] >= 0 && score < scores[best_ - 1])) return;
    int64_t place = best_ - 1;
    for (; place > 0 && (keys[place - 1] < 0 || scores[place - 1] <= score); --place)
      scores[place] = scores[place - 1], keys[place] = keys[place - 1];
    scores[place] = score, keys[place] = key;
  }

  const StripeProblem& p_;
  const kernels::Table* table_;
  Tensor q_, k_, first_, end_, to_;
  int64_t best_, repeats_;
};

}  // namespace

Tensor search_stripes(const StripeProblem& p, int64_t count) {
  const auto text = [](const Tensor& t) {
    return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  };
  require(p.q.dim() == 4 && p.k.dim() == 4 && p.q.scalar_type() == p.k.scalar_type() && p.q.is_floating_point() &&
              p.k.size(0) == p.q.size(0) && p.k.size(3) == p.q.size(3) && p.k.size(1) >= 1 &&
              p.q.size(1) % p.k.size(1) == 0,
          "search_stripes: q [B, Hq, Lq, D] and k [B, Hkv, Lk, D] must agree and share a dtype, got {} {} and {} {}",
          c10::toString(p.q.scalar_type()), text(p.q), c10::toString(p.k.scalar_type()), text(p.k));
  const auto fits = [&](const Tensor& t) {
    return t.dim() == 2 && t.scalar_type() == at::kLong && (t.size(0) == 1 || t.size(0) == p.q.size(0)) &&
           t.size(1) == p.q.size(2);
  };
  require(fits(p.first) && fits(p.end), "search_stripes: first and end must be int64 [{} or 1, {}], got {} and {}",
          p.q.size(0), p.q.size(2), text(p.first), text(p.end));
  require(count >= 1 && std::ranges::is_sorted(p.distances) && (p.distances.empty() || p.distances.front() >= 0),
          "search_stripes: count must be >= 1 and distances ascend from 0, got {} and {} distances", count,
          p.distances.size());
  const Tensor keys = at::full({p.q.size(0), p.q.size(1), p.q.size(2), count}, -1, at::kLong);
  if (keys.numel() == 0 || p.distances.empty() || p.k.size(2) == 0) return keys;
  StripeProblem legal = p;
  legal.first = p.first.clamp_min(0), legal.end = p.end.clamp_max(p.k.size(2));
  const Search search(legal, count, keys);
  const int64_t blocks = (p.q.size(2) + kQueriesAtOnce - 1) / kQueriesAtOnce, kv_heads = p.k.size(1);
  run_queue(torch_pool(), p.q.size(0) * kv_heads * blocks, [&](int64_t item, int) {
    const int64_t first = (blocks - 1 - item % blocks) * kQueriesAtOnce;  // later ones have more stripes
    search.run(
        {item / blocks / kv_heads, item / blocks % kv_heads, first, std::min(kQueriesAtOnce, p.q.size(2) - first)});
  });
  return keys;
}

}  // namespace foveate::ops
