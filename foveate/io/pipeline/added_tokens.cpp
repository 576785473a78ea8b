#include "foveate/io/pipeline/added_tokens.h"

#include <algorithm>

#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

bool ends_in_word(std::string_view text) {
  return !text.empty() && is_word(character_at(text, last_character(text)).code_point);
}

bool begins_with_word(std::string_view text) { return !text.empty() && is_word(character_at(text, 0).code_point); }

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::vector<Normalizer>& normalizers)
    : tokens_(std::move(tokens)) {
  // Of equal texts the first counts: special ones go first, as in the package.
  std::ranges::stable_partition(tokens_, &AddedToken::special);
  for (const AddedToken& token : tokens_) {
    Piece piece{token.content};
    if (token.normalized) normalise(normalizers, piece);
    texts_.push_back(std::move(piece.text));
  }
  for (size_t i = 0; i < tokens_.size(); ++i)
    if (!texts_[i].empty()) (tokens_[i].normalized ? normalised_ : raw_).add(texts_[i], int32_t(i));
}

std::vector<AddedTokens::Part> AddedTokens::split(const TokenMatcher& matcher, std::string_view text,
                                                  bool parse_special) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    const TokenMatcher::Match match = matcher.next(text, from);
    if (match.length == 0) break;
    from = match.begin + match.length;
    const AddedToken& token = tokens_[size_t(match.id)];
    if (token.special && !parse_special) continue;
    size_t begin = match.begin, end = from;
    if (token.single_word && (ends_in_word(text.substr(0, begin)) || begins_with_word(text.substr(end)))) continue;
    if (token.lstrip)
      while (begin > done && is_white_space(character_at(text, last_character(text.substr(0, begin))).code_point))
        begin = last_character(text.substr(0, begin));
    if (token.rstrip)
      while (end < text.size() && is_white_space(character_at(text, end).code_point))
        end += character_at(text, end).length;
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

}  // namespace foveate::io
