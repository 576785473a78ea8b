#include "foveate/io/unicode.h"

#include "foveate/base/error.h"

namespace foveate::io {

size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : uint8_t(0); };
  const auto follows = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  if (first < 0xE0) return follows(1) ? 2 : 0;
  if (first < 0xF0) {
    if (!follows(1) || !follows(2)) return 0;
    const bool overlong = first == 0xE0 && byte(1) < 0xA0, surrogate = first == 0xED && byte(1) >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (!follows(1) || !follows(2) || !follows(3)) return 0;
  const bool overlong = first == 0xF0 && byte(1) < 0x90, too_large = first == 0xF4 && byte(1) >= 0x90;
  return overlong || too_large ? 0 : 4;
}

Character character_at(std::string_view text, size_t at) {
  constexpr uint32_t kFirstBits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  const size_t length = utf8_length(text, at);
  if (length == 0) return {0xFFFD, 1};
  uint32_t code_point = uint8_t(text[at]) & kFirstBits[length];
  for (size_t i = 1; i < length; ++i) code_point = code_point << 6 | (uint8_t(text[at + i]) & 0x3F);
  return {code_point, length};
}

std::string matchable_text(std::string_view text) {
  std::string matchable(text);
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) matchable[at] = '\x01';
    at += length == 0 ? 1 : length;
  }
  return matchable;
}

size_t last_character(std::string_view text) {
  for (size_t back = 1; back <= 4 && back <= text.size(); ++back)
    if (utf8_length(text, text.size() - back) == back) return text.size() - back;
  return text.size() - 1;
}

std::string to_utf8(uint32_t code_point) {
  const auto tail = [&](int shift) { return char(0x80 | ((code_point >> shift) & 0x3F)); };
  if (code_point < 0x80) return {char(code_point)};
  if (code_point < 0x800) return {char(0xC0 | (code_point >> 6)), tail(0)};
  if (code_point < 0x10000) return {char(0xE0 | (code_point >> 12)), tail(6), tail(0)};
  return {char(0xF0 | (code_point >> 18)), tail(12), tail(6), tail(0)};
}

const std::array<std::string, 256>& printable_bytes() {
  static const auto table = [] {
    std::array<std::string, 256> texts;
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
      texts[b] = to_utf8(printable ? b : next++);
    }
    return texts;
  }();
  return table;
}

std::string byte_spelling(std::string_view text) {
  std::string spelled;
  for (const char byte : text) spelled += printable_bytes()[uint8_t(byte)];
  return spelled;
}

std::string byte_token(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

}  // namespace foveate::io
