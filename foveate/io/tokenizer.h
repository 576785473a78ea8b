// Text to token ids and back, as the vocabulary inside a GGUF file defines it.  llama.cpp is the reference: valid UTF-8
// gives the same ids.  (The pipelines of tokenizer.json, bert and t5: pipeline/pipeline_tokenizer.h.)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "foveate/io/token_matcher.h"

namespace foveate::io {

class Gguf;

enum class TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

// What a file says about its tokenizer (tokenizer.ggml.* and tokenizer.chat_template), unchecked.
struct Vocabulary {
  std::string source = "vocabulary";     // the file, for messages
  std::string model = {};                // "gpt2": byte-level BPE, "llama": score-ordered BPE, "bert": WordPiece,
                                         // "t5": Unigram
  std::string pre = {};                  // name of the split pattern (gpt2)
  std::vector<std::string> tokens = {};  // [size]
  std::vector<float> scores = {};        // [size] for llama, else empty
  std::vector<int32_t> types = {};       // [size] TokenType, or empty: all normal
  std::vector<std::string> merges = {};  // "left right" in order of rank (gpt2)
  std::optional<int32_t> bos = {}, eos = {}, unknown = {};
  std::set<int32_t> ends = {};  // further ids that end a text: end of turn, end of message
  bool add_bos = false, add_eos = false;
  bool add_space_prefix = false;  // llama: a space before text that starts or follows a special token
  std::optional<std::string> chat_template = {};
  std::string charsmap = {};         // t5: SentencePiece's normalisation, or none
  bool remove_extra_spaces = false;  // t5: of several spaces one, and none at the end
};

// Throws Error: a key missing or of the wrong kind, an unknown tokenizer.ggml.model (names the known ones).
Vocabulary read_vocabulary(const Gguf& file);

struct EncodeOptions {
  bool add_special = true;     // BOS and EOS where the file asks for them
  bool parse_special = false;  // the text of a control token becomes that token; else it is ordinary text
};

// Const calls may run in several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;  // the index points into the vocabulary
  Tokenizer& operator=(const Tokenizer&) = delete;

  // User-defined tokens are cut out of the text first, leftmost and longest, and with parse_special control tokens as
  // well; what lies between is tokenized by the model's rule.  Any bytes are accepted, NUL and invalid UTF-8 included:
  // the latter count byte by byte, so that decode gives them back (llama.cpp loses them).
  virtual std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes that the ids stand for; they may end inside a UTF-8 character.  Control and unknown tokens give their
  // text only if with_special.  decode(encode(x)) == x, except
  //   - for bytes in lost_bytes(), which encode drops;
  //   - for score-ordered BPE, U+2581 in the text comes back as a space.
  // Throws Error for an id outside [0, size).
  virtual std::string decode(std::span<const int32_t> ids, bool with_special = false) const;

  // The bytes of one token as decode gives them; empty for control tokens.  Throws Error for an id outside [0, size).
  virtual std::string piece(int32_t id) const;

  int64_t size() const { return int64_t(vocabulary_.tokens.size()); }
  std::optional<int32_t> bos() const { return vocabulary_.bos; }
  std::optional<int32_t> eos() const { return vocabulary_.eos; }
  bool is_end(int32_t id) const { return vocabulary_.ends.contains(id); }  // eos, end of turn, end of text
  std::optional<int32_t> find(std::string_view token_text) const;  // by the text in the file: "<|im_end|>", "Ġthe"
  const std::optional<std::string>& chat_template() const { return vocabulary_.chat_template; }

  // Bytes that no token of the file spells, ascending.  SmolLM2 has no token for six control characters and for the
  // first bytes of unassigned planes; llama.cpp drops them as well.
  virtual std::vector<uint8_t> lost_bytes() const = 0;

 protected:
  // Checks all that both kinds share.  Throws Error: no tokens, a token twice, types of another length or kind, an id
  // out of range, BOS asked for but not named.
  explicit Tokenizer(Vocabulary vocabulary);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  TokenType type(int32_t id) const;
  [[noreturn]] void reject(const std::string& what) const;  // Error that names the source

 private:
  // Appends the ids of text without special tokens; begins: it starts the input or follows a special token.
  virtual void encode_plain(std::string_view text, bool begins, std::vector<int32_t>& ids) const = 0;
  virtual std::string plain_piece(int32_t id) const = 0;  // the bytes of a normal or unused token

  void check_types() const;
  void check_ids() const;
  void index_specials();

  Vocabulary vocabulary_;
  std::unordered_map<std::string_view, int32_t> ids_;
  TokenMatcher user_defined_, specials_;  // what is cut out without and with parse_special
};

// Throws Error: model or split pattern unknown (names the known ones), merges or scores that do not fit the tokens, and
// what the Tokenizer's constructor refuses.
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace foveate::io
