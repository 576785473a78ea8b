#include "foveate/io/pipeline/pre_tokenizer.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/io/pipeline/growth.h"
#include "foveate/io/pipeline/onig_pattern.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

constexpr std::string_view kKnown =
    "BertPreTokenizer ByteLevel CharDelimiterSplit Digits Metaspace Punctuation Sequence Split Whitespace "
    "WhitespaceSplit";
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void take(const Piece& piece, size_t begin, size_t end, std::vector<Piece>& pieces) {
  if (begin < end) pieces.push_back({piece.text.substr(begin, end - begin), piece.begins && begin == 0});
}

// A match joins the part before it, unless that ends in a match as well.
std::vector<Part> merged_with_previous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool after_match = false;
  for (const Part& part : parts) {
    if (part.is_match && !after_match && !merged.empty())
      merged.back().end = part.end;
    else
      merged.push_back(part);
    after_match = part.is_match;
  }
  return merged;
}

std::vector<Part> merged_with_next(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool before_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->is_match && !before_match && !merged.empty())
      merged.back().begin = part->begin;
    else
      merged.push_back(*part);
    before_match = part->is_match;
  }
  std::ranges::reverse(merged);
  return merged;
}

std::vector<Part> contiguous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool after_match = false;
  for (const Part& part : parts) {
    if (part.is_match == after_match && !merged.empty())
      merged.back().end = part.end;
    else
      merged.push_back(part);
    after_match = part.is_match;
  }
  return merged;
}

void cut(const Piece& piece, std::vector<Part> parts, SplitBehavior behavior, std::vector<Piece>& pieces) {
  if (behavior == SplitBehavior::merged_with_previous) parts = merged_with_previous(parts);
  if (behavior == SplitBehavior::merged_with_next) parts = merged_with_next(parts);
  if (behavior == SplitBehavior::contiguous) parts = contiguous(parts);
  for (const Part& part : parts)
    if (behavior != SplitBehavior::removed || !part.is_match) take(piece, part.begin, part.end, pieces);
}

// Each character for which is_wanted() holds is a match.
template <class Wanted>
std::vector<Part> find_characters(std::string_view text, Wanted&& is_wanted) {
  std::vector<Part> parts;
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    const bool is_match = is_wanted(character.code_point);
    if (!is_match && !parts.empty() && !parts.back().is_match)
      parts.back().end += character.length;
    else
      parts.push_back({at, at + character.length, is_match});
    at += character.length;
  }
  return parts;
}

using Pieces = std::vector<Piece>;

void apply(const SplitText& split, Piece piece, Pieces& pieces) {
  std::vector<Part> parts = find_parts(piece.text, split.wanted);
  if (split.invert)
    for (Part& part : parts) part.is_match = !part.is_match;
  cut(piece, std::move(parts), split.behavior, pieces);
}

void apply(const ByteLevelSplit& split, Piece piece, Pieces& pieces) {
  if (split.add_prefix_space && !piece.text.starts_with(' ')) piece.text.insert(0, " ");
  const size_t first = pieces.size();
  if (split.words)
    cut(piece, find_parts(piece.text, split.words), SplitBehavior::isolated, pieces);
  else
    pieces.push_back(std::move(piece));
  for (size_t i = first; i < pieces.size(); ++i) pieces[i].text = byte_spelling(pieces[i].text);
}

void apply(const Digits& digits, Piece piece, Pieces& pieces) {
  cut(piece, find_characters(piece.text, is_number),
      digits.individual ? SplitBehavior::isolated : SplitBehavior::contiguous, pieces);
}

void apply(Words, Piece piece, Pieces& pieces) {
  enum Kind { space, word, other };
  const auto kind_at = [&](size_t at) {
    const uint32_t c = character_at(piece.text, at).code_point;
    return is_word(c) ? word : is_white_space(c) ? space : other;
  };
  size_t begin = 0;
  for (size_t at = 0; at < piece.text.size();) {
    const Kind kind = kind_at(at);
    at += character_at(piece.text, at).length;
    if (at < piece.text.size() && kind_at(at) == kind) continue;
    if (kind != space) take(piece, begin, at, pieces);
    begin = at;
  }
}

void apply(WhiteSpaceSplit, Piece piece, Pieces& pieces) {
  cut(piece, find_characters(piece.text, is_white_space), SplitBehavior::removed, pieces);
}

void apply(const Punctuation& punctuation, Piece piece, Pieces& pieces) {
  cut(piece, find_characters(piece.text, is_bert_punctuation), punctuation.behavior, pieces);
}

void apply(BertSplit, Piece piece, Pieces& pieces) {
  Pieces words;
  apply(WhiteSpaceSplit(), std::move(piece), words);
  for (Piece& each : words) apply(Punctuation(), std::move(each), pieces);
}

