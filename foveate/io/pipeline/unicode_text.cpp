#include "foveate/io/pipeline/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "foveate/io/pipeline/unicode_tables.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

template <class Range, size_t n>
const Range* find(const Range (&ranges)[n], uint32_t code_point) {
  const Range* after = std::ranges::upper_bound(ranges, code_point, {}, &Range::first);
  if (after == ranges) return nullptr;
  const Range& range = *(after - 1);
  return code_point <= range.last ? &range : nullptr;
}

template <size_t n>
bool contains(const CodePoints (&ranges)[n], uint32_t code_point) {
  return find(ranges, code_point) != nullptr;
}

// Two letters, as Unicode 15 has it.
std::string_view category15(uint32_t code_point) { return utf8proc_category_string(utf8proc_int32_t(code_point)); }

std::string_view category16(uint32_t code_point) {
  if (const auto* changed = find(kSince14, code_point)) return changed->category;
  return category15(code_point);
}

bool is_ascii_punctuation(uint32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return uint8_t(c) < 0x80; });
}

// Canonical order: marks between two starters by their class, equal ones as they stand.  utf8proc's own ordering moves
// one mark at a time, which is quadratic in long runs.
void order_marks(std::vector<utf8proc_int32_t>& text) {
  const auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto begin = text.begin(); begin != text.end();) {
    if (mark_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, text.end(), [&](utf8proc_int32_t c) { return mark_class(c) == 0; });
    std::stable_sort(begin, end, [&](auto left, auto right) { return mark_class(left) < mark_class(right); });
    begin = end;
  }
}

void append_normalised(std::vector<utf8proc_int32_t>& text, NormalForm form, std::string& result) {
  order_marks(text);
  auto length = utf8proc_ssize_t(text.size());
  if (form == NormalForm::nfc || form == NormalForm::nfkc)
    length = utf8proc_normalize_utf32(text.data(), length, utf8proc_option_t(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  for (utf8proc_ssize_t i = 0; i < length; ++i) result += to_utf8(uint32_t(text[size_t(i)]));
  text.clear();
}

}  // namespace

std::string normalised(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const auto options = utf8proc_option_t(UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::string result;
  std::vector<utf8proc_int32_t> pending;
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    const bool is_bad = character.length == 1 && character.code_point == 0xFFFD;
    if (is_bad || contains(kNotNormalised, character.code_point)) {
      append_normalised(pending, form, result);
      result += text.substr(at, character.length);
    } else {
      constexpr int kLongest = 32;  // 18 is the longest of all decompositions
      utf8proc_int32_t parts[kLongest];
      int boundary = 0;
      const auto count =
          utf8proc_decompose_char(utf8proc_int32_t(character.code_point), parts, kLongest, options, &boundary);
      pending.insert(pending.end(), parts, parts + std::clamp<utf8proc_ssize_t>(count, 0, kLongest));
    }
    at += character.length;
  }
  append_normalised(pending, form, result);
  return result;
}

void append_lower_case(uint32_t code_point, std::string& text) {
  if (code_point == 0x130) {  // the one capital whose lower case is two characters
    text += "i\xCC\x87";
    return;
  }
  if (const auto* late = find(kLowerSince15, code_point)) {
    text += to_utf8(uint32_t(int64_t(code_point) + late->distance));
    return;
  }
  text += to_utf8(uint32_t(utf8proc_tolower(utf8proc_int32_t(code_point))));
}

bool is_white_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_number(uint32_t c) { return category16(c).starts_with('N') || contains(kNumbersSince16, c); }

bool is_word(uint32_t c) {
  const std::string_view category = category16(c);
  if (category.starts_with('L') || category.starts_with('M') || category == "Nd" || category == "Nl" ||
      category == "Pc")
    return true;
  // circled and squared letters; the two joiners
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C || c == 0x200D;
}

bool is_mark(uint32_t c) { return (category15(c).starts_with('M') && !contains(kNotMark9, c)) || contains(kMark9, c); }

bool is_bert_punctuation(uint32_t c) {
  if (c < 0x80) return is_ascii_punctuation(c);
  return (category15(c).starts_with('P') && !contains(kNotPunctuation8, c)) || contains(kPunctuation8, c);
}

bool is_bert_control(uint32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const std::string_view category = category15(c);
  return (category == "Cc" || category == "Cf" || category == "Co") && !contains(kNotOther8, c);
}

bool is_bert_accent(uint32_t c) {
  return (category15(c) == "Mn" && !contains(kNotNonspacing8, c)) || contains(kNonspacing8, c);
}

bool breaks_grapheme(uint32_t before, uint32_t after, int32_t& state) {
  return utf8proc_grapheme_break_stateful(utf8proc_int32_t(before), utf8proc_int32_t(after), &state);
}

}  // namespace foveate::io
