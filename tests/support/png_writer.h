// PNG files byte by byte, with what no library writes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace foveate::test {

inline std::string big_endian(uint32_t number) {
  return {char(number >> 24), char(number >> 16), char(number >> 8), char(number)};
}

// Length, type, data, CRC-32 of type and data.
inline std::string png_chunk(std::string_view type, std::string_view data) {
  const std::string body = std::string(type) + std::string(data);
  uint32_t crc = ~0u;
  for (const char c : body) {
    crc ^= uint8_t(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return big_endian(uint32_t(data.size())) + body + big_endian(~crc);
}

// zlib's format, every block stored as it is.
inline std::string stored_zlib(std::string_view data) {
  uint32_t a = 1, b = 0;  // Adler-32
  for (const char c : data) a = (a + uint8_t(c)) % 65521, b = (b + a) % 65521;
  std::string out = "\x78\x01";
  constexpr size_t kMost = 65535;
  for (size_t at = 0; at == 0 || at < data.size(); at += kMost) {
    const std::string_view block = data.substr(at, kMost);
    const auto size = uint16_t(block.size());
    out += char(at + kMost >= data.size());
    out += {char(size), char(size >> 8), char(~size), char(uint16_t(~size) >> 8)};
    out += block;
  }
  return out + big_endian(b << 16 | a);
}

struct PngHeader {
  uint32_t width = 1, height = 1;
  char depth = 8, color = 2;  // color: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha
  char interlace = 0;
};

constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";

inline std::string png_header(const PngHeader& h) {
  return png_chunk("IHDR",
                   big_endian(h.width) + big_endian(h.height) + std::string{h.depth, h.color, 0, 0, h.interlace});
}

// rows: of each row a filter byte, 0 for none, and its bytes; chunks: those before the data.
inline std::string png_file(const PngHeader& header, std::string_view rows, std::string_view chunks = "") {
  return std::string(kPngSignature) + png_header(header) + std::string(chunks) + png_chunk("IDAT", stored_zlib(rows)) +
         png_chunk("IEND", "");
}

}  // namespace foveate::test
