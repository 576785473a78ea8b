// Score-ordered BPE (SentencePiece's BPE as in Gemma and Llama 2): each character is a symbol, and the two neighbours
// whose joined text is the token with the highest score merge first.  A space is written U+2581 inside tokens.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/tokenizer.h"

namespace foveate::io {

class ScoreBpe : public Tokenizer {
 public:
  // Throws Error, besides what Tokenizer refuses: not one finite score per token, a byte without a token <0xNN> where
  // the file names no unknown token either.
  explicit ScoreBpe(Vocabulary vocabulary);

  std::vector<uint8_t> lost_bytes() const override;

 private:
  void encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const override;
  std::string plain_piece(int32_t id) const override;
  std::vector<int32_t> encode_piece(std::string_view piece) const;
  size_t piece_end(std::string_view text, size_t begin) const;
  void check_scores() const;
  void find_byte_tokens();

  std::array<int32_t, 256> byte_ids_;
  std::vector<uint8_t> lost_;
  std::bitset<256> joins_space_;  // bytes that some token has before an inner U+2581
  size_t longest_ = 0;            // bytes of the longest token
};

}  // namespace foveate::io