void apply(const Metaspace& metaspace, Piece piece, Pieces& pieces) {
  piece.text = replaced(piece.text, " ", metaspace.replacement);
  const bool may_prepend = metaspace.prepend == Metaspace::Prepend::always ||
                           (metaspace.prepend == Metaspace::Prepend::first && piece.begins);
  if (may_prepend && !piece.text.starts_with(metaspace.replacement)) piece.text.insert(0, metaspace.replacement);
  if (!metaspace.split) return pieces.push_back(std::move(piece));
  cut(piece, find_parts(piece.text, metaspace.replacement), SplitBehavior::merged_with_next, pieces);
}

SplitBehavior read_behavior(const JsonPlace& place) {
  const std::string& name = place.string();
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  place.reject("must be one of: Removed Isolated MergedWithPrevious MergedWithNext Contiguous");
}

ByteLevelSplit read_byte_level(const JsonPlace& place) {
  place.allow({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  ByteLevelSplit split{.add_prefix_space = place.at("add_prefix_space").boolean()};
  if (place.boolean_or("use_regex", true))
    split.words = std::make_shared<const Regex>(pcre2_pattern(kGpt2, place.name()), place.name());
  return split;
}

void read_into(const JsonPlace& place, std::vector<PreTokenizer>& pre_tokenizers) {
  const std::string& type = place.at("type").string();
  const auto add = [&]<class Kind>(Kind kind, std::initializer_list<std::string_view> keys) {
    place.allow(keys);
    pre_tokenizers.emplace_back(std::move(kind));
  };
  if (type == "Sequence") {
    place.allow({"type", "pretokenizers"});
    for (const JsonPlace& part : place.at("pretokenizers").items()) read_into(part, pre_tokenizers);
  } else if (type == "ByteLevel") {
    pre_tokenizers.push_back(read_byte_level(place));
  } else if (type == "Split") {
    add(SplitText{read_wanted(place.at("pattern")), read_behavior(place.at("behavior")), place.at("invert").boolean()},
        {"type", "pattern", "behavior", "invert"});
  } else if (type == "CharDelimiterSplit") {
    add(SplitText{place.at("delimiter").character(), SplitBehavior::removed}, {"type", "delimiter"});
  } else if (type == "Digits") {
    add(Digits{place.at("individual_digits").boolean()}, {"type", "individual_digits"});
  } else if (type == "Whitespace") {
    add(Words(), {"type"});
  } else if (type == "WhitespaceSplit") {
    add(WhiteSpaceSplit(), {"type"});
  } else if (type == "Punctuation") {
    const auto behavior = place.find("behavior");
    add(Punctuation{behavior ? read_behavior(*behavior) : SplitBehavior::isolated}, {"type", "behavior"});
  } else if (type == "BertPreTokenizer") {
    add(BertSplit(), {"type"});
  } else if (type == "Metaspace") {
    pre_tokenizers.push_back(read_metaspace(place));
  } else {
    place.at("type").reject(fmt::format("must be one of: {}", kKnown));
  }
}

}  // namespace

std::vector<PreTokenizer> read_pre_tokenizers(const JsonPlace& place) {
  std::vector<PreTokenizer> pre_tokenizers;
  if (!place.is_null()) read_into(place, pre_tokenizers);
  return pre_tokenizers;
}

Metaspace read_metaspace(const JsonPlace& place) {
  place.allow({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
  Metaspace metaspace{.replacement = place.at("replacement").character()};
  const std::string scheme = place.string_or("prepend_scheme", "always");
  if (scheme == "never")
    metaspace.prepend = Metaspace::Prepend::never;
  else if (scheme == "first")
    metaspace.prepend = Metaspace::Prepend::first;
  else if (scheme != "always")
    place.at("prepend_scheme").reject("must be one of: always first never");
  // The older way to say "never".
  if (!place.boolean_or("add_prefix_space", true)) {
    if (place.find("prepend_scheme") && scheme != "never")
      place.at("add_prefix_space").reject("must fit prepend_scheme");
    metaspace.prepend = Metaspace::Prepend::never;
  }
  metaspace.split = place.boolean_or("split", true);
  return metaspace;
}

std::vector<Piece> pre_tokenize(const std::vector<PreTokenizer>& pre_tokenizers, Piece piece) {
  const size_t given = piece.text.size();
  Pieces pieces;
  pieces.push_back(std::move(piece));
  for (const PreTokenizer& pre_tokenizer : pre_tokenizers) {
    Pieces next;
    for (Piece& each : pieces)
      if (!each.text.empty()) std::visit([&](const auto& kind) { apply(kind, std::move(each), next); }, pre_tokenizer);
    pieces = std::move(next);
    size_t made = 0;
    for (const Piece& each : pieces) made += each.text.size();
    check_growth(given, made);
  }
  return pieces;
}

}  // namespace foveate::io
