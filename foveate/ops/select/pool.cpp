#include "foveate/ops/select/pool.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::ops {

std::vector<int64_t> even_cuts(int64_t length, int64_t size) {
  require(size >= 1, "even_cuts: size must be >= 1, got {}", size);
  std::vector<int64_t> cuts = {0};
  for (int64_t cut = size; cut < length; cut += size) cuts.push_back(cut);
  if (length > 0) cuts.push_back(length);
  return cuts;
}

namespace {

void check_cuts(std::span<const int64_t> cuts, int64_t length, std::string_view name) {
  require(!cuts.empty() && cuts.front() == 0 && cuts.back() == length, "{}: cuts must run from 0 to {}, got {} cuts",
          name, length, cuts.size());
  for (size_t i = 1; i < cuts.size(); ++i)
    require(cuts[i - 1] < cuts[i], "{}: cuts must ascend, got {} after {}", name, cuts[i], cuts[i - 1]);
}

// The length of all segments but the last, which may be shorter; 0 where they differ.
int64_t even_length(std::span<const int64_t> cuts) {
  const int64_t segments = std::ssize(cuts) - 1, size = segments > 0 ? cuts[1] : 0;
  for (int64_t i = 1; i < segments; ++i) {
    const int64_t length = cuts[size_t(i) + 1] - cuts[size_t(i)];
    if (length > size || (length < size && i + 1 < segments)) return 0;
  }
  return size;
}

at::ScalarType wide_type(const at::Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

// x [B, H, segments, size, D] over axis 3.
at::Tensor pool_axis(const at::Tensor& x, Pooling pooling) {
  if (pooling == Pooling::max) return x.amax(3).to(wide_type(x));
  const at::Tensor sums = x.sum(c10::IntArrayRef{3}, false, wide_type(x));
  const double size = double(x.size(3));
  return sums / (pooling == Pooling::mean ? size : std::sqrt(size));  // mean * sqrt(n) = sum / sqrt(n)
}

// [L] segment of each position
at::Tensor segment_of(std::span<const int64_t> cuts, at::Tensor* lengths) {
  const at::Tensor all = at::tensor(at::ArrayRef<int64_t>(cuts.data(), cuts.size()), at::kLong);
  *lengths = all.narrow(0, 1, all.size(0) - 1) - all.narrow(0, 0, all.size(0) - 1);
  return at::repeat_interleave(*lengths);
}

}  // namespace

at::Tensor pool_segments(const at::Tensor& rows, std::span<const int64_t> cuts, Pooling pooling) {
  const at::Tensor x = widened(rows, at::kFloat);
  check_cuts(cuts, x.size(2), "pool_segments");
  const int64_t segments = std::ssize(cuts) - 1;
  if (const int64_t size = even_length(cuts); size > 0) {  // no copy of x: many times faster than by index
    const int64_t whole = x.size(2) / size, rest = x.size(2) - whole * size;
    const at::Tensor even = pool_axis(x.narrow(2, 0, whole * size).unflatten(2, {whole, size}), pooling);
    if (rest == 0) return even;
    return at::cat({even, pool_axis(x.narrow(2, whole * size, rest).unsqueeze(2), pooling)}, 2);
  }
  at::Tensor lengths;
  const at::Tensor segment = segment_of(cuts, &lengths), wide = x.to(wide_type(x));
  const auto shape = {x.size(0), x.size(1), segments, x.size(3)};
  if (pooling == Pooling::max) {
    const at::Tensor index = segment.view({1, 1, -1, 1}).expand(wide.sizes());
    return at::full(shape, -std::numeric_limits<double>::infinity(), wide.options())
        .scatter_reduce(2, index, wide, "amax", /*include_self=*/true);
  }
  const at::Tensor sums = at::zeros(shape, wide.options()).index_add(2, segment, wide);
  const at::Tensor size = lengths.to(wide.scalar_type()).unsqueeze(1);
  return sums / (pooling == Pooling::mean ? size : size.sqrt());
}

at::Tensor weigh_segments(const at::Tensor& rows, const at::Tensor& weights, std::span<const int64_t> cuts) {
  const at::Tensor x = widened(rows, at::kFloat);
  check_cuts(cuts, x.size(2), "weigh_segments");
  require(weights.dim() == 3 && weights.is_floating_point() && weights.size(2) == x.size(2) &&
              (weights.size(0) == 1 || weights.size(0) == x.size(0)) &&
              (weights.size(1) == 1 || weights.size(1) == x.size(1)),
          "weigh_segments: weights must be floating point and broadcast to [{}, {}, {}], got [{}]", x.size(0),
          x.size(1), x.size(2), fmt::join(weights.sizes().begin(), weights.sizes().end(), ", "));
  const at::Tensor weighed = x.to(wide_type(x)) * weights.to(wide_type(x)).unsqueeze(3);
  if (const int64_t size = even_length(cuts); size > 0 && x.size(2) % size == 0)
    return weighed.unflatten(2, {x.size(2) / size, size}).sum(3);
  at::Tensor lengths;
  const at::Tensor segment = segment_of(cuts, &lengths);
  return at::zeros({x.size(0), x.size(1), std::ssize(cuts) - 1, x.size(3)}, weighed.options())
      .index_add(2, segment, weighed);
}

at::Tensor score_blocks(const at::Tensor& q, const at::Tensor& chunks, std::span<const int64_t> query_cuts,
                        Pooling pooling, bool by_group) {
  require(q.dim() == 4 && chunks.dim() == 4 && chunks.size(0) == q.size(0) && chunks.size(3) == q.size(3) &&
              chunks.size(1) >= 1 && q.size(1) % chunks.size(1) == 0,
          "score_blocks: q [B, Hq, L, D] and chunks [B, Hc, C, D] must agree, Hq a multiple of Hc, got [{}] and [{}]",
          fmt::join(q.sizes().begin(), q.sizes().end(), ", "),
          fmt::join(chunks.sizes().begin(), chunks.sizes().end(), ", "));
  const int64_t groups = chunks.size(1), repeats = q.size(1) / groups;
  const auto average = [&](const at::Tensor& x) {
    return x.unflatten(1, {groups, repeats}).mean(2, false, wide_type(x));
  };
  const bool linear = pooling != Pooling::max;  // then the shorter tensor is averaged
  at::Tensor blocks =
      by_group && !linear ? pool_segments(average(q), query_cuts, pooling) : pool_segments(q, query_cuts, pooling);
  if (by_group && linear) blocks = average(blocks);
  const at::Tensor keys = chunks.to(blocks.scalar_type()).transpose(2, 3);
  if (by_group || repeats == 1) return at::matmul(blocks, keys);
  return at::matmul(blocks.unflatten(1, {groups, repeats}), keys.unsqueeze(2)).flatten(1, 2);
}

}  // namespace foveate::ops
