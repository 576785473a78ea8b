#include "foveate/io/stored_tensor.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <numeric>

#include "foveate/io/dequantize.h"

namespace foveate::io {
namespace {

struct TypeInfo {
  DType type;
  int64_t bytes;
  std::string_view name, torch_dtype, torch_storage;  // newer types have no storage class of their own
};
constexpr TypeInfo kTypes[] = {
    {DType::boolean, 1, "BOOL", "bool", "BoolStorage"},
    {DType::u8, 1, "U8", "uint8", "ByteStorage"},
    {DType::i8, 1, "I8", "int8", "CharStorage"},
    {DType::u16, 2, "U16", "uint16", ""},
    {DType::i16, 2, "I16", "int16", "ShortStorage"},
    {DType::u32, 4, "U32", "uint32", ""},
    {DType::i32, 4, "I32", "int32", "IntStorage"},
    {DType::u64, 8, "U64", "uint64", ""},
    {DType::i64, 8, "I64", "int64", "LongStorage"},
    {DType::f16, 2, "F16", "float16", "HalfStorage"},
    {DType::bf16, 2, "BF16", "bfloat16", "BFloat16Storage"},
    {DType::f32, 4, "F32", "float32", "FloatStorage"},
    {DType::f64, 8, "F64", "float64", "DoubleStorage"},
    {DType::f8_e4m3, 1, "F8_E4M3", "float8_e4m3fn", ""},
    {DType::f8_e5m2, 1, "F8_E5M2", "float8_e5m2", ""},
    {DType::f8_e8m0, 1, "F8_E8M0", "float8_e8m0fnu", ""},
    {DType::f8_e4m3fnuz, 1, "F8_E4M3FNUZ", "float8_e4m3fnuz", ""},
    {DType::f8_e5m2fnuz, 1, "F8_E5M2FNUZ", "float8_e5m2fnuz", ""},
    {DType::c64, 8, "C64", "complex64", "ComplexFloatStorage"},
    {DType::c128, 16, "C128", "complex128", "ComplexDoubleStorage"},
};
constexpr bool types_stand_in_order() {
  for (size_t i = 0; i < std::size(kTypes); ++i)
    if (size_t(kTypes[i].type) != i) return false;
  return true;
}
static_assert(types_stand_in_order());

std::optional<DType> find_type(std::string_view TypeInfo::*column, std::string_view text) {
  const auto* found = std::ranges::find(kTypes, text, column);
  return found == std::end(kTypes) || text.empty() ? std::nullopt : std::optional(found->type);
}

// Calls use(place) with every element's place in units of elements, in the order of the shape.  Contract: elements > 0.
template <class Use>
void walk(const StoredTensor& t, const Use& use) {
  std::vector<int64_t> index(t.shape.size());
  const size_t inner = t.shape.size() - 1;  // a scalar is contiguous and never comes here
  for (int64_t start = 0;;) {
    for (int64_t i = 0; i < t.shape[inner]; ++i) use(start + i * t.strides[inner]);
    size_t axis = inner;
    for (; axis > 0; --axis) {
      start += t.strides[axis - 1];
      if (++index[axis - 1] < t.shape[axis - 1]) break;
      start -= t.shape[axis - 1] * t.strides[axis - 1];
      index[axis - 1] = 0;
    }
    if (axis == 0) return;
  }
}

template <size_t kBytes>
void gather(const StoredTensor& tensor, std::byte* out) {
  walk(tensor, [&](int64_t place) {
    std::memcpy(out, tensor.bytes.data() + size_t(place) * kBytes, kBytes);
    out += kBytes;
  });
}

}  // namespace

std::string_view type_name(DType type) { return kTypes[size_t(type)].name; }
int64_t type_bytes(DType type) { return kTypes[size_t(type)].bytes; }
std::optional<DType> type_named(std::string_view name) { return find_type(&TypeInfo::name, name); }
std::optional<DType> type_of_torch_dtype(std::string_view dtype) { return find_type(&TypeInfo::torch_dtype, dtype); }
std::optional<DType> type_of_torch_storage(std::string_view class_name) {
  return find_type(&TypeInfo::torch_storage, class_name);
}

int64_t StoredTensor::elements() const {
  // a reader checks the product of the sizes; with a size of 0 the others may be anything
  if (std::ranges::count(shape, 0) > 0) return 0;
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

bool StoredTensor::is_contiguous() const {
  if (elements() == 0) return true;
  int64_t step = 1;
  for (size_t axis = shape.size(); axis-- > 0; step *= shape[axis])
    if (shape[axis] != 1 && strides[axis] != step) return false;
  return true;
}

std::vector<int64_t> contiguous_strides(std::span<const int64_t> shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  if (std::ranges::count(shape, 0) > 0) return strides;
  for (size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
  return strides;
}

void copy_elements(const StoredTensor& t, std::span<std::byte> out) {
  const int64_t needed = t.elements() * type_bytes(t.type);
  require(std::ssize(out) == needed, "{}: tensor {} has {} bytes, got room for {}", t.file, printable(t.name), needed,
          out.size());
  if (t.is_contiguous()) {
    if (needed > 0) std::memcpy(out.data(), t.bytes.data(), size_t(needed));
    return;
  }
  switch (type_bytes(t.type)) {
    case 1:
      return gather<1>(t, out.data());
    case 2:
      return gather<2>(t, out.data());
    case 4:
      return gather<4>(t, out.data());
    case 8:
      return gather<8>(t, out.data());
    default:
      return gather<16>(t, out.data());
  }
}

void to_floats(const StoredTensor& t, std::span<float> out) {
  require(std::ssize(out) == t.elements(), "{}: tensor {} has {} elements, got room for {}", t.file, printable(t.name),
          t.elements(), out.size());
  require(t.type == DType::f64 || t.type == DType::f32 || t.type == DType::f16 || t.type == DType::bf16,
          "{}: tensor {} at byte {}: type must be one of: F64 F32 F16 BF16; got {}", t.file, printable(t.name),
          t.offset, type_name(t.type));
  std::vector<std::byte> gathered;
  std::span<const std::byte> bytes = t.bytes;
  if (!t.is_contiguous()) {
    gathered.resize(out.size() * size_t(type_bytes(t.type)));
    copy_elements(t, gathered);
    bytes = gathered;
  }
  if (t.type == DType::f32) return dequantize(GgmlType::f32, bytes, out);
  if (t.type == DType::f16) return dequantize(GgmlType::f16, bytes, out);
  if (t.type == DType::bf16) return dequantize(GgmlType::bf16, bytes, out);
  for (size_t i = 0; i < out.size(); ++i) {
    double value;
    std::memcpy(&value, bytes.data() + 8 * i, 8);
    out[i] = float(value);
  }
}

std::string print_sizes(std::span<const int64_t> sizes) {
  constexpr size_t kMost = 8;
  return fmt::format("[{}{}]", fmt::join(sizes.first(std::min(sizes.size(), kMost)), ", "),
                     sizes.size() > kMost ? ", ..." : "");
}

}  // namespace foveate::io
