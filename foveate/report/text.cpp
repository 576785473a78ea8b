#include "foveate/report/text.h"

#include <cmath>
#include <iterator>
#include <utility>

#include "foveate/base/error.h"

namespace foveate::report {
namespace {

constexpr uint32_t kReplacement = 0xFFFD;
using Range = std::pair<uint32_t, uint32_t>;

// What terminals show with no column of its own, and with two: the common scripts, not the whole Unicode tables.
constexpr Range kNoWidth[] = {{0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD}, {0x0610, 0x061A},
                              {0x064B, 0x065F}, {0x0E34, 0x0E3A}, {0x0E47, 0x0E4E}, {0x1AB0, 0x1AFF},
                              {0x1DC0, 0x1DFF}, {0x200B, 0x200F}, {0x202A, 0x202E}, {0x2060, 0x2064},
                              {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xFEFF, 0xFEFF}};
constexpr Range kTwoColumns[] = {{0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0x33FF},  {0x3400, 0x4DBF},
                                 {0x4E00, 0x9FFF},   {0xA000, 0xA4CF},   {0xAC00, 0xD7A3},  {0xF900, 0xFAFF},
                                 {0xFE30, 0xFE4F},   {0xFF00, 0xFF60},   {0xFFE0, 0xFFE6},  {0x1F300, 0x1F64F},
                                 {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF}, {0x20000, 0x3FFFD}};

template <size_t N>
bool within(const Range (&ranges)[N], uint32_t code) {
  for (const auto& [first, last] : ranges)
    if (code >= first && code <= last) return true;
  return false;
}

// Takes one code point off the front; a byte that starts no valid sequence gives U+FFFD and is taken alone.
uint32_t take_code_point(std::string_view& text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint32_t(uint8_t(text[i])) : 0u; };
  const uint32_t lead = byte(0);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xC2 && lead < 0xE0 ? 2
                        : (lead & 0xF0) == 0xE0       ? 3
                        : lead >= 0xF0 && lead < 0xF5 ? 4
                                                      : 0;
  uint32_t code = length == 1 ? lead : length == 2 ? lead & 0x1F : length == 3 ? lead & 0x0F : lead & 0x07;
  bool is_valid = length > 0;
  for (size_t i = 1; i < length; ++i) {
    is_valid = is_valid && (byte(i) & 0xC0) == 0x80;
    code = code << 6 | (byte(i) & 0x3F);
  }
  if (length == 3) is_valid = is_valid && code >= 0x800 && (code < 0xD800 || code > 0xDFFF);
  if (length == 4) is_valid = is_valid && code >= 0x10000 && code <= 0x10FFFF;
  text.remove_prefix(is_valid ? length : 1);
  return is_valid ? code : kReplacement;
}

int width_of(uint32_t code) { return within(kNoWidth, code) ? 0 : within(kTwoColumns, code) ? 2 : 1; }

std::string with_thousands(std::string digits) {
  const size_t start = digits.starts_with('-') ? 1 : 0;
  size_t end = digits.find('.');
  if (end == std::string::npos) end = digits.size();
  for (size_t at = end; at > start + 3; at -= 3) digits.insert(at - 3, 1, ',');
  return digits;
}

bool is_missing(std::optional<double> value) { return !value || !std::isfinite(*value); }

// Three significant digits, as a person would write a measured value.
std::string three_digits(double value) {
  const double size = std::fabs(value);
  return with_thousands(fmt::format("{:.{}f}", value, size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2));
}

}  // namespace

std::string clean_text(std::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const std::string_view before = text;
    const uint32_t code = take_code_point(text);
    if (code < 0x20 || (code >= 0x7F && code < 0xA0)) {
      clean += ' ';
    } else if (code == kReplacement) {
      clean += "\xEF\xBF\xBD";
    } else {
      clean += before.substr(0, before.size() - text.size());
    }
  }
  return clean;
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char c : clean_text(text)) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

int display_width(std::string_view text) {
  int width = 0;
  while (!text.empty()) width += width_of(take_code_point(text));
  return width;
}

std::string shorten(std::string_view text, int width) {
  require(width >= 1, "shorten: width must be >= 1, got {}", width);
  if (display_width(text) <= width) return std::string(text);
  std::string_view rest = text;
  size_t kept = 0;
  for (int used = 0; !rest.empty(); kept = text.size() - rest.size()) {
    used += width_of(take_code_point(rest));
    if (used > width - 1) break;
  }
  return std::string(text.substr(0, kept)) + "…";
}

std::string format_fixed(std::optional<double> value, int decimals) {
  if (is_missing(value)) return "-";
  const std::string digits = fmt::format("{:.{}f}", *value, decimals);
  return with_thousands(digits.find_first_of("123456789") == std::string::npos && digits[0] == '-' ? digits.substr(1)
                                                                                                   : digits);
}

std::string format_signed(std::optional<double> value, int decimals) {
  const std::string digits = format_fixed(value, decimals);
  const bool is_positive = digits.find_first_of("123456789") != std::string::npos && digits[0] != '-';
  return is_positive ? "+" + digits : digits;
}

std::string format_rate(std::optional<double> per_second) {
  return is_missing(per_second) ? "-" : three_digits(*per_second);
}

std::string format_percent(std::optional<double> share) {
  return is_missing(share) ? "-" : format_fixed(*share * 100, 1) + "%";
}

std::string format_ratio(std::optional<double> ratio) { return is_missing(ratio) ? "-" : format_fixed(ratio, 2) + "x"; }

std::string format_count(std::optional<int64_t> count) {
  return count ? with_thousands(fmt::format("{}", *count)) : "-";
}

std::string format_bytes(std::optional<int64_t> bytes) {
  if (!bytes) return "-";
  constexpr std::pair<double, const char*> kUnits[] = {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};
  const double value = double(*bytes);
  for (const auto& [size, name] : kUnits)
    if (std::fabs(value) >= 0.9995 * size) return fmt::format("{} {}", three_digits(value / size), name);
  return fmt::format("{} B", *bytes);
}

nlohmann::ordered_json json_number(std::optional<double> value) {
  if (is_missing(value)) return nullptr;
  return *value;
}

}  // namespace foveate::report
