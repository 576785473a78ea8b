#include "foveate/io/pipeline/normalizer.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/io/pipeline/growth.h"
#include "foveate/io/pipeline/onig_pattern.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

constexpr std::string_view kKnown =
    "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Sequence Strip StripAccents";

// Each character of the text goes to take(code point, its bytes, the new text).
template <class Take>
std::string mapped(std::string_view text, Take&& take) {
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    take(character.code_point, text.substr(at, character.length), result);
    at += character.length;
  }
  return result;
}

// Without the characters for which drop() holds.
template <class Drop>
void filter(Piece& piece, Drop&& drop) {
  if (!piece.text.empty() && drop(character_at(piece.text, 0).code_point)) piece.begins = false;
  piece.text = mapped(piece.text, [&](uint32_t c, std::string_view bytes, std::string& text) {
    if (!drop(c)) text += bytes;
  });
}

std::string lower_case(std::string_view text) {
  return mapped(text, [](uint32_t c, std::string_view bytes, std::string& result) {
    if (c == 0xFFFD)
      result += bytes;
    else
      append_lower_case(c, result);
  });
}

bool is_chinese(uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

void apply(const BertNormalizer& bert, Piece& piece) {
  if (bert.clean_text) {
    filter(piece, [](uint32_t c) { return c == 0 || c == 0xFFFD || is_bert_control(c); });
    piece.text = mapped(piece.text, [](uint32_t c, std::string_view bytes, std::string& text) {
      text += is_white_space(c) ? " " : bytes;
    });
  }
  if (bert.handle_chinese_chars)
    piece.text = mapped(piece.text, [](uint32_t c, std::string_view bytes, std::string& text) {
      const std::string_view space = is_chinese(c) ? " " : "";
      text.append(space).append(bytes).append(space);
    });
  if (bert.strip_accents) {
    piece.text = normalised(piece.text, NormalForm::nfd);
    filter(piece, is_bert_accent);
  }
  if (bert.lowercase) piece.text = lower_case(piece.text);
}

bool is_nmt_control(uint32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
}

bool is_nmt_space(uint32_t c) {
  return c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
         c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
}

// What is put in for several characters comes from the last of them.
void apply(const Replace& replace, Piece& piece) {
  if (piece.begins) {
    const std::vector<Part> parts = find_parts(piece.text, replace.wanted);
    if (!parts.empty() && parts[0].is_match && parts[0].end > 0)
      piece.begins = !replace.content.empty() && character_at(piece.text, 0).length == parts[0].end;
  }
  piece.text = replaced(piece.text, replace.wanted, replace.content);
}

void apply(const Strip& strip, Piece& piece) {
  std::string_view text = piece.text;
  while (strip.left && !text.empty() && is_white_space(character_at(text, 0).code_point)) {
    text.remove_prefix(character_at(text, 0).length);
    piece.begins = false;
  }
  while (strip.right && !text.empty() && is_white_space(character_at(text, last_character(text)).code_point))
    text = text.substr(0, last_character(text));
  piece.text = std::string(text);
}

void apply(NormalForm form, Piece& piece) { piece.text = normalised(piece.text, form); }
void apply(Lowercase, Piece& piece) { piece.text = lower_case(piece.text); }
void apply(StripAccents, Piece& piece) { filter(piece, is_mark); }
void apply(ByteSpelling, Piece& piece) { piece.text = byte_spelling(piece.text); }
void apply(const Prepend& prepend, Piece& piece) {
  if (!piece.text.empty()) piece.text.insert(0, prepend.text);
}
void apply(const Charsmap& charsmap, Piece& piece) { piece.text = charsmap.apply(piece.text); }
void apply(Nmt, Piece& piece) {
  filter(piece, is_nmt_control);
  piece.text = mapped(
      piece.text, [](uint32_t c, std::string_view bytes, std::string& text) { text += is_nmt_space(c) ? " " : bytes; });
}

BertNormalizer read_bert(const JsonPlace& place) {
  place.allow({"type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase"});
  BertNormalizer bert;
  bert.clean_text = place.at("clean_text").boolean();
  bert.handle_chinese_chars = place.at("handle_chinese_chars").boolean();
  bert.lowercase = place.at("lowercase").boolean();
  bert.strip_accents = place.boolean_or("strip_accents", bert.lowercase);
  return bert;
}

void read_into(const JsonPlace& place, std::vector<Normalizer>& normalizers) {
  const std::string& type = place.at("type").string();
  const auto add = [&]<class Kind>(Kind kind, std::initializer_list<std::string_view> keys) {
    place.allow(keys);
    normalizers.emplace_back(std::move(kind));
  };
  if (type == "Sequence") {
    place.allow({"type", "normalizers"});
    for (const JsonPlace& part : place.at("normalizers").items()) read_into(part, normalizers);
  } else if (type == "NFC") {
    add(NormalForm::nfc, {"type"});
  } else if (type == "NFD") {
    add(NormalForm::nfd, {"type"});
  } else if (type == "NFKC") {
    add(NormalForm::nfkc, {"type"});
  } else if (type == "NFKD") {
    add(NormalForm::nfkd, {"type"});
  } else if (type == "Lowercase") {
    add(Lowercase(), {"type"});
  } else if (type == "StripAccents") {
    add(StripAccents(), {"type"});
  } else if (type == "Nmt") {
    add(Nmt(), {"type"});
  } else if (type == "ByteLevel") {
    add(ByteSpelling(), {"type"});
  } else if (type == "BertNormalizer") {
    normalizers.push_back(read_bert(place));
  } else if (type == "Prepend") {
    add(Prepend{place.at("prepend").string()}, {"type", "prepend"});
  } else if (type == "Replace") {
    add(Replace{read_wanted(place.at("pattern")), place.at("content").string()}, {"type", "pattern", "content"});
  } else if (type == "Strip") {
    add(Strip{place.at("strip_left").boolean(), place.at("strip_right").boolean()},
        {"type", "strip_left", "strip_right"});
  } else if (type == "Precompiled") {
    const JsonPlace map = place.at("precompiled_charsmap");
    add(Charsmap(decode_base64(map), map.name()), {"type", "precompiled_charsmap"});
  } else {
    place.at("type").reject(fmt::format("must be one of: {}", kKnown));
  }
}

std::vector<Part> find_text(std::string_view text, const std::string& wanted) {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t at; (at = text.find(wanted, done)) != std::string_view::npos; done = at + wanted.size()) {
    if (done < at) parts.push_back({done, at, false});
    parts.push_back({at, at + wanted.size(), true});
  }
  if (done < text.size()) parts.push_back({done, text.size(), false});
  return parts;
}

