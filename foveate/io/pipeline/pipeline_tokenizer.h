// A tokenizer of stages, as tokenizer.json describes them: added tokens, normalizers, pre-tokenizers, a model, a
// post-processor, decoders.  The `tokenizers` package is the reference: valid UTF-8 gives the same ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/pipeline/added_tokens.h"
#include "foveate/io/pipeline/decoder.h"
#include "foveate/io/pipeline/normalizer.h"
#include "foveate/io/pipeline/pre_tokenizer.h"
#include "foveate/io/pipeline/token_model.h"
#include "foveate/io/tokenizer.h"

namespace foveate::io {

struct Stages {
  std::vector<AddedToken> added = {};
  std::vector<Normalizer> normalizers = {};
  std::vector<PreTokenizer> pre_tokenizers = {};
  std::unique_ptr<TokenModel> model = {};
  std::vector<int32_t> before = {}, after = {};  // what add_special puts around the text
  std::vector<Decoder> decoders = {};
};

class PipelineTokenizer : public Tokenizer {
 public:
  // The vocabulary's tokens are those of the model and the added ones; its add_bos and add_eos say nothing here.
  // Throws Error, besides what Tokenizer refuses: an id to be put around the text that is none.
  PipelineTokenizer(Vocabulary vocabulary, Stages stages);

  // What the normalizers drop or change does not come back.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const override;
  std::string decode(std::span<const int32_t> ids, bool with_special = false) const override;
  std::string piece(int32_t id) const override;  // as it is between two other tokens
  std::vector<uint8_t> lost_bytes() const override;

 private:
  using Seen = std::unordered_map<std::string, std::vector<int32_t>>;

  void encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const override;
  std::string plain_piece(int32_t id) const override;
  void encode_between(std::string_view text, bool begins, bool parse_special, Seen& seen,
                      std::vector<int32_t>& ids) const;
  void encode_piece(const std::string& piece, Seen& seen, std::vector<int32_t>& ids) const;
  bool is_special(int32_t id) const;

  Stages stages_;
  AddedTokens added_;
  size_t before_ = 0, around_ = 0;  // bytes that decoders make of one and of two neighbours
};

}  // namespace foveate::io
