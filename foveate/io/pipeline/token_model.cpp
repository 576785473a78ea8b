#include "foveate/io/pipeline/token_model.h"

#include <algorithm>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

PrefixTrie make_trie(const TokenTexts& tokens) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  constexpr size_t kLongest = 4096;  // bytes: at every place of a text its longest token may be tried
  for (size_t id = 0; id < tokens.size(); ++id) {
    require(tokens[id].size() <= kLongest, "tokenizer: a token must have <= {} bytes, got {} in token {}", kLongest,
            tokens[id].size(), id);
    if (!tokens[id].empty()) entries.emplace_back(tokens[id], int32_t(id));
  }
  return PrefixTrie(std::move(entries));
}

// The ids of the bytes of a text, or false where one has none.
bool append_bytes(std::string_view text, const std::array<int32_t, 256>& byte_ids, std::vector<int32_t>& ids) {
  if (std::ranges::any_of(text, [&](char byte) { return byte_ids[uint8_t(byte)] < 0; })) return false;
  for (const char byte : text) ids.push_back(byte_ids[uint8_t(byte)]);
  return true;
}

}  // namespace

BpeModel::BpeModel(const TokenTexts& tokens, Merges merges, Options options)
    : merges_(std::move(merges)), options_(std::move(options)) {
  ids_.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) ids_.emplace(tokens[id], int32_t(id));
  for (size_t b = 0; b < 256; ++b) byte_ids_[b] = find(byte_token(uint8_t(b)));
}

int32_t BpeModel::find(std::string_view text) const {
  const auto found = ids_.find(std::string(text));
  return found == ids_.end() ? -1 : found->second;
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.keeps_whole_tokens)
    if (const int32_t id = find(piece); id >= 0) return ids.push_back(id);
  std::vector<int32_t> symbols;
  bool has_unknown = false;  // one that is not among the symbols yet: those of byte_fallback go before it
  const auto flush = [&] {
    if (has_unknown) symbols.push_back(*options_.unknown);
    has_unknown = false;
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t length = character_at(piece, at).length;
    std::string text(piece.substr(at, length));
    if (at > 0) text.insert(0, options_.continuing_prefix);
    at += length;
    if (at == piece.size()) text += options_.word_suffix;
    if (const int32_t id = find(text); id >= 0) {
      flush();
      symbols.push_back(id);
      continue;
    }
    if (options_.byte_fallback && append_bytes(text, byte_ids_, symbols)) continue;
    if (!options_.unknown) continue;
    if (!options_.fuse_unknown) flush();
    has_unknown = true;
  }
  flush();
  merges_.apply(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

WordPieceModel::WordPieceModel(const TokenTexts& tokens, Options options)
    : trie_(make_trie(tokens)), options_(std::move(options)), continues_(trie_.walk(options_.continuing_prefix)) {}

void WordPieceModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  int64_t characters = 0;
  for (size_t at = 0; at < piece.size(); at += character_at(piece, at).length) ++characters;
  if (characters > options_.longest_word) return ids.push_back(options_.unknown);
  const size_t before = ids.size();
  for (size_t begin = 0; begin < piece.size();) {
    int32_t longest = -1;
    size_t end = begin;
    std::optional<uint32_t> node = begin == 0 ? PrefixTrie::kRoot : continues_;
    for (size_t at = begin; node && at < piece.size(); ++at) {
      const uint32_t next = trie_.step(*node, piece[at]);
      if (next == PrefixTrie::kNone) break;
      node = next;
      if (trie_.value(next) < 0) continue;
      longest = trie_.value(next);
      end = at + 1;
    }
    if (longest < 0) {
      ids.resize(before);
      return ids.push_back(options_.unknown);
    }
    ids.push_back(longest);
    begin = end;
  }
}

UnigramModel::UnigramModel(const TokenTexts& tokens, std::vector<double> scores, int32_t unknown, bool byte_fallback)
    : trie_(make_trie(tokens)), scores_(std::move(scores)), unknown_(unknown), byte_fallback_(byte_fallback) {
  constexpr double kPenalty = 10;  // SentencePiece's
  unknown_score_ = *std::ranges::min_element(scores_) - kPenalty;
  for (size_t b = 0; b < 256; ++b) byte_ids_[b] = trie_.find(byte_token(uint8_t(b)));
}

// The best way to a place: the last token of it, and where that begins.
struct UnigramModel::Step {
  double score = 0;
  size_t begin = std::numeric_limits<size_t>::max();  // none yet
  int32_t id = 0;

  void offer(double other, size_t from, int32_t token) {
    if (begin == std::numeric_limits<size_t>::max() || other > score) *this = {other, from, token};
  }
};

void UnigramModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  std::vector<Step> steps(piece.size() + 1);
  for (size_t begin = 0; begin < piece.size();) {
    const size_t length = character_at(piece, begin).length;
    bool spells_character = false;
    uint32_t node = PrefixTrie::kRoot;
    for (size_t at = begin; at < piece.size(); ++at) {
      if ((node = trie_.step(node, piece[at])) == PrefixTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      steps[at + 1].offer(steps[begin].score + scores_[size_t(id)], begin, id);
      spells_character |= at + 1 == begin + length;
    }
    if (!spells_character) steps[begin + length].offer(steps[begin].score + unknown_score_, begin, unknown_);
    begin += length;
  }
  // Backwards: where the tokens begin; neighbours that are unknown become one.
  std::vector<size_t> ends;
  for (size_t end = piece.size(); end > 0; end = steps[end].begin) {
    const bool joins = !ends.empty() && steps[end].id == unknown_ && steps[ends.back()].id == unknown_;
    if (joins)
      steps[ends.back()].begin = steps[end].begin;
    else
      ends.push_back(end);
  }
  std::ranges::reverse(ends);
  for (const size_t end : ends) {
    const Step& step = steps[end];
    append(piece.substr(step.begin, end - step.begin), step.id == unknown_, step.id, ids);
  }
}

// What several unknown characters spell may be a token after all, only a worse one than they are.
void UnigramModel::append(std::string_view text, bool is_unknown, int32_t id, std::vector<int32_t>& ids) const {
  if (!is_unknown) return ids.push_back(id);
  if (const int32_t whole = trie_.find(text); whole >= 0) return ids.push_back(whole);
  if (byte_fallback_ && append_bytes(text, byte_ids_, ids)) return;
  ids.push_back(unknown_);
}

}  // namespace foveate::io
