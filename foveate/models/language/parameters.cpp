#include "foveate/models/language/parameters.h"

#include <ATen/ops/empty.h>

#include "foveate/base/error.h"
#include "foveate/io/dequantize.h"
#include "foveate/ops/parallel.h"

namespace foveate::models {

const io::GgufTensor& GgufParameters::find(const std::string& name, const std::vector<int64_t>& shape) const {
  const io::GgufTensor& stored = file_.tensor(name);
  require(stored.shape == shape, "{}: tensor '{}' must be [{}], got [{}]", file_.path(), name, fmt::join(shape, ", "),
          fmt::join(stored.shape, ", "));
  return stored;
}

at::Tensor GgufParameters::read(const std::string& name, const std::vector<int64_t>& shape) const {
  const io::GgufTensor& stored = find(name, shape);
  const at::Tensor values = at::empty(shape, at::kFloat);
  io::dequantize(stored.type, stored.bytes, {values.mutable_data_ptr<float>(), size_t(values.numel())});
  return values;
}

Packed GgufParameters::read_packed(const std::string& name, const std::vector<int64_t>& shape, int64_t count,
                                   const std::function<int64_t(int64_t)>& row_of, kernels::PackedMemory& memory) const {
  const io::GgufTensor& stored = find(name, shape);
  const auto format = io::quant_format(stored.type);
  const int64_t in = shape.back();
  if (!format || in % 32 != 0 || in % format->block != 0) return nullptr;
  const size_t row_bytes = stored.bytes.size() / size_t(shape.front());
  return std::make_shared<const kernels::PackedMatrix>(
      *format, count, in,
      [&](int64_t row, QuantRow& to) {
        io::take_apart(stored.type, stored.bytes.subspan(size_t(row_of(row)) * row_bytes, row_bytes), to);
      },
      memory, ops::torch_pool());
}

}  // namespace foveate::models
