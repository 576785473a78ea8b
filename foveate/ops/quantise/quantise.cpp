#include "foveate/ops/quantise/quantise.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;

static_assert(kernels::kScaled == 32);

void check_floats(at::ScalarType type, std::string_view name) {
  require(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
          "{}: dtype must be fp32, bf16 or fp16, got {}", name, c10::toString(type));
}

c10::SymDimVector last_replaced(const Tensor& t, const c10::SymInt& size) {
  c10::SymDimVector sizes(t.sym_sizes());
  sizes.back() = size;
  return sizes;
}

Tensor quantise_meta(const Tensor& x) {
  const c10::SymInt dim = x.sym_size(-1);
  return x.new_empty_symint(last_replaced(x, quantised_bytes(dim)), at::kByte);
}

Tensor dequantise_meta(const Tensor& rows, at::ScalarType dtype) {
  return rows.new_empty_symint(last_replaced(rows, quantised_dim(rows.sym_size(-1))), dtype);
}

}  // namespace

Tensor quantise_rows(const Tensor& x) {
  check_floats(x.scalar_type(), "quantise_rows");
  require(x.dim() >= 1 && x.size(-1) >= 1, "quantise_rows: rows must have an element, got {} axes", x.dim());
  const Tensor from = x.contiguous();
  const int64_t dim = x.size(-1), rows = x.numel() / dim;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = quantised_bytes(dim);
  const Tensor to = at::empty(sizes, x.options().dtype(at::kByte));
  const kernels::Table& table = kernel_table() ? *kernel_table() : *kernels::levels().front();
  const auto type = dtype_of(x);
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(to.data_ptr());
  constexpr int64_t kRowsAtOnce = 256;
  run_queue(torch_pool(), (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int) {
    for (int64_t row = item * kRowsAtOnce; row < std::min((item + 1) * kRowsAtOnce, rows); ++row)
      table.quantise_row(source + row * kernels::row_bytes(dim, type), int(dim), type,
                         target + row * quantised_bytes(dim));
  });
  return to;
}

Tensor dequantise_rows(const Tensor& rows, at::ScalarType dtype) {
  check_floats(dtype, "dequantise_rows");
  const int64_t dim = rows.dim() >= 1 ? row_dim(rows) : 0;
  require(is_quantised(rows) && dim >= 1 && quantised_bytes(dim) == rows.size(-1),
          "dequantise_rows: rows must be uint8 of D + 2 * ceil(D / 32) bytes, got {} of {}",
          c10::toString(rows.scalar_type()), rows.dim() >= 1 ? rows.size(-1) : 0);
  const Tensor codes = rows.narrow(-1, 0, dim).view(at::kChar).to(at::kFloat);
  const Tensor scales =
      rows.narrow(-1, dim, rows.size(-1) - dim).clone(at::MemoryFormat::Contiguous).view(at::kBFloat16).to(at::kFloat);
  return (codes * scales.repeat_interleave(kernels::kScaled, -1).narrow(-1, 0, dim)).to(dtype);
}

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("quantise_rows(Tensor x) -> Tensor", tags);
  library.def("dequantise_rows(Tensor rows, ScalarType dtype) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(foveate, CPU, library) {
  library.impl("quantise_rows", TORCH_FN(quantise_rows));
  library.impl("dequantise_rows", TORCH_FN(dequantise_rows));
}

TORCH_LIBRARY_IMPL(foveate, Meta, library) {
  library.impl("quantise_rows", TORCH_FN(quantise_meta));
  library.impl("dequantise_rows", TORCH_FN(dequantise_meta));
}

}  // namespace foveate::ops
