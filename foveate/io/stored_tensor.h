// A tensor as it lies in a file (safetensors, torch), and the one list of element types of both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::io {

enum class DType : uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  c64,
  c128,
};

std::string_view type_name(DType type);                                   // as safetensors writes it: "BF16"
int64_t type_bytes(DType type);                                           // of one element
std::optional<DType> type_named(std::string_view name);                   // "BF16"
std::optional<DType> type_of_torch_dtype(std::string_view dtype);         // "bfloat16", as in torch.bfloat16
std::optional<DType> type_of_torch_storage(std::string_view class_name);  // "BFloat16Storage"

struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;    // empty: a scalar
  std::vector<int64_t> strides;  // in elements, >= 0; as long as `shape`
  DType type;
  std::span<const std::byte> bytes;  // from the first element to the last, at any alignment; empty without elements
  std::string file;
  uint64_t offset;  // of the first element in the file

  int64_t elements() const;
  bool is_contiguous() const;
};

// The strides of a tensor whose elements lie one after the other.
std::vector<int64_t> contiguous_strides(std::span<const int64_t> shape);

// The tensor's elements one after the other, in their own type and with their own bits.  Throws Error: `out` does not
// have exactly their bytes.
void copy_elements(const StoredTensor& tensor, std::span<std::byte> out);

// F64, F32, F16 and BF16 to fp32, one after the other; F64 is rounded to nearest, the others are exact and keep the
// payloads of NaNs.  Throws Error: another type (names file and tensor), `out` of another size.
void to_floats(const StoredTensor& tensor, std::span<float> out);

// For readers and their messages, which must stay short: "[3, 4]", cut after eight sizes.
std::string print_sizes(std::span<const int64_t> sizes);

}  // namespace foveate::io
