#include "foveate/io/idx.h"

#include "foveate/io/bytes.h"
#include "foveate/io/gzip.h"

namespace foveate::io {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 30;

uint32_t big_endian(ByteReader& reader, std::string_view what) {
  uint32_t value = 0;
  for (const std::byte byte : reader.take(4, what)) value = value << 8 | uint32_t(byte);
  return value;
}

IdxArray parse_unpacked(std::span<const std::byte> bytes, const std::string& path) {
  constexpr uint32_t kUnsignedByte = 8;
  ByteReader reader(bytes, path);
  const uint32_t magic = big_endian(reader, "the magic number"), type = magic >> 8 & 0xFF, axes = magic & 0xFF;
  require(magic >> 16 == 0 && axes >= 1 && axes <= 4,
          "{}: must be an IDX file of 1 .. 4 axes, got magic number {:#010x}", path, magic);
  require(type == kUnsignedByte, "{}: must hold unsigned bytes (type 8), got type {}", path, type);
  IdxArray array;
  uint64_t size = 1;
  for (uint32_t axis = 0; axis < axes; ++axis) {
    const uint32_t length = big_endian(reader, "the shape");
    require(length == 0 || size <= kMostBytes / length, "{}: must have at most {} numbers, got {} times {} or more",
            path, kMostBytes, size, length);
    size *= length;
    array.shape.push_back(length);
  }
  require(reader.left() == size, "{}: [{}] must have {} bytes behind the shape, got {}", path,
          fmt::join(array.shape, ", "), size, reader.left());
  const auto values = as_text(reader.take(size, "the numbers"));
  array.values.assign(values.begin(), values.end());
  return array;
}

}  // namespace

IdxArray parse_idx(std::span<const std::byte> bytes, const std::string& path) {
  constexpr uint64_t kMostHeader = 20;
  if (!is_gzip(bytes)) return parse_unpacked(bytes, path);
  return parse_unpacked(inflate_gzip(bytes, path, kMostBytes + kMostHeader), path);
}

IdxArray read_idx(const std::string& path) { return parse_idx(MappedFile(path).bytes(), path); }

}  // namespace foveate::io
