#include "foveate/io/pipeline/decoder.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>

#include "foveate/base/error.h"
#include "foveate/io/pipeline/growth.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

constexpr std::string_view kKnown = "BPEDecoder ByteFallback ByteLevel Fuse Metaspace Replace Sequence Strip WordPiece";

using Texts = std::vector<std::string>;

// The bytes that GPT-2's characters stand for, or the text itself where it has another character.
std::string unspelled(const std::string& text) {
  static const auto bytes = [] {
    std::unordered_map<std::string, char> map;
    for (size_t b = 0; b < 256; ++b) map.emplace(printable_bytes()[b], char(b));
    return map;
  }();
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t length = character_at(text, at).length;
    const auto found = bytes.find(text.substr(at, length));
    if (found == bytes.end()) return text;
    result += found->second;
    at += length;
  }
  return result;
}

// Rust's radix parser takes a sign; so does this: <0x+A> is byte 10.
void apply(ByteFallback, Texts& texts) {
  for (std::string& text : texts) {
    if (text.size() != 6 || !text.starts_with("<0x") || !text.ends_with('>')) continue;
    const char* const first = text.data() + (text[3] == '+' ? 4 : 3);
    const char* const last = text.data() + 5;
    uint8_t byte = 0;
    const auto [end, status] = std::from_chars(first, last, byte, 16);
    if (status == std::errc() && end == last) text = std::string(1, char(byte));
  }
}

void apply(SpaceJoin, Texts& texts) {
  for (size_t i = 1; i < texts.size(); ++i) texts[i].insert(0, " ");
}

void apply(Fuse, Texts& texts) {
  std::string whole;
  for (const std::string& text : texts) whole += text;
  texts = {std::move(whole)};
}

// Later decoders see one text.
void apply(ByteLevelDecoder, Texts& texts) {
  for (std::string& text : texts) text = unspelled(text);
  apply(Fuse(), texts);
}

void clean_up(std::string& text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {{{" .", "."},
                                                                                     {" ?", "?"},
                                                                                     {" !", "!"},
                                                                                     {" ,", ","},
                                                                                     {" ' ", "'"},
                                                                                     {" n't", "n't"},
                                                                                     {" 'm", "'m"},
                                                                                     {" do not", " don't"},
                                                                                     {" 's", "'s"},
                                                                                     {" 've", "'ve"},
                                                                                     {" 're", "'re"}}};
  for (const auto& [wanted, content] : kRules) text = replaced(text, std::string(wanted), content);
}

void apply(const WordPieceDecoder& decoder, Texts& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) {
      if (texts[i].starts_with(decoder.prefix))
        texts[i].erase(0, decoder.prefix.size());
      else
        texts[i].insert(0, " ");
    }
    if (decoder.cleanup) clean_up(texts[i]);
  }
}

void apply(const Metaspace& metaspace, Texts& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    const bool drops = i == 0 && metaspace.prepend != Metaspace::Prepend::never;
    texts[i] = replaced(texts[i], metaspace.replacement, drops ? "" : " ");
  }
}

void apply(const Replace& replace, Texts& texts) {
  for (std::string& text : texts) text = replaced(text, replace.wanted, replace.content);
}

void apply(const StripDecoder& strip, Texts& texts) {
  for (std::string& text : texts) {
    for (int64_t i = 0; i < strip.start && text.starts_with(strip.content); ++i) text.erase(0, strip.content.size());
    for (int64_t i = 0; i < strip.stop && text.ends_with(strip.content); ++i)
      text.resize(text.size() - strip.content.size());
  }
}

void apply(const SuffixDecoder& decoder, Texts& texts) {
  for (size_t i = 0; i < texts.size(); ++i)
    texts[i] = replaced(texts[i], decoder.suffix, i + 1 == texts.size() ? "" : " ");
}

void read_into(const JsonPlace& place, std::vector<Decoder>& decoders) {
  constexpr int64_t kMostStripped = 1000;
  const std::string& type = place.at("type").string();
  const auto add = [&]<class Kind>(Kind kind, std::initializer_list<std::string_view> keys) {
    place.allow(keys);
    decoders.emplace_back(std::move(kind));
  };
  if (type == "Sequence") {
    place.allow({"type", "decoders"});
    for (const JsonPlace& part : place.at("decoders").items()) read_into(part, decoders);
  } else if (type == "ByteLevel") {
    add(ByteLevelDecoder(), {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "ByteFallback") {
    add(ByteFallback(), {"type"});
  } else if (type == "Fuse") {
    add(Fuse(), {"type"});
  } else if (type == "Metaspace") {
    decoders.push_back(read_metaspace(place));
  } else if (type == "WordPiece") {
    add(WordPieceDecoder{place.at("prefix").string(), place.at("cleanup").boolean()}, {"type", "prefix", "cleanup"});
  } else if (type == "Replace") {
    add(Replace{read_wanted(place.at("pattern")), place.at("content").string()}, {"type", "pattern", "content"});
  } else if (type == "Strip") {
    add(StripDecoder{place.at("content").character(), place.at("start").integer(0, kMostStripped),
                     place.at("stop").integer(0, kMostStripped)},
        {"type", "content", "start", "stop"});
  } else if (type == "BPEDecoder") {
    if (place.at("suffix").string().empty()) place.at("suffix").reject("must not be empty");
    add(SuffixDecoder{place.at("suffix").string()}, {"type", "suffix"});
  } else {
    place.at("type").reject(fmt::format("must be one of: {}", kKnown));
  }
}

}  // namespace

std::vector<Decoder> read_decoders(const JsonPlace& place) {
  std::vector<Decoder> decoders;
  if (place.is_null())
    decoders.push_back(SpaceJoin());
  else
    read_into(place, decoders);
  return decoders;
}

std::string decode(const std::vector<Decoder>& decoders, Texts texts) {
  const auto bytes = [&] {
    size_t sum = 0;
    for (const std::string& each : texts) sum += each.size();
    return sum;
  };
  const size_t given = bytes();
  for (const Decoder& decoder : decoders) {
    std::visit([&](const auto& kind) { apply(kind, texts); }, decoder);
    check_growth(given, bytes());
  }
  std::string text;
  for (const std::string& each : texts) text += each;
  return text;
}

}  // namespace foveate::io