// An empty match right behind another match is none.
std::vector<Part> find_pattern(std::string_view text, const Regex& regex) {
  std::vector<Part> parts;
  const std::string matchable = matchable_text(text);
  Regex::Search search(regex, matchable);
  size_t done = 0;
  bool after_match = false;
  for (size_t from = 0; from <= text.size();) {
    const auto match = search.find(from);
    if (!match) break;
    if (match->begin == match->end && after_match && match->end == done) {
      from = done < text.size() ? done + character_at(text, done).length : text.size() + 1;
      after_match = false;
      continue;
    }
    if (done < match->begin) parts.push_back({done, match->begin, false});
    parts.push_back({match->begin, match->end, true});
    done = from = match->end;
    after_match = true;
  }
  if (done < text.size()) parts.push_back({done, text.size(), false});
  return parts;
}

}  // namespace

std::vector<Normalizer> read_normalizers(const JsonPlace& place) {
  std::vector<Normalizer> normalizers;
  if (!place.is_null()) read_into(place, normalizers);
  return normalizers;
}

void normalise(const std::vector<Normalizer>& normalizers, Piece& piece) {
  const size_t given = piece.text.size();
  for (const Normalizer& normalizer : normalizers) {
    std::visit([&](const auto& kind) { apply(kind, piece); }, normalizer);
    check_growth(given, piece.text.size());
  }
}

Wanted read_wanted(const JsonPlace& place) {
  place.allow({"String", "Regex"});
  if (const auto text = place.find("String")) {
    if (text->string().empty()) text->reject("must not be empty");
    return text->string();
  }
  const JsonPlace pattern = place.at("Regex");
  return std::make_shared<const Regex>(pcre2_pattern(pattern.string(), pattern.name()), pattern.name());
}

std::vector<Part> find_parts(std::string_view text, const Wanted& wanted) {
  if (const auto* words = std::get_if<std::string>(&wanted)) return find_text(text, *words);
  return find_pattern(text, *std::get<std::shared_ptr<const Regex>>(wanted));
}

std::string replaced(std::string_view text, const Wanted& wanted, std::string_view content) {
  std::string result;
  for (const Part& part : find_parts(text, wanted)) {
    result += part.is_match ? content : text.substr(part.begin, part.end - part.begin);
    check_growth(text.size(), result.size());
  }
  return result;
}

}  // namespace foveate::io
