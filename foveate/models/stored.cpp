#include "foveate/models/stored.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"

namespace foveate::models {
namespace {

constexpr std::pair<at::ScalarType, io::DType> kTypes[] = {
    {at::kFloat, io::DType::f32},    {at::kBFloat16, io::DType::bf16}, {at::kHalf, io::DType::f16},
    {at::kByte, io::DType::u8},      {at::kLong, io::DType::i64},      {at::kInt, io::DType::i32},
    {at::kBool, io::DType::boolean}, {at::kDouble, io::DType::f64}};

}  // namespace

io::StoredTensor store(const std::string& name, const at::Tensor& t) {
  const auto* found = std::ranges::find(kTypes, t.scalar_type(), &std::pair<at::ScalarType, io::DType>::first);
  require(found != std::end(kTypes), "{}: a tensor in {} cannot be saved", name, c10::toString(t.scalar_type()));
  return {name,
          t.sizes().vec(),
          t.strides().vec(),
          found->second,
          {static_cast<const std::byte*>(t.const_data_ptr()), size_t(t.nbytes())},
          {},
          0};
}

at::Tensor restore(const io::StoredTensor& t) {
  const auto* found = std::ranges::find(kTypes, t.type, &std::pair<at::ScalarType, io::DType>::second);
  require(found != std::end(kTypes), "{}: tensor {} must not be {}", t.file, io::printable(t.name),
          io::type_name(t.type));
  const at::Tensor result = at::empty(t.shape, found->first);
  io::copy_elements(t, {static_cast<std::byte*>(result.data_ptr()), size_t(result.nbytes())});
  // Any byte but 0 is true, and only 1 is a bool.
  return t.type == io::DType::boolean ? result.view(at::kByte).ne(0) : result;
}

}  // namespace foveate::models
