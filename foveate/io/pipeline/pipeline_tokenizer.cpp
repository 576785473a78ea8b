#include "foveate/io/pipeline/pipeline_tokenizer.h"

#include <bitset>

#include "foveate/base/error.h"

namespace foveate::io {

namespace {

const std::string kNeighbour = "a";

}  // namespace

PipelineTokenizer::PipelineTokenizer(Vocabulary given, Stages stages)
    : Tokenizer(std::move(given)), stages_(std::move(stages)), added_(std::move(stages_.added), stages_.normalizers) {
  before_ = io::decode(stages_.decoders, {kNeighbour}).size();
  around_ = io::decode(stages_.decoders, {kNeighbour, kNeighbour}).size();
  for (const auto* around : {&stages_.before, &stages_.after})
    for (const int32_t id : *around)
      if (id < 0 || id >= size())
        reject(fmt::format("the post-processor must add one of the {} tokens, got id {}", size(), id));
}

bool PipelineTokenizer::is_special(int32_t id) const {
  return type(id) == TokenType::control || type(id) == TokenType::unknown;
}

std::vector<int32_t> PipelineTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int32_t> ids;
  if (options.add_special) ids = stages_.before;
  Seen seen;
  for (const AddedTokens::Part& part : added_.split_raw(text, options.parse_special)) {
    if (part.id >= 0)
      ids.push_back(part.id);
    else
      encode_between(text.substr(part.begin, part.end - part.begin), part.begin == 0, options.parse_special, seen, ids);
  }
  if (options.add_special) ids.insert(ids.end(), stages_.after.begin(), stages_.after.end());
  return ids;
}

void PipelineTokenizer::encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const {
  Seen seen;
  encode_between(text, begins, /*parse_special=*/false, seen, ids);
}

void PipelineTokenizer::encode_between(std::string_view text, bool begins, bool parse_special, Seen& seen,
                                       std::vector<int32_t>& ids) const {
  Piece whole{std::string(text), begins};
  normalise(stages_.normalizers, whole);
  for (const AddedTokens::Part& part : added_.split_normalised(whole.text, parse_special)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    Piece between{whole.text.substr(part.begin, part.end - part.begin), whole.begins && part.begin == 0};
    for (const Piece& piece : pre_tokenize(stages_.pre_tokenizers, std::move(between)))
      encode_piece(piece.text, seen, ids);
  }
}

void PipelineTokenizer::encode_piece(const std::string& piece, Seen& seen, std::vector<int32_t>& ids) const {
  constexpr size_t kLongestKept = 256;  // natural text repeats its words
  if (piece.empty()) return;
  if (piece.size() > kLongestKept) return stages_.model->encode(piece, ids);
  auto [entry, is_new] = seen.try_emplace(piece);
  if (is_new) stages_.model->encode(piece, entry->second);
  ids.insert(ids.end(), entry->second.begin(), entry->second.end());
}

std::string PipelineTokenizer::decode(std::span<const int32_t> ids, bool with_special) const {
  std::vector<std::string> texts;
  for (const int32_t id : ids) {
    require(id >= 0 && id < size(), "decode: a token id must be in [0, {}), got {}", size(), id);
    if (with_special || !is_special(id)) texts.push_back(vocabulary().tokens[size_t(id)]);
  }
  return io::decode(stages_.decoders, std::move(texts));
}

std::string PipelineTokenizer::piece(int32_t id) const {
  require(id >= 0 && id < size(), "decode: a token id must be in [0, {}), got {}", size(), id);
  return is_special(id) ? "" : plain_piece(id);
}

// Decoders look at neighbours: what "a" on both sides adds is taken off again.
std::string PipelineTokenizer::plain_piece(int32_t id) const {
  const std::string text = io::decode(stages_.decoders, {kNeighbour, vocabulary().tokens[size_t(id)], kNeighbour});
  const size_t length = text.size() > around_ ? text.size() - around_ : 0;
  return text.substr(std::min(before_, text.size()), length);
}

std::vector<uint8_t> PipelineTokenizer::lost_bytes() const {
  std::bitset<256> spelled;
  for (int32_t id = 0; id < size(); ++id)
    for (const char byte : piece(id)) spelled.set(uint8_t(byte));
  std::vector<uint8_t> lost;
  for (size_t b = 0; b < 256; ++b)
    if (!spelled.test(b)) lost.push_back(uint8_t(b));
  return lost;
}

}  // namespace foveate::io
