#include "foveate/models/language/parameters.h"

#include <ATen/ops/empty.h>

#include "foveate/base/error.h"
#include "foveate/io/dequantize.h"

namespace foveate::models {

at::Tensor GgufParameters::read(const std::string& name, const std::vector<int64_t>& shape) const {
  const io::GgufTensor& stored = file_.tensor(name);
  require(stored.shape == shape, "{}: tensor '{}' must be [{}], got [{}]", file_.path(), name, fmt::join(shape, ", "),
          fmt::join(stored.shape, ", "));
  const at::Tensor values = at::empty(shape, at::kFloat);
  io::dequantize(stored.type, stored.bytes, {values.mutable_data_ptr<float>(), size_t(values.numel())});
  return values;
}

}  // namespace foveate::models
