#include "foveate/io/pipeline/json_model.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"

namespace foveate::io {

namespace {

constexpr int64_t kLargestId = std::numeric_limits<int32_t>::max();

using Ids = std::unordered_map<std::string_view, int32_t>;

// {"token": id, ..}
TokenTexts read_vocabulary_object(const JsonPlace& place) {
  const auto members = place.members();
  TokenTexts tokens(members.size());
  std::vector<bool> has_token(tokens.size());
  for (const auto& [text, id_place] : members) {
    const int64_t id = id_place.integer(0, kLargestId);
    if (id >= int64_t(tokens.size())) id_place.reject(fmt::format("must leave no gap: < {}", tokens.size()));
    if (has_token[size_t(id)])
      id_place.reject(fmt::format("must be a token's own, not that of {} too", printable(tokens[size_t(id)])));
    has_token[size_t(id)] = true;
    tokens[size_t(id)] = text;
  }
  if (tokens.empty()) place.reject("must have tokens");
  return tokens;
}

Ids index(const TokenTexts& tokens) {
  Ids ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], int32_t(id));
  return ids;
}

int32_t find(const Ids& ids, std::string_view text, const JsonPlace& place) {
  const auto found = ids.find(text);
  require(found != ids.end(), "{} must name tokens of the vocabulary, got {}", place.name(), printable(text));
  return found->second;
}

// "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const JsonPlace& place) {
  if (place.is_array()) {
    const auto parts = place.items();
    if (parts.size() != 2) place.reject("must be two tokens");
    return {parts[0].string(), parts[1].string()};
  }
  const std::string& text = place.string();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
    place.reject("must be two tokens with a space between");
  return {text.substr(0, space), text.substr(space + 1)};
}

Merges read_merges(const JsonPlace& place, const Ids& ids, const std::string& continuing_prefix) {
  Merges merges;
  int32_t rank = 0;
  for (const JsonPlace& each : place.items()) {
    if (each.is_string() && each.string().starts_with("#version")) continue;
    const auto [left, right] = read_merge(each);
    if (right.size() < continuing_prefix.size()) each.reject("must have the prefix in its second token");
    const int32_t left_id = find(ids, left, each), right_id = find(ids, right, each);
    const int32_t joined = find(ids, left + right.substr(continuing_prefix.size()), each);
    merges.add_or_replace(left_id, right_id, {rank++, joined});
  }
  return merges;
}

std::unique_ptr<TokenModel> read_bpe(const JsonPlace& place, TokenTexts& tokens, std::optional<int32_t>& unknown) {
  place.allow({"type", "vocab", "merges", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout",
               "continuing_subword_prefix", "end_of_word_suffix"});
  tokens = read_vocabulary_object(place.at("vocab"));
  const Ids ids = index(tokens);
  if (const auto name = place.find("unk_token")) unknown = find(ids, name->string(), *name);
  if (const auto dropout = place.find("dropout"); dropout && dropout->number() != 0)
    dropout->reject("must be null or 0: ids would be random");
  BpeModel::Options options{.unknown = unknown};
  options.continuing_prefix = place.string_or("continuing_subword_prefix", "");
  options.word_suffix = place.string_or("end_of_word_suffix", "");
  options.fuse_unknown = place.boolean_or("fuse_unk", false);
  options.byte_fallback = place.boolean_or("byte_fallback", false);
  options.keeps_whole_tokens = place.boolean_or("ignore_merges", false);
  Merges merges = read_merges(place.at("merges"), ids, options.continuing_prefix);
  return std::make_unique<BpeModel>(tokens, std::move(merges), std::move(options));
}

std::unique_ptr<TokenModel> read_unigram(const JsonPlace& place, TokenTexts& tokens, std::optional<int32_t>& unknown) {
  place.allow({"type", "vocab", "unk_id", "byte_fallback"});
  std::vector<double> scores;
  for (const JsonPlace& entry : place.at("vocab").items()) {
    const auto pair = entry.items();
    if (pair.size() != 2) entry.reject("must be a token and its score");
    tokens.push_back(pair[0].string());
    scores.push_back(pair[1].number());
  }
  if (tokens.empty()) place.at("vocab").reject("must have tokens");
  const Ids ids = index(tokens);
  for (size_t id = 0; id < tokens.size(); ++id)
    require(ids.at(tokens[id]) == int32_t(id), "{}.vocab[{}] must be a new token, got {}, which is token {}",
            place.name(), id, printable(tokens[id]), ids.at(tokens[id]));
  unknown = int32_t(place.at("unk_id").integer(0, int64_t(tokens.size()) - 1));
  return std::make_unique<UnigramModel>(tokens, std::move(scores), *unknown, place.boolean_or("byte_fallback", false));
}

std::unique_ptr<TokenModel> read_word_piece(const JsonPlace& place, TokenTexts& tokens,
                                            std::optional<int32_t>& unknown) {
  place.allow({"type", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"});
  tokens = read_vocabulary_object(place.at("vocab"));
  unknown = find(index(tokens), place.at("unk_token").string(), place.at("unk_token"));
  return std::make_unique<WordPieceModel>(
      tokens, WordPieceModel::Options{.unknown = *unknown,
                                      .continuing_prefix = place.at("continuing_subword_prefix").string(),
                                      .longest_word = place.at("max_input_chars_per_word").integer(0, kLargestId)});
}

std::unique_ptr<TokenModel> read_word_level(const JsonPlace& place, TokenTexts& tokens,
                                            std::optional<int32_t>& unknown) {
  place.allow({"type", "vocab", "unk_token"});
  tokens = read_vocabulary_object(place.at("vocab"));
  unknown = find(index(tokens), place.at("unk_token").string(), place.at("unk_token"));
  return std::make_unique<WordLevelModel>(tokens, *unknown);
}

}  // namespace

std::unique_ptr<TokenModel> read_model(const JsonPlace& place, TokenTexts& tokens, std::optional<int32_t>& unknown) {
  // Old files leave the type out; their keys tell.
  std::string type = place.string_or("type", "");
  if (type.empty())
    type = place.find("merges")                     ? "BPE"
           : place.find("unk_id")                   ? "Unigram"
           : place.find("max_input_chars_per_word") ? "WordPiece"
                                                    : "WordLevel";
  if (type == "BPE") return read_bpe(place, tokens, unknown);
  if (type == "Unigram") return read_unigram(place, tokens, unknown);
  if (type == "WordPiece") return read_word_piece(place, tokens, unknown);
  if (type == "WordLevel") return read_word_level(place, tokens, unknown);
  place.at("type").reject("must be one of: BPE Unigram WordLevel WordPiece");
}

}  // namespace foveate::io
