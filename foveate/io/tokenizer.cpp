#include "foveate/io/tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "foveate/base/error.h"
#include "foveate/io/byte_bpe.h"
#include "foveate/io/bytes.h"
#include "foveate/io/gguf.h"
#include "foveate/io/pipeline/vocabulary_pipeline.h"
#include "foveate/io/score_bpe.h"

namespace foveate::io {

namespace {

// Files name one EOS; the other tokens that end a text are known by their texts, as in llama.cpp.
constexpr std::array<std::string_view, 12> kEndTexts = {
    "<|im_end|>", "<end_of_turn>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
    "<|end|>",    "<eos>",         "</s>",          "<EOT>",      "[EOS]",      "<|return|>",
};

constexpr std::array<std::string_view, 4> kModels = {"gpt2", "llama", "bert", "t5"};

bool is_end_text(std::string_view text) { return std::ranges::find(kEndTexts, text) != kEndTexts.end(); }

// 0x0A for "<0x0A>", the form of byte tokens.
std::optional<uint8_t> parse_byte(std::string_view text) {
  uint8_t byte = 0;
  if (text.size() != 6 || !text.starts_with("<0x") || !text.ends_with('>')) return std::nullopt;
  const auto [end, status] = std::from_chars(text.data() + 3, text.data() + 5, byte, 16);
  return status == std::errc() && end == text.data() + 5 ? std::optional(byte) : std::nullopt;
}

std::optional<int32_t> read_id(const Gguf& file, std::string_view name) {
  const std::optional<int64_t> id = file.integer("tokenizer.ggml." + std::string(name) + "_token_id");
  if (!id) return std::nullopt;
  // What does not fit 32 bits is out of range as well; -1 lets the tokenizer's own check say so.
  return *id >= 0 && *id <= INT32_MAX ? int32_t(*id) : -1;
}

std::vector<float> read_scores(const Gguf& file) {
  const auto numbers = file.numbers("tokenizer.ggml.scores");
  return numbers ? std::vector<float>(numbers->begin(), numbers->end()) : std::vector<float>();
}

std::vector<int32_t> read_types(const Gguf& file) {
  std::vector<int32_t> types;
  if (const auto numbers = file.numbers("tokenizer.ggml.token_type"))
    for (const double number : *numbers) types.push_back(number >= 0 && number <= INT32_MAX ? int32_t(number) : -1);
  return types;
}

// SentencePiece's normalisation, an array of bytes.
std::string read_charsmap(const Gguf& file) {
  std::string bytes;
  if (const auto numbers = file.numbers("tokenizer.ggml.precompiled_charsmap"))
    for (const double number : *numbers) bytes += char(uint8_t(int64_t(std::clamp(number, -128.0, 255.0))));
  return bytes;
}

// BERT's two marks have names of their own, one of them misspelt in the format.
void read_bert_marks(const Gguf& file, Vocabulary& vocabulary) {
  if (!vocabulary.bos) vocabulary.bos = read_id(file, "cls");
  if (const auto separator = read_id(file, "seperator")) vocabulary.eos = separator;
  vocabulary.add_eos = file.boolean("tokenizer.ggml.add_sep_token").value_or(vocabulary.add_eos);
}

}  // namespace

Vocabulary read_vocabulary(const Gguf& file) {
  const std::string prefix = "tokenizer.ggml.";
  Vocabulary vocabulary{.source = file.path()};
  const auto model = file.string(prefix + "model");
  require(model.has_value(), "{}: tokenizer.ggml.model must name the tokenizer, got no such key", file.path());
  require(std::ranges::find(kModels, *model) != kModels.end(), "{}: tokenizer.ggml.model must be one of: {}; got {}",
          file.path(), fmt::join(kModels, " "), printable(*model));
  vocabulary.model = *model;
  vocabulary.pre = file.string(prefix + "pre").value_or("");
  const std::vector<std::string>* tokens = file.strings(prefix + "tokens");
  require(tokens != nullptr, "{}: tokenizer.ggml.tokens must list the tokens, got no such key", file.path());
  vocabulary.tokens = *tokens;
  if (const auto* merges = file.strings(prefix + "merges")) vocabulary.merges = *merges;
  vocabulary.scores = read_scores(file);
  vocabulary.types = read_types(file);
  vocabulary.bos = read_id(file, "bos");
  vocabulary.eos = read_id(file, "eos");
  vocabulary.unknown = read_id(file, "unknown");
  for (const std::string_view name : {"eot", "eom"})
    if (const auto id = read_id(file, name)) vocabulary.ends.insert(*id);
  // The defaults where the file is silent are llama.cpp's.
  const bool is_bert = *model == "bert", is_t5 = *model == "t5";
  vocabulary.add_bos = file.boolean(prefix + "add_bos_token").value_or(*model == "llama" || is_bert);
  vocabulary.add_eos = file.boolean(prefix + "add_eos_token").value_or(is_bert || is_t5);
  vocabulary.add_space_prefix = file.boolean(prefix + "add_space_prefix").value_or(*model == "llama" || is_t5);
  vocabulary.remove_extra_spaces = file.boolean(prefix + "remove_extra_whitespaces").value_or(is_t5);
  if (is_bert) read_bert_marks(file, vocabulary);
  if (is_t5) vocabulary.charsmap = read_charsmap(file);
  vocabulary.chat_template = file.string("tokenizer.chat_template");
  return vocabulary;
}

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary) {
  if (vocabulary.model == "gpt2") return std::make_unique<ByteBpe>(std::move(vocabulary));
  if (vocabulary.model == "llama") return std::make_unique<ScoreBpe>(std::move(vocabulary));
  if (vocabulary.model == "bert") return make_bert_tokenizer(std::move(vocabulary));
  if (vocabulary.model == "t5") return make_unigram_tokenizer(std::move(vocabulary));
  fail("{}: the tokenizer model must be one of: {}; got {}", vocabulary.source, fmt::join(kModels, " "),
       printable(vocabulary.model));
}

