#include "foveate/io/pipeline/charsmap.h"

#include <cstring>

#include "foveate/base/error.h"
#include "foveate/io/pipeline/growth.h"
#include "foveate/io/pipeline/unicode_text.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

// A unit of a Darts double array: where the children are, the byte that leads here, whether a value follows.
struct Unit {
  uint32_t bits;

  uint32_t value() const { return bits & 0x7FFFFFFF; }
  uint32_t label() const { return bits & 0x800000FF; }
  uint32_t offset() const { return (bits >> 10) << ((bits & 0x200) >> 6); }
  bool has_value() const { return (bits >> 8) & 1; }
};

}  // namespace

Charsmap::Charsmap(std::string_view bytes, const std::string& what) {
  uint32_t size = 0;
  require(bytes.size() >= sizeof(size), "{}: a charsmap must begin with the trie's size, got {} bytes", what,
          bytes.size());
  std::memcpy(&size, bytes.data(), sizeof(size));
  bytes.remove_prefix(sizeof(size));
  require(size % 4 == 0 && size > 0 && size <= bytes.size(),
          "{}: a charsmap's trie must be whole units within the {} bytes that follow, got {} bytes", what, bytes.size(),
          size);
  units_.resize(size / 4);
  std::memcpy(units_.data(), bytes.data(), size);
  replacements_ = bytes.substr(size);
}

// That of the shortest beginning of the text that the trie holds.
std::optional<std::string_view> Charsmap::replacement(std::string_view text) const {
  uint64_t node = Unit{units_[0]}.offset();
  for (const char byte : text) {
    if (byte == '\0') return std::nullopt;
    node ^= uint8_t(byte);
    if (node >= units_.size() || Unit{units_[node]}.label() != uint8_t(byte)) return std::nullopt;
    const Unit unit{units_[node]};
    node ^= unit.offset();
    if (node >= units_.size()) return std::nullopt;
    if (!unit.has_value()) continue;
    const uint32_t begin = Unit{units_[node]}.value();
    if (begin >= replacements_.size()) return std::nullopt;
    const std::string_view rest = std::string_view(replacements_).substr(begin);
    return rest.substr(0, rest.find('\0'));
  }
  return std::nullopt;
}

void Charsmap::append_grapheme(std::string_view grapheme, std::string& result) const {
  constexpr size_t kShort = 6;
  if (grapheme.size() < kShort)
    if (const auto whole = replacement(grapheme)) {
      result += *whole;
      return;
    }
  for (size_t at = 0; at < grapheme.size();) {
    const std::string_view character = grapheme.substr(at, character_at(grapheme, at).length);
    result += replacement(character).value_or(character);
    at += character.size();
  }
}

std::string Charsmap::apply(std::string_view text) const {
  std::string result;
  int32_t state = 0;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    const size_t next = at + character.length;
    if (next == text.size() || breaks_grapheme(character.code_point, character_at(text, next).code_point, state)) {
      append_grapheme(text.substr(begin, next - begin), result);
      check_growth(text.size(), result.size());
      begin = next;
    }
    at = next;
  }
  return result;
}

std::string decode_base64(const JsonPlace& place) {
  const std::string& text = place.string();
  const auto digit = [](char c) -> int {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  std::string bytes;
  uint32_t bits = 0;
  int held = 0;
  size_t at = 0;
  for (; at < text.size() && text[at] != '='; ++at) {
    if (digit(text[at]) < 0) place.reject("must be base64");
    bits = bits << 6 | uint32_t(digit(text[at]));
    held += 6;
    if (held >= 8) bytes += char(bits >> (held -= 8));
  }
  if (text.size() % 4 != 0 || text.size() - at > 2 || text.find_first_not_of('=', at) != std::string::npos)
    place.reject("must be base64");
  return bytes;
}

}  // namespace foveate::io
