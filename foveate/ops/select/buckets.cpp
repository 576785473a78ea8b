#include "foveate/ops/select/buckets.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::ops {
namespace {

constexpr int64_t kMostBits = 16;

// Columns of the projections side by side, padded with zeros to whole vectors: [dim][kColumns or 2 kColumns].
constexpr int64_t kColumns = 8;

template <class Sum, int64_t columns, class Element>
int64_t bin_of(const Element* row, int64_t dim, const Sum* projections) {
  Sum sums[columns] = {};
  for (int64_t d = 0; d < dim; ++d) {
    const Sum x = Sum(row[d]);
    for (int64_t c = 0; c < columns; ++c) sums[c] += x * projections[d * columns + c];
  }
  int64_t bin = 0;
  for (int64_t c = 0; c < columns; ++c) bin |= int64_t{sums[c] > 0} << c;
  return bin;
}

template <class Element>
void hash_rows(const at::Tensor& x, const at::Tensor& projections, const std::vector<int64_t>& places,
               int64_t* buckets) {
  using Sum = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  const int64_t heads = x.size(1), rows = x.size(2), dim = x.size(3), stride = x.stride(2);
  const Sum* columns = projections.const_data_ptr<Sum>();
  const auto bin = projections.size(1) == kColumns ? bin_of<Sum, kColumns, Element> : bin_of<Sum, kMostBits, Element>;
  constexpr int64_t kRowsAtOnce = 512;
  const int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  run_queue(torch_pool(), x.size(0) * heads * parts, [&](int64_t item, int) {
    const int64_t list = item / parts, first = item % parts * kRowsAtOnce, end = std::min(first + kRowsAtOnce, rows);
    const Element* data = x.const_data_ptr<Element>() + list / heads * x.stride(0) + list % heads * x.stride(1);
    for (int64_t row = first; row < end; ++row)
      buckets[list * rows + row] = places[size_t(bin(data + row * stride, dim, columns))];
  });
}

}  // namespace

std::vector<int64_t> gray_places(int64_t bits, GrayOrder order) {
  require(bits >= 0 && bits <= kMostBits, "gray_places: bits must be 0 .. {}, got {}", kMostBits, bits);
  std::vector<int64_t> places(size_t{1} << bits);
  for (size_t bin = 0; bin < places.size(); ++bin) {
    int64_t place = int64_t(bin ^ (bin >> 1));
    if (order == GrayOrder::exact)
      for (size_t rest = bin >> 2; rest > 0; rest >>= 1) place ^= int64_t(rest);
    places[bin] = place;
  }
  return places;
}

at::Tensor angular_buckets(const at::Tensor& given, const at::Tensor& projections, GrayOrder order) {
  require(given.dim() == 4 && projections.dim() == 2 && projections.size(0) == row_dim(given) &&
              projections.size(1) <= kMostBits && projections.is_floating_point(),
          "angular_buckets: projections must be floating point [{}, 0 .. {}] for rows [{}], got {} [{}]",
          row_dim(given), kMostBits, fmt::join(given.sizes().begin(), given.sizes().end(), ", "),
          c10::toString(projections.scalar_type()),
          fmt::join(projections.sizes().begin(), projections.sizes().end(), ", "));
  at::Tensor x = widened(given, at::kFloat).detach();
  if (x.stride(3) != 1) x = x.contiguous();
  const int64_t bits = projections.size(1), columns = bits <= kColumns ? kColumns : kMostBits;
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor padded = at::zeros({x.size(3), columns}, at::TensorOptions(type));
  padded.narrow(1, 0, bits).copy_(projections.detach());
  const at::Tensor buckets = at::empty({x.size(0), x.size(1), x.size(2)}, at::kLong);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "angular_buckets", [&] {
    hash_rows<scalar_t>(x, padded, gray_places(bits, order), buckets.mutable_data_ptr<int64_t>());
  });
  return buckets;
}

at::Tensor sort_buckets(const at::Tensor& buckets, int64_t count, std::span<const Segment> segments, int64_t capacity) {
  require(buckets.dim() == 3 && buckets.scalar_type() == at::kLong && count >= 1,
          "sort_buckets: buckets must be int64 [B, H, L] of at least 1 bucket, got {} with {} axes of {}",
          c10::toString(buckets.scalar_type()), buckets.dim(), count);
  const at::Tensor flat = buckets.contiguous();
  const int64_t rows = flat.size(2), lists = flat.size(0) * flat.size(1), parts = std::ssize(segments);
  for (const Segment& s : segments)
    require(s.first >= 0 && s.length >= 0 && s.first + s.length <= rows && s.length <= capacity,
            "sort_buckets: segments must lie in 0 .. {} and have at most {} rows, got {} from {}", rows, capacity,
            s.length, s.first);
  if (flat.numel() > 0) {
    const int64_t low = flat.min().item<int64_t>(), high = flat.max().item<int64_t>();
    require(low >= 0 && high < count, "sort_buckets: buckets must be 0 .. {}, got {} .. {}", count - 1, low, high);
  }
  const at::Tensor order = at::full({flat.size(0), flat.size(1), parts, capacity}, -1, at::kLong);
  const int64_t* ids = flat.const_data_ptr<int64_t>();
  int64_t* out = order.mutable_data_ptr<int64_t>();
  run_queue(torch_pool(), lists * parts, [&](int64_t item, int) {
    const Segment& s = segments[size_t(item % parts)];
    const int64_t* bucket = ids + item / parts * rows;
    std::vector<int64_t> next(size_t(count + 1));  // where the next row of each bucket goes
    for (int64_t row = s.first; row < s.first + s.length; ++row) ++next[size_t(bucket[row] + 1)];
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t row = s.first; row < s.first + s.length; ++row)
      out[item * capacity + next[size_t(bucket[row])]++] = row;
  });
  return order;
}

}  // namespace foveate::ops
