#include "foveate/io/pipeline/vocabulary_pipeline.h"

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/io/pipeline/pipeline_tokenizer.h"

namespace foveate::io {

namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

TokenType type_of(const Vocabulary& vocabulary, size_t id) {
  return id < vocabulary.types.size() ? TokenType(vocabulary.types[id]) : TokenType::normal;
}

bool is_special(TokenType type) { return type == TokenType::control || type == TokenType::unknown; }

// "▁word" to "word", "ing" to "##ing"; special tokens and what older files write in brackets stay.
void use_continuing_prefix(Vocabulary& vocabulary) {
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    std::string& token = vocabulary.tokens[id];
    if (type_of(vocabulary, id) != TokenType::normal || (token.starts_with('[') && token.ends_with(']'))) continue;
    if (token.starts_with(kSpaceMark))
      token.erase(0, kSpaceMark.size());
    else
      token.insert(0, "##");
  }
}

std::vector<AddedToken> added_tokens(const Vocabulary& vocabulary) {
  std::vector<AddedToken> added;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const TokenType type = type_of(vocabulary, id);
    if (vocabulary.tokens[id].empty() || (!is_special(type) && type != TokenType::user_defined)) continue;
    added.push_back(
        {.id = int32_t(id), .content = vocabulary.tokens[id], .special = is_special(type), .normalized = false});
  }
  return added;
}

void add_around(const Vocabulary& vocabulary, Stages& stages) {
  if (vocabulary.add_bos && vocabulary.bos) stages.before = {*vocabulary.bos};
  if (vocabulary.add_eos && vocabulary.eos) stages.after = {*vocabulary.eos};
}

int32_t require_unknown(const Vocabulary& vocabulary, std::string_view usual) {
  if (vocabulary.unknown) return *vocabulary.unknown;
  const auto found = std::ranges::find(vocabulary.tokens, usual);
  require(found != vocabulary.tokens.end(), "{}: the unknown token must be named, got no id and no token {}",
          vocabulary.source, usual);
  return int32_t(found - vocabulary.tokens.begin());
}

}  // namespace

std::unique_ptr<Tokenizer> make_bert_tokenizer(Vocabulary vocabulary) {
  use_continuing_prefix(vocabulary);
  vocabulary.unknown = require_unknown(vocabulary, "[UNK]");
  Stages stages;
  stages.added = added_tokens(vocabulary);
  stages.normalizers.emplace_back(BertNormalizer());
  stages.pre_tokenizers.emplace_back(BertSplit());
  stages.model =
      std::make_unique<WordPieceModel>(vocabulary.tokens, WordPieceModel::Options{.unknown = *vocabulary.unknown});
  stages.decoders.emplace_back(WordPieceDecoder());
  add_around(vocabulary, stages);
  return std::make_unique<PipelineTokenizer>(std::move(vocabulary), std::move(stages));
}

std::unique_ptr<Tokenizer> make_unigram_tokenizer(Vocabulary vocabulary) {
  const auto& scores = vocabulary.scores;
  require(scores.size() == vocabulary.tokens.size() && !scores.empty(),
          "{}: there must be one score per token, got {} scores for {} tokens", vocabulary.source, scores.size(),
          vocabulary.tokens.size());
  for (size_t id = 0; id < scores.size(); ++id)
    require(std::isfinite(scores[id]), "{}: a score must be finite, got {} for token {}", vocabulary.source, scores[id],
            id);
  vocabulary.unknown = require_unknown(vocabulary, "<unk>");
  Stages stages;
  stages.added = added_tokens(vocabulary);
  if (!vocabulary.charsmap.empty())
    stages.normalizers.emplace_back(Charsmap(vocabulary.charsmap, vocabulary.source + ": precompiled_charsmap"));
  if (vocabulary.remove_extra_spaces) {
    stages.normalizers.emplace_back(Strip{.left = false, .right = true});
    const std::string what = vocabulary.source + ": extra spaces";
    stages.normalizers.emplace_back(Replace{std::make_shared<const Regex>(" {2,}", what), std::string(kSpaceMark)});
  }
  const auto prepend = vocabulary.add_space_prefix ? Metaspace::Prepend::always : Metaspace::Prepend::never;
  stages.pre_tokenizers.emplace_back(Metaspace{.prepend = prepend});
  stages.decoders.emplace_back(Metaspace{.prepend = prepend});
  TokenTexts in_text = vocabulary.tokens;
  for (size_t id = 0; id < in_text.size(); ++id)
    if (is_special(type_of(vocabulary, id))) in_text[id].clear();
  const bool has_bytes = std::ranges::find(vocabulary.types, int32_t(TokenType::byte)) != vocabulary.types.end();
  stages.model = std::make_unique<UnigramModel>(in_text, std::vector<double>(scores.begin(), scores.end()),
                                                *vocabulary.unknown, has_bytes);
  if (has_bytes) stages.decoders.insert(stages.decoders.begin(), ByteFallback());
  add_around(vocabulary, stages);
  return std::make_unique<PipelineTokenizer>(std::move(vocabulary), std::move(stages));
}

}  // namespace foveate::io
