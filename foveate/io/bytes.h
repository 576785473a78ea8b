// Reading untrusted bytes: every read is checked against what is there and names the place where it fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "foveate/base/error.h"

namespace foveate::io {

// Untrusted text for a one-line message: in quotes, control characters and invalid UTF-8 escaped, cut after 80 bytes.
std::string printable(std::string_view text);

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A file mapped into memory, read-only.  The file must not be shortened while it is mapped: the system ends a process
// that reads behind the new end.
class MappedFile {
 public:
  // Throws Error: missing, not a regular file, not readable; with the path and the system's reason.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A position in little-endian bytes that only moves forward.  `what` names the thing that is read, for messages.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  uint64_t offset() const { return offset_; }
  uint64_t left() const { return bytes_.size() - offset_; }

  // Throws Error if fewer than `count` bytes are left, as all the readers below do.
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    require(count <= left(), "{}: file ends inside {} at byte {}: {} bytes needed, {} left", name_, what, offset_,
            count, left());
    const auto part = bytes_.subspan(offset_, count);
    offset_ += count;
    return part;
  }

  template <class T>
  requires std::is_arithmetic_v<T> T number(std::string_view what) {
    T value;  // the supported machines are little-endian, as the format is
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // A 64-bit count of items of at least `item_bytes` each: throws Error if it is more than the rest can hold, so that
  // callers may allocate for it.
  uint64_t count(std::string_view what, uint64_t item_bytes) {
    const uint64_t start = offset_, value = number<uint64_t>(what);
    require(value <= left() / item_bytes, "{}: {} at byte {}: count must fit the {} bytes left, got {} of >= {} bytes",
            name_, what, start, left(), value, item_bytes);
    return value;
  }

  // A 64-bit length and that many bytes.
  std::string_view text(std::string_view what) { return as_text(take(count(what, 1), what)); }

 private:
  std::span<const std::byte> bytes_;
  std::string name_;
  uint64_t offset_ = 0;
};

}  // namespace foveate::io
