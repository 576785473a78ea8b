#include "foveate/io/byte_bpe.h"

#include <limits>
#include <queue>

#include "foveate/base/error.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

struct Symbol {
  int32_t id;           // -1: no token, never merges
  int32_t prev, next;   // neighbours, -1 at the ends
  bool merged = false;  // into its left neighbour
};

struct Candidate {
  int32_t rank, left, right;
  int32_t left_id, right_id;  // when it was pushed: a symbol that has merged since makes it void
  bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

ByteBpe::ByteBpe(Vocabulary given) : Tokenizer(std::move(given)), splitter_(vocabulary().pre, vocabulary().source) {
  for (size_t b = 0; b < 256; ++b) {
    const std::string& text = printable_bytes()[b];
    byte_ids_[b] = find(text).value_or(-1);
    bytes_.emplace(text, char(b));
  }
  read_merges();
}

void ByteBpe::read_merges() {
  const auto& merges = vocabulary().merges;
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view merge = merges[rank];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size())
      reject(fmt::format("a merge must be two tokens with a space between, got '{}' as merge {}", merge, rank));
    const std::string left(merge.substr(0, space)), right(merge.substr(space + 1));
    const auto known = [&](const std::string& text) {
      const std::optional<int32_t> id = find(text);
      if (!id) reject(fmt::format("merge {} ('{}') must name tokens of the file, got '{}'", rank, merge, text));
      return *id;
    };
    const int32_t left_id = known(left), right_id = known(right);
    // Of a pair listed twice the first, better rank counts, as in llama.cpp.
    merges_.try_emplace(pair_key(left_id, right_id), Merge{int32_t(rank), known(left + right)});
  }
}

std::vector<uint8_t> ByteBpe::lost_bytes() const {
  std::vector<uint8_t> lost;
  for (size_t b = 0; b < 256; ++b)
    if (byte_ids_[b] < 0) lost.push_back(uint8_t(b));
  return lost;
}

void ByteBpe::encode_plain(std::string_view text, bool, std::vector<int32_t>& ids) const {
  std::unordered_map<std::string_view, std::vector<int32_t>> seen;  // natural text repeats its words
  splitter_.split(text, [&](std::string_view piece) {
    auto [entry, is_new] = seen.try_emplace(piece);
    if (is_new) entry->second = encode_piece(piece);
    ids.insert(ids.end(), entry->second.begin(), entry->second.end());
  });
}

const ByteBpe::Merge* ByteBpe::find_merge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return nullptr;
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<int32_t> ByteBpe::encode_piece(std::string_view piece) const {
  require(piece.size() < size_t(std::numeric_limits<int32_t>::max()), "encode: a text must be < 2 GB, got {} bytes",
          piece.size());
  if (splitter_.keeps_whole_tokens()) {
    std::string spelled;
    for (const char byte : piece) spelled += printable_bytes()[uint8_t(byte)];
    if (const auto id = find(spelled)) return {*id};
  }
  const auto count = int32_t(piece.size());
  std::vector<Symbol> symbols;
  for (int32_t i = 0; i < count; ++i)
    symbols.push_back({byte_ids_[uint8_t(piece[size_t(i)])], i - 1, i + 1 < count ? i + 1 : -1});

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto push = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const int32_t left_id = symbols[size_t(left)].id, right_id = symbols[size_t(right)].id;
    if (const Merge* merge = find_merge(left_id, right_id)) queue.push({merge->rank, left, right, left_id, right_id});
  };
  for (int32_t i = 0; i + 1 < count; ++i) push(i, i + 1);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol &left = symbols[size_t(best.left)], &right = symbols[size_t(best.right)];
    if (left.merged || right.merged || left.id != best.left_id || right.id != best.right_id) continue;
    left.id = find_merge(left.id, right.id)->id;
    left.next = right.next;
    right.merged = true;
    if (left.next >= 0) symbols[size_t(left.next)].prev = best.left;
    push(left.prev, best.left);
    push(best.left, left.next);
  }

  std::vector<int32_t> ids;
  for (const Symbol& symbol : symbols)
    if (!symbol.merged && symbol.id >= 0) ids.push_back(symbol.id);
  return ids;
}

std::string ByteBpe::plain_piece(int32_t id) const {
  const std::string& text = vocabulary().tokens[size_t(id)];
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(1, utf8_length(text, at));
    const std::string character = text.substr(at, length);
    const auto found = bytes_.find(character);
    if (found != bytes_.end())
      bytes += found->second;
    else
      bytes += character;  // outside GPT-2's alphabet: stands for itself
    at += length;
  }
  return bytes;
}

}  // namespace foveate::io
