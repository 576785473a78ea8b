#include "foveate/io/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <new>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

struct Inflater {
  Inflater() {
    constexpr int kGzipAlone = 16, kLargestWindow = 15;
    if (inflateInit2(&stream, kGzipAlone + kLargestWindow) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  z_stream stream{};
};

}  // namespace

bool is_gzip(std::span<const std::byte> bytes) {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1F} && bytes[1] == std::byte{0x8B};
}

std::vector<std::byte> inflate_gzip(std::span<const std::byte> bytes, const std::string& path, uint64_t most) {
  constexpr uint64_t kPart = uint64_t{1} << 20;  // what is asked of zlib at once; its counts have 32 bits
  Inflater inflater;
  z_stream& stream = inflater.stream;
  std::vector<std::byte> out, inflated(kPart);
  for (int status = Z_OK; status != Z_STREAM_END;) {
    if (stream.avail_in == 0 && !bytes.empty()) {
      const auto part = bytes.first(std::min<uint64_t>(bytes.size(), kPart));
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(part.data()));
      stream.avail_in = uInt(part.size());
      bytes = bytes.subspan(part.size());
    }
    stream.next_out = reinterpret_cast<Bytef*>(inflated.data());
    stream.avail_out = uInt(kPart);
    status = inflate(&stream, Z_NO_FLUSH);
    out.insert(out.end(), inflated.data(), inflated.data() + (kPart - stream.avail_out));
    require(status != Z_BUF_ERROR, "{}: gzip's data end early, after {} bytes", path, out.size());
    require(status == Z_OK || status == Z_STREAM_END, "{}: must be a whole gzip file, zlib says: {}", path,
            stream.msg ? stream.msg : "out of memory");
    require(out.size() <= most, "{}: must hold at most {} bytes", path, most);
  }
  const uint64_t rest = stream.avail_in + bytes.size();
  require(rest == 0, "{}: must end with gzip's data, got {} bytes more", path, rest);
  return out;
}

}  // namespace foveate::io
