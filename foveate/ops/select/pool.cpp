#include "foveate/ops/select/pool.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "foveate/base/error.h"

namespace foveate::ops {

std::vector<int64_t> even_cuts(int64_t length, int64_t size) {
  require(size >= 1, "even_cuts: size must be >= 1, got {}", size);
  std::vector<int64_t> cuts = {0};
  for (int64_t cut = size; cut < length; cut += size) cuts.push_back(cut);
  if (length > 0) cuts.push_back(length);
  return cuts;
}

at::Tensor pool_segments(const at::Tensor& x, std::span<const int64_t> cuts, Pooling pooling) {
  require(!cuts.empty() && cuts.front() == 0 && cuts.back() == x.size(2),
          "pool_segments: cuts must run from 0 to {}, got {} cuts", x.size(2), cuts.size());
  for (size_t i = 1; i < cuts.size(); ++i)
    require(cuts[i - 1] < cuts[i], "pool_segments: cuts must ascend, got {} after {}", cuts[i], cuts[i - 1]);
  const at::Tensor all = at::tensor(at::ArrayRef<int64_t>(cuts.data(), cuts.size()), at::kLong);
  const int64_t segments = std::ssize(cuts) - 1;
  const at::Tensor lengths = all.narrow(0, 1, segments) - all.narrow(0, 0, segments);
  const at::Tensor segment = at::repeat_interleave(lengths);  // [L] segment of each position
  const at::Tensor wide = x.to(at::promote_types(x.scalar_type(), at::kFloat));
  const auto shape = {x.size(0), x.size(1), segments, x.size(3)};
  if (pooling == Pooling::max) {
    const at::Tensor index = segment.view({1, 1, -1, 1}).expand(wide.sizes());
    return at::full(shape, -std::numeric_limits<double>::infinity(), wide.options())
        .scatter_reduce(2, index, wide, "amax", /*include_self=*/true);
  }
  const at::Tensor sums = at::zeros(shape, wide.options()).index_add(2, segment, wide);
  const at::Tensor size = lengths.to(wide.scalar_type()).unsqueeze(1);
  return sums / (pooling == Pooling::mean ? size : size.sqrt());  // mean * sqrt(n) = sum / sqrt(n)
}

}  // namespace foveate::ops
