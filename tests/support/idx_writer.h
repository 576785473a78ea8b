// IDX files of bytes, and gzip.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/png_writer.h"

namespace foveate::test {

inline std::string idx_file(const std::vector<uint32_t>& shape, std::string_view values, char type = 8) {
  std::string bytes{0, 0, type, char(shape.size())};
  for (const uint32_t length : shape) bytes += big_endian(length);
  return bytes + std::string(values);
}

inline std::string gzip(const std::string& bytes) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 16 + 15, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = uInt(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = uInt(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace foveate::test
