#include "foveate/eval/bench_primitives.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"
#include "foveate/ops/sums/sums.h"
#include "foveate/ops/sums/visible.h"

namespace foveate::eval {
namespace {

using at::Tensor;
using Make = std::function<Tensor()>;

class Primitives {
 public:
  Primitives(const PrimitiveOptions& o, const std::function<void(const PrimitiveTiming&)>& done)
      : o_(o),
        done_(done),
        q_(at::randn({1, o.heads, o.length, o.dim}).to(o.type)),
        k_(at::randn({1, o.kv_heads, o.length, o.dim}).to(o.type)),
        v_(at::randn({1, o.kv_heads, o.length, o.dim}).to(o.type)) {}

  void run() {
    pooling();
    selection();
    parts();
    sums();
    pairs();
  }

 private:
  void add(const std::string& name, const std::string& beside, double bytes, const Make& ours, const Make& other) {
    const Tensor a = ours().to(at::kDouble), b = other().to(at::kDouble);
    const double error = std::sqrt((a - b).square().sum().item<double>() / b.square().sum().item<double>());
    require(error <= 1e-2, "bench: {}: differs from {} by {:.2g} (relative)", name, beside, error);
    done_({name, beside, best(ours), best(other), bytes});
  }

  double best(const Make& make) const {
    double least = INFINITY;
    const Timer all;
    for (int runs = 0; all.seconds() < o_.seconds || runs < 3; ++runs) {
      const Timer one;
      make();
      least = std::min(least, one.seconds());
    }
    return least;
  }

  static double bytes_of(const Tensor& t) { return double(t.numel()) * double(t.element_size()); }

  void pooling() {
    const std::vector<int64_t> even = ops::even_cuts(o_.length, 64);
    std::vector<int64_t> ragged = {0};
    while (ragged.back() < o_.length)
      ragged.push_back(std::min(o_.length, ragged.back() + 48 + 32 * (std::ssize(ragged) % 2)));
    add(
        "pool_segments, 64 keys each", "a mean of fp32", bytes_of(k_),
        [&] { return ops::pool_segments(k_, even, ops::Pooling::mean); },
        [&] {
          return k_.to(at::kFloat).unflatten(2, {-1, 64}).mean(3);
        });
    add(
        "pool_segments, ragged", "one matrix product", bytes_of(k_),
        [&] { return ops::pool_segments(k_, ragged, ops::Pooling::mean); },
        [&] {
          const int64_t segments = std::ssize(ragged) - 1;
          const Tensor ends = at::tensor(ragged, at::kLong), places = at::arange(o_.length, at::kLong);
          const Tensor first = ends.narrow(0, 0, segments).unsqueeze(1),
                       last = ends.narrow(0, 1, segments).unsqueeze(1);
          const Tensor inside = places.ge(first).logical_and(places.lt(last)).to(at::kFloat);
          return at::matmul(inside / (last - first), k_.to(at::kFloat));
        });
  }

  void selection() {
    const Tensor scores = at::randn({o_.heads, o_.length / 64, o_.length});
    add(
        "select_top, an eighth", "topk and sort", bytes_of(scores),
        [&] { return ops::select_top(scores, o_.length / 8); },
        [&] { return std::get<0>(std::get<1>(at::topk(scores, o_.length / 8)).sort(-1)); });
  }

  void parts() {
    std::vector<ops::Attended> all;
    for (int i = 0; i < 2; ++i)
      all.push_back({at::randn({1, o_.heads, o_.length, o_.dim}).to(o_.type), at::randn({1, o_.heads, o_.length})});
    add(
        "merge_by_lse, 2 parts", "a weighted sum", 3 * bytes_of(all[0].out), [&] { return ops::merge_by_lse(all).out; },
        [&] {
          const Tensor share = (all[0].lse - all[1].lse).sigmoid().unsqueeze(-1);
          return (all[0].out.to(at::kFloat) * share + all[1].out.to(at::kFloat) * (1 - share)).to(o_.type);
        });
  }

  void sums() {
    const Tensor lse = ops::attend(q_, k_, v_, Rule{}).lse;
    // A forward of attention does twice the products; it stands beside as what the sums may cost at most.
    const auto add_sums = [&](const std::string& name, const ops::SumOptions& options) {
      const Tensor rows = ops::attention_sums(q_, k_, lse, Rule{}, {}, options);
      const double total = rows.sum().item<double>(), want = double(o_.heads * o_.length);
      require(std::abs(total / want - 1) < 1e-2, "bench: {}: probabilities sum to {}, not {}", name, total, want);
      done_({name, "attend, forward", best([&] { return ops::attention_sums(q_, k_, lse, Rule{}, {}, options); }),
             best([&] { return ops::attend(q_, k_, v_, Rule{}).out; }), 0});
    };
    add_sums("attention_sums by key, causal", {.by = ops::SumBy::key});
    add_sums("attention_sums by diagonal, causal", {.by = ops::SumBy::diagonal});
    add_sums("attention_sums by block of 64, causal", {.by = ops::SumBy::block});
    add(
        "visible_sum, causal", "a running sum of fp32", bytes_of(v_) + 4.0 * double(q_.numel()),
        [&] { return ops::visible_sum(v_, Rule{}, o_.heads, o_.length).sum; },
        [&] { return v_.to(at::kFloat).cumsum(2).repeat_interleave(o_.heads / o_.kv_heads, 1); });
  }

  void pairs() {
    const Tensor index = at::randint(0, o_.length, {1, o_.heads, o_.length, 32}, at::kInt);
    const Tensor wide = index.to(at::kLong),
                 head = at::arange(o_.heads, at::kLong).div(o_.heads / o_.kv_heads, "floor").view({1, -1, 1, 1});
    add(
        "pair_scores, 32 keys a query", "gather and matmul", double(index.numel()) * double(o_.dim * k_.element_size()),
        [&] { return ops::pair_scores(q_, k_, index, 1); },
        [&] {
          const Tensor keys = k_.select(0, 0).index({head, wide});
          return at::matmul(keys, q_.unsqueeze(4)).squeeze(4).to(at::kFloat);
        });
  }

  const PrimitiveOptions& o_;
  const std::function<void(const PrimitiveTiming&)>& done_;
  Tensor q_, k_, v_;
};

}  // namespace

void bench_primitives(const PrimitiveOptions& o, const std::function<void(const PrimitiveTiming&)>& done) {
  for (const int64_t n : {o.length, o.dim, o.heads, o.kv_heads})
    require(n >= 1, "bench: sizes must be >= 1, got {}", n);
  require(o.length % 64 == 0, "bench: length must be a multiple of 64, got {}", o.length);
  require(o.heads % o.kv_heads == 0, "bench: heads must be a multiple of kv_heads, got {} and {}", o.heads, o.kv_heads);
  const at::NoGradGuard no_gradients;
  Primitives(o, done).run();
}

}  // namespace foveate::eval
