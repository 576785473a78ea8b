#include "foveate/ops/quantise/float8.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ldexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <bit>
#include <cmath>
#include <limits>

#include "foveate/base/error.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr double kLargest = 448;  // of e4m3
constexpr int64_t kPageKeys = 64;
constexpr int64_t kLatent = 512, kLatentTile = 128, kRotated = 64, kTiles = kLatent / kLatentTile;
constexpr int64_t kLatentBytes = kLatent + 4 * kTiles + 2 * kRotated;

// Bytes of the last axis.
Tensor bytes_of(const Tensor& t) { return t.contiguous().view(at::kByte); }
Tensor as(const Tensor& bytes, at::ScalarType type) { return bytes.contiguous().view(type); }

}  // namespace

Tensor Float8Rows::values() const { return codes.to(at::kFloat) * scales.unsqueeze(-1); }

Float8Rows quantise_float8(const Tensor& given, const Float8Options& options) {
  require(given.dim() >= 1 && given.size(-1) >= 1 && given.is_floating_point(),
          "quantise_float8: x must be floating point [.., D >= 1], got {} with {} axes",
          c10::toString(given.scalar_type()), given.dim());
  const Tensor x = given.detach().to(at::kFloat);
  const Tensor largest = x.abs().amax(-1);  // NaN stays
  Tensor scales = (largest / kLargest).clamp_min(options.least);
  if (options.power_of_two) {  // log2 would not be exact
    const auto [fraction, exponent] = at::frexp(scales);
    scales = at::ldexp(at::ones_like(scales), exponent - fraction.eq(0.5).to(at::kInt));
  }
  scales = at::where(largest.isfinite(), scales, at::full_like(scales, std::numeric_limits<double>::quiet_NaN()));
  const Tensor codes = (x / scales.unsqueeze(-1)).clamp(-kLargest, kLargest).to(at::kFloat8_e4m3fn);
  return {codes, scales};
}

Tensor hadamard(const Tensor& x) {
  const int64_t dim = x.size(-1);
  require(dim >= 1 && std::has_single_bit(uint64_t(dim)), "hadamard: the last axis must be a power of two, got {}",
          dim);
  Tensor matrix = at::ones({1, 1}, x.options());
  while (matrix.size(0) < dim) matrix = at::cat({at::cat({matrix, matrix}, 1), at::cat({matrix, -matrix}, 1)}, 0);
  return at::matmul(x, matrix) / std::sqrt(double(dim));
}

Tensor to_index_pages(const Float8Rows& rows) {
  require(rows.codes.dim() == 2 && rows.scales.dim() == 1 && rows.scales.size(0) == rows.codes.size(0),
          "to_index_pages: codes must be [N, D] and scales [N], got {} and {} axes", rows.codes.dim(),
          rows.scales.dim());
  const int64_t keys = rows.codes.size(0), dim = rows.codes.size(1), pages = (keys + kPageKeys - 1) / kPageKeys;
  const Tensor codes = at::zeros({pages * kPageKeys, dim}, at::kByte);
  codes.narrow(0, 0, keys).copy_(bytes_of(rows.codes));
  const Tensor scales = at::zeros({pages * kPageKeys}, at::kFloat);
  scales.narrow(0, 0, keys).copy_(rows.scales);
  return at::cat({codes.view({pages, kPageKeys * dim}), bytes_of(scales.view({pages, kPageKeys}))}, 1);
}

Float8Rows from_index_pages(const Tensor& pages, int64_t keys) {
  require(pages.scalar_type() == at::kByte && pages.dim() == 2 && pages.size(1) % kPageKeys == 0 &&
              pages.size(1) > 4 * kPageKeys && keys >= 0 && keys <= pages.size(0) * kPageKeys,
          "from_index_pages: pages must be uint8 [P, 64 * (D + 4)] with {} keys, got {} axes", keys, pages.dim());
  const int64_t dim = pages.size(1) / kPageKeys - 4;
  const Tensor codes = as(pages.narrow(1, 0, kPageKeys * dim), at::kFloat8_e4m3fn).view({-1, dim});
  const Tensor scales = as(pages.narrow(1, kPageKeys * dim, kPageKeys * 4), at::kFloat).view({-1});
  return {codes.narrow(0, 0, keys), scales.narrow(0, 0, keys)};
}

Tensor quantise_latent(const Tensor& kv) {
  require(kv.dim() >= 1 && kv.is_floating_point() && kv.size(-1) == kLatent + kRotated,
          "quantise_latent: kv must be floating point [.., {}], got {} with {} dims", kLatent + kRotated,
          c10::toString(kv.scalar_type()), kv.dim() ? kv.size(-1) : 0);
  const Tensor latent = kv.narrow(-1, 0, kLatent).unflatten(-1, {kTiles, kLatentTile});
  const Float8Rows tiles = quantise_float8(latent, {.power_of_two = true});
  return at::cat({bytes_of(tiles.codes.flatten(-2)), bytes_of(tiles.scales),
                  bytes_of(kv.detach().narrow(-1, kLatent, kRotated).to(at::kBFloat16))},
                 -1);
}

Tensor dequantise_latent(const Tensor& rows, at::ScalarType dtype) {
  require(rows.dim() >= 1 && rows.scalar_type() == at::kByte && rows.size(-1) == kLatentBytes,
          "dequantise_latent: rows must be uint8 [.., {}], got {} with {} bytes", kLatentBytes,
          c10::toString(rows.scalar_type()), rows.dim() ? rows.size(-1) : 0);
  const Tensor codes = as(rows.narrow(-1, 0, kLatent), at::kFloat8_e4m3fn).unflatten(-1, {kTiles, kLatentTile});
  const Tensor scales = as(rows.narrow(-1, kLatent, 4 * kTiles), at::kFloat);
  const Tensor rotated = as(rows.narrow(-1, kLatent + 4 * kTiles, 2 * kRotated), at::kBFloat16);
  return at::cat({Float8Rows{codes, scales}.values().flatten(-2).to(dtype), rotated.to(dtype)}, -1);
}

}  // namespace foveate::ops
