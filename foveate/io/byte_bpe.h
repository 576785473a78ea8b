// Byte-level BPE (GPT-2, SmolLM2): text is cut into pieces by a pattern, each byte of a piece is a symbol, and
// neighbours merge in the order of the file's merge list.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "foveate/io/merges.h"
#include "foveate/io/text_split.h"
#include "foveate/io/tokenizer.h"

namespace foveate::io {

class ByteBpe : public Tokenizer {
 public:
  // Throws Error, besides what Tokenizer refuses: split pattern unknown, a merge that is not "left right" or whose
  // parts or result are no tokens.
  explicit ByteBpe(Vocabulary vocabulary);

  std::vector<uint8_t> lost_bytes() const override;

 private:
  void encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const override;
  std::string plain_piece(int32_t id) const override;
  std::vector<int32_t> encode_piece(std::string_view piece) const;
  void read_merges();

  TextSplitter splitter_;
  std::array<int32_t, 256> byte_ids_;            // -1: the file has no token for the byte
  std::unordered_map<std::string, char> bytes_;  // GPT-2's printable character -> byte
  Merges merges_;
};

}  // namespace foveate::io
