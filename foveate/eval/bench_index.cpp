#include "foveate/eval/bench_index.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"

namespace foveate::eval {
namespace {

using at::Tensor;

double median(std::vector<double> times) {
  std::ranges::sort(times);
  return times[times.size() / 2];
}

}  // namespace

IndexTiming bench_index(int64_t length, const IndexBenchOptions& o) {
  for (const int64_t n : {length, o.heads, o.dim, o.block, o.rows, o.repeats})
    require(n >= 1, "bench: sizes must be >= 1, got {}", n);
  const at::NoGradGuard no_gradients;
  const Tensor k = at::randn({length, o.dim}), q = at::randn({o.rows, o.heads, o.dim});
  const Tensor start = at::zeros({o.rows}, at::kLong);
  const Tensor end = at::arange(1, 2 * o.rows, 2, at::kLong).mul(length).div(2 * o.rows, "floor").clamp_min(1);
  ops::IndexQueries queries{q, at::randn({o.rows, o.heads}).abs(), start, end};
  if (o.type == ops::IndexType::e4m3) {
    const ops::Float8Rows codes = ops::quantise_float8(q);
    queries.q = codes.codes, queries.weights = queries.weights * codes.scales;
  }
  std::vector<double> pooling, flat, hierarchical;
  ops::IndexKeys alone(o.dim, {o.type, {}});
  ops::BlockedKeys keys(o.dim, {o.type, {}}, o.block);
  alone.append(k), keys.append(k);
  const ops::HisaOptions all{.block_topk = length / o.block + 2, .topk = o.hisa.topk, .force_ends = o.hisa.force_ends};
  require(ops::hisa_index(queries, keys, all).equal(ops::index_top(queries, keys.keys(), o.hisa.topk)),
          "bench: all blocks and the flat indexer must give the same lists");
  for (int64_t i = 0; i < o.repeats; ++i) {
    alone.truncate(0), keys.truncate(0);
    const Timer of_packing;
    alone.append(k);
    const double packing = of_packing.seconds();
    const Timer of_both;
    keys.append(k);
    pooling.push_back(std::max(of_both.seconds() - packing, 0.0) / double(length));
    const Timer of_flat;
    ops::index_top(queries, keys.keys(), o.hisa.topk);
    flat.push_back(of_flat.seconds() / double(o.rows));
    const Timer of_hierarchical;
    ops::hisa_index(queries, keys, o.hisa);
    hierarchical.push_back(of_hierarchical.seconds() / double(o.rows));
  }
  double flat_keys = 0, hierarchical_keys = 0;
  for (int64_t row = 0; row < o.rows; ++row) {
    const int64_t seen = end.const_data_ptr<int64_t>()[row], blocks = (seen + o.block - 1) / o.block;
    flat_keys += double(seen);
    hierarchical_keys += double(blocks + std::min(seen, o.hisa.block_topk * o.block));
  }
  IndexTiming t{
      length, median(flat), median(hierarchical) + median(pooling), median(pooling), 0, flat_keys / hierarchical_keys};
  t.products = 2e-9 * flat_keys / double(o.rows) * double(o.heads * o.dim) / t.flat;
  return t;
}

}  // namespace foveate::eval
