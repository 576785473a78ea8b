#include "foveate/io/byte_bpe.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

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
      reject(
          fmt::format("a merge must be two tokens with a space between, got {} as merge {}", printable(merge), rank));
    const std::string left(merge.substr(0, space)), right(merge.substr(space + 1));
    const auto known = [&](const std::string& text) {
      const std::optional<int32_t> id = find(text);
      if (!id)
        reject(
            fmt::format("merge {} ({}) must name tokens of the file, got {}", rank, printable(merge), printable(text)));
      return *id;
    };
    const int32_t left_id = known(left), right_id = known(right);
    // Of a pair listed twice the first, better rank counts, as in llama.cpp.
    merges_.add(left_id, right_id, {int32_t(rank), known(left + right)});
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

std::vector<int32_t> ByteBpe::encode_piece(std::string_view piece) const {
  if (splitter_.keeps_whole_tokens()) {
    if (const auto id = find(byte_spelling(piece))) return {*id};
  }
  std::vector<int32_t> ids;
  ids.reserve(piece.size());
  for (const char byte : piece) ids.push_back(byte_ids_[uint8_t(byte)]);
  merges_.apply(ids);
  std::erase(ids, -1);
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
