// Writes GGUF files for tests: good ones, and the raw pieces from which broken ones are made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "foveate/io/gguf.h"
#include "tests/support/files.h"

namespace foveate::test {

// The format's number of a C++ value type.
template <class T>
constexpr uint32_t gguf_value_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return 0;
  if constexpr (std::is_same_v<T, int8_t>) return 1;
  if constexpr (std::is_same_v<T, uint16_t>) return 2;
  if constexpr (std::is_same_v<T, int16_t>) return 3;
  if constexpr (std::is_same_v<T, uint32_t>) return 4;
  if constexpr (std::is_same_v<T, int32_t>) return 5;
  if constexpr (std::is_same_v<T, float>) return 6;
  if constexpr (std::is_same_v<T, bool>) return 7;
  if constexpr (std::is_same_v<T, std::string>) return 8;
  if constexpr (std::is_same_v<T, uint64_t>) return 10;
  if constexpr (std::is_same_v<T, int64_t>) return 11;
  if constexpr (std::is_same_v<T, double>) return 12;
}
inline constexpr uint32_t kGgufArray = 9;

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // is only written where it is not the format's default

  template <class T>
  GgufWriter& set(std::string_view key, const T& value) {
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      metadata_.put(key).put(gguf_value_type<std::string>()).put(std::string_view(value));
    } else {
      metadata_.put(key).put(gguf_value_type<T>()).put(value);
    }
    ++pairs_;
    return *this;
  }

  template <class T>
  GgufWriter& set(std::string_view key, const std::vector<T>& values) {
    metadata_.put(key).put(kGgufArray).put(gguf_value_type<T>()).put(uint64_t(values.size()));
    for (const T& value : values) metadata_.put(value);
    ++pairs_;
    return *this;
  }

  // `shape` in torch order, slowest first; `bytes` are the packed blocks.
  GgufWriter& tensor(std::string_view name, std::vector<int64_t> shape, io::GgmlType type, std::string_view bytes) {
    return tensor(name, shape, uint32_t(type), bytes);
  }
  GgufWriter& tensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type, std::string_view bytes) {
    infos_.put(name).put(uint32_t(shape.size()));
    for (auto size = shape.rbegin(); size != shape.rend(); ++size) infos_.put(uint64_t(*size));
    data_.pad_to(alignment);
    infos_.put(type).put(uint64_t(data_.data().size()));
    data_.raw(bytes);
    ++tensors_;
    return *this;
  }

  // The whole file.
  std::string bytes() const {
    ByteWriter file;
    file.raw("GGUF").put(version).put(tensors_).put(pairs_ + (alignment != 32));
    if (alignment != 32) file.put("general.alignment").put(gguf_value_type<uint32_t>()).put(uint32_t(alignment));
    file.raw(metadata_.data()).raw(infos_.data()).pad_to(alignment).raw(data_.data());
    return file.data();
  }

 private:
  ByteWriter metadata_, infos_, data_;
  uint64_t tensors_ = 0, pairs_ = 0;
};

}  // namespace foveate::test