Tokenizer::Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  const auto& tokens = vocabulary_.tokens;
  if (tokens.empty()) reject("the vocabulary must have tokens, got none");
  if (tokens.size() > size_t(INT32_MAX)) reject(fmt::format("there must be < 2^31 tokens, got {}", tokens.size()));
  ids_.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto [known, is_new] = ids_.emplace(tokens[id], int32_t(id));
    if (!is_new)
      reject(fmt::format("a token must be listed once, got {} as {} and {}", printable(tokens[id]), known->second, id));
  }
  check_types();
  check_ids();
  index_specials();
}

void Tokenizer::reject(const std::string& what) const { fail("{}: {}", vocabulary_.source, what); }

void Tokenizer::check_types() const {
  const auto& types = vocabulary_.types;
  if (!types.empty() && types.size() != vocabulary_.tokens.size())
    reject(fmt::format("there must be one type per token, got {} types for {} tokens", types.size(), size()));
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] < int32_t(TokenType::normal) || types[id] > int32_t(TokenType::byte))
      reject(fmt::format("a token type must be 1 .. 6, got {} for token {}", types[id], id));
    if (type(int32_t(id)) == TokenType::byte && !parse_byte(vocabulary_.tokens[id]))
      reject(fmt::format("a byte token must be <0x00> .. <0xFF>, got {} as token {}", printable(vocabulary_.tokens[id]),
                         id));
  }
}

void Tokenizer::check_ids() const {
  const auto check = [&](std::string_view what, std::optional<int32_t> id) {
    if (id && (*id < 0 || *id >= size()))
      reject(fmt::format("the {} token must be one of the {} tokens, got id {}", what, size(), *id));
  };
  check("BOS", vocabulary_.bos);
  check("EOS", vocabulary_.eos);
  check("unknown", vocabulary_.unknown);
  for (const int32_t id : vocabulary_.ends) check("end", id);
  if (vocabulary_.add_bos && !vocabulary_.bos) reject("BOS must be named where it is to be added, got no id");
  if (vocabulary_.add_eos && !vocabulary_.eos) reject("EOS must be named where it is to be added, got no id");
}

void Tokenizer::index_specials() {
  if (vocabulary_.eos) vocabulary_.ends.insert(*vocabulary_.eos);
  for (int32_t id = 0; id < size(); ++id) {
    const std::string& text = vocabulary_.tokens[size_t(id)];
    const bool control = type(id) == TokenType::control || type(id) == TokenType::unknown;
    if (text.empty() || (!control && type(id) != TokenType::user_defined)) continue;
    if (control && is_end_text(text)) vocabulary_.ends.insert(id);
    specials_.add(text, id);
    // Gemma 3 lists </s>, HTML's strike-through, as user-defined; llama.cpp takes it for an end mark and leaves it in
    // plain text.  Same ids here, but it ends no text.
    if (!control && !is_end_text(text)) user_defined_.add(text, id);
  }
}

TokenType Tokenizer::type(int32_t id) const {
  return vocabulary_.types.empty() ? TokenType::normal : TokenType(vocabulary_.types[size_t(id)]);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int32_t> ids;
  if (options.add_special && vocabulary_.add_bos) ids.push_back(*vocabulary_.bos);
  const TokenMatcher& matcher = options.parse_special ? specials_ : user_defined_;
  bool begins = true;
  for (size_t done = 0; done < text.size();) {
    const TokenMatcher::Match match = matcher.next(text, done);
    if (match.begin > done) {
      encode_plain(text.substr(done, match.begin - done), begins, ids);
      begins = false;
    }
    if (match.length > 0) {
      ids.push_back(match.id);
      begins = true;
    }
    done = match.begin + match.length;
  }
  if (options.add_special && vocabulary_.add_eos) ids.push_back(*vocabulary_.eos);
  return ids;
}

std::string Tokenizer::piece(int32_t id) const {
  require(id >= 0 && id < size(), "decode: a token id must be in [0, {}), got {}", size(), id);
  switch (type(id)) {
    case TokenType::control:
    case TokenType::unknown:
      return {};
    case TokenType::user_defined:
      return vocabulary_.tokens[size_t(id)];
    case TokenType::byte:
      return {char(*parse_byte(vocabulary_.tokens[size_t(id)]))};
    case TokenType::normal:
    case TokenType::unused:
      break;
  }
  return plain_piece(id);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool with_special) const {
  std::string text;
  bool strip = vocabulary_.add_space_prefix;  // the space that encode put before the first text
  for (const int32_t id : ids) {
    std::string bytes = piece(id);
    const bool control = type(id) == TokenType::control || type(id) == TokenType::unknown;
    if (control) {
      if (with_special) text += vocabulary_.tokens[size_t(id)];
      continue;
    }
    if (strip && bytes.starts_with(' ')) bytes.erase(0, 1);
    strip = false;
    text += bytes;
  }
  return text;
}

std::optional<int32_t> Tokenizer::find(std::string_view token_text) const {
  const auto found = ids_.find(token_text);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace foveate::io
