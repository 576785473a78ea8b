// Buckets of similar rows: angular hashing, and sorting rows by bucket.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace foveate::ops {

// In which order the 2^bits bins of a hash with so many hyperplanes stand.
//   exact      the place of a bin in the reflected Gray code: neighbours, the last and the first too, differ in one bit
//   reference  b ^ (b >> 1), as HyperAttention's release has it: neighbours may differ in several bits
enum class GrayOrder { exact, reference };
constexpr auto enum_names(GrayOrder) { return std::array<std::string_view, 2>{"exact", "reference"}; }

// Entry b is the place of bin b, a permutation of 0 .. 2^bits - 1.  bits 0 .. 16.
std::vector<int64_t> gray_places(int64_t bits, GrayOrder order);

// Angular locality-sensitive hashing (Charikar, STOC 2002; HyperAttention, 2310.05869, section 3.1): bit c of a row's
// bin says whether its product with column c of the projections is > 0; the bucket is the place of the bin.  Rows at an
// angle t share a bucket with probability (1 - t / pi)^r over normal projections.
// x [B, H, L, D] floating point, or 8-bit rows of it (quantise_rows); projections [D, r] floating point, r 0 .. 16.
// Products are summed up in fp32 (fp64 for fp64), in order: the same buckets on any number of threads.  NaN is not > 0.
// Returns [B, H, L] int64 in [0, 2^r).  No gradient.  Throws Error: shapes that do not fit.
at::Tensor angular_buckets(const at::Tensor& x, const at::Tensor& projections, GrayOrder order);

struct Segment {
  int64_t first, length;  // rows [first, first + length)
};

// The rows of each segment by bucket, stably: lower bucket first, then lower row.  A counting sort.
// buckets [B, H, L] int64 in [0, count); segments inside of [0, L), of at most `capacity` rows.
// Returns row numbers [B, H, segments, capacity] int64, -1 behind the end of a segment.  Throws Error: a bucket, a
// segment or a length outside of its range.
at::Tensor sort_buckets(const at::Tensor& buckets, int64_t count, std::span<const Segment> segments, int64_t capacity);

}  // namespace foveate::ops
