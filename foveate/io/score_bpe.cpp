#include "foveate/io/score_bpe.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <unordered_map>

#include "foveate/base/error.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

struct Symbol {
  int32_t begin, length;  // bytes of the piece; length 0: merged into its left neighbour
  int32_t prev, next;     // neighbours, -1 at the ends
};

struct Candidate {
  float score;
  int32_t left, right, length;  // length of both when it was pushed: a symbol that has merged since makes it void
  bool operator<(const Candidate& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

std::vector<Symbol> split_characters(std::string_view piece) {
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = std::max<size_t>(1, utf8_length(piece, at));  // a byte of no character stands alone
    const auto index = int32_t(symbols.size());
    symbols.push_back({int32_t(at), int32_t(length), index - 1, index + 1});
    at += length;
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t done = 0;;) {
    const size_t found = text.find(from, done);
    result += text.substr(done, found - done);
    if (found == std::string_view::npos) return result;
    result += to;
    done = found + from.size();
  }
}

}  // namespace

ScoreBpe::ScoreBpe(Vocabulary given) : Tokenizer(std::move(given)) {
  check_scores();
  find_byte_tokens();
  for (const std::string& token : vocabulary().tokens) {
    longest_ = std::max(longest_, token.size());
    for (size_t at = token.find(kSpaceMark, 1); at != std::string::npos; at = token.find(kSpaceMark, at + 1))
      joins_space_.set(uint8_t(token[at - 1]));
  }
}

void ScoreBpe::check_scores() const {
  const auto& scores = vocabulary().scores;
  if (scores.size() != vocabulary().tokens.size())
    reject(fmt::format("there must be one score per token, got {} scores for {} tokens", scores.size(), size()));
  for (size_t id = 0; id < scores.size(); ++id)
    if (!std::isfinite(scores[id])) reject(fmt::format("a score must be finite, got {} for token {}", scores[id], id));
}

void ScoreBpe::find_byte_tokens() {
  for (size_t b = 0; b < 256; ++b) {
    const auto id = find(byte_token(uint8_t(b)));
    byte_ids_[b] = id ? *id : vocabulary().unknown.value_or(-1);
    if (id) continue;
    lost_.push_back(uint8_t(b));
    if (!vocabulary().unknown)
      reject(fmt::format("every byte must have a token, or the unknown token be named, got no <0x{:02X}>", b));
  }
}

std::vector<uint8_t> ScoreBpe::lost_bytes() const { return lost_; }

// A piece ends before a space mark that no token has behind the byte before it: no merge can reach across, so pieces
// are tokenized apart and repeated ones only once.
size_t ScoreBpe::piece_end(std::string_view text, size_t begin) const {
  for (size_t at = text.find(kSpaceMark, begin + 1); at != std::string_view::npos; at = text.find(kSpaceMark, at + 1))
    if (!joins_space_.test(uint8_t(text[at - 1]))) return at;
  return text.size();
}

void ScoreBpe::encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const {
  const bool prefix = begins && vocabulary().add_space_prefix;
  const std::string marked = (prefix ? std::string(kSpaceMark) : "") + replace_all(text, " ", kSpaceMark);
  std::unordered_map<std::string_view, std::vector<int32_t>> seen;
  for (size_t begin = 0; begin < marked.size();) {
    const size_t end = piece_end(marked, begin);
    const auto piece = std::string_view(marked).substr(begin, end - begin);
    auto [entry, is_new] = seen.try_emplace(piece);
    if (is_new) entry->second = encode_piece(piece);
    ids.insert(ids.end(), entry->second.begin(), entry->second.end());
    begin = end;
  }
}

std::vector<int32_t> ScoreBpe::encode_piece(std::string_view piece) const {
  require(piece.size() < size_t(std::numeric_limits<int32_t>::max()), "encode: a text must be < 2 GB, got {} bytes",
          piece.size());
  std::vector<Symbol> symbols = split_characters(piece);
  const auto text_of = [&](const Symbol& symbol, int32_t length) {
    return piece.substr(size_t(symbol.begin), size_t(length));
  };
  std::priority_queue<Candidate> queue;
  const auto push = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const int32_t length = symbols[size_t(left)].length + symbols[size_t(right)].length;
    if (size_t(length) > longest_) return;
    const auto id = find(text_of(symbols[size_t(left)], length));
    if (id) queue.push({vocabulary().scores[size_t(*id)], left, right, length});
  };
  for (int32_t i = 0; i + 1 < int32_t(symbols.size()); ++i) push(i, i + 1);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol &left = symbols[size_t(best.left)], &right = symbols[size_t(best.right)];
    if (left.length == 0 || right.length == 0 || left.length + right.length != best.length) continue;
    left.length = best.length;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[size_t(left.next)].prev = best.left;
    push(left.prev, best.left);
    push(best.left, left.next);
  }

  std::vector<int32_t> ids;
  for (const Symbol& symbol : symbols) {
    if (symbol.length == 0) continue;
    const std::string_view text = text_of(symbol, symbol.length);
    if (const auto id = find(text))
      ids.push_back(*id);
    else
      for (const char byte : text) ids.push_back(byte_ids_[uint8_t(byte)]);
  }
  return ids;
}

std::string ScoreBpe::plain_piece(int32_t id) const {
  return replace_all(vocabulary().tokens[size_t(id)], kSpaceMark, " ");
}

}  // namespace foveate::io
