// The third stage of a tokenizer: a piece becomes token ids.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "foveate/io/merges.h"
#include "foveate/io/pipeline/prefix_trie.h"

namespace foveate::io {

// Const calls may run in several threads at once.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of a piece that is not empty.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
};

// Tokens by their texts; ids are places in the list.
using TokenTexts = std::vector<std::string>;

// Characters that merge; what the vocabulary lacks is spelled in bytes, becomes the unknown token or is dropped.
class BpeModel : public TokenModel {
 public:
  struct Options {
    std::optional<int32_t> unknown = {};
    std::string continuing_prefix = {}, word_suffix = {};  // of a character that does not begin, of one that ends
    bool fuse_unknown = false;                             // neighbours that are unknown become one token
    bool byte_fallback = false;       // <0x0A> and the like, where a character's bytes all have one
    bool keeps_whole_tokens = false;  // a piece that is a token is that one, whatever the merges say
  };

  BpeModel(const TokenTexts& tokens, Merges merges, Options options);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  int32_t find(std::string_view text) const;

  std::unordered_map<std::string, int32_t> ids_;
  std::array<int32_t, 256> byte_ids_;
  Merges merges_;
  Options options_;
};

// The longest token at each place, or one unknown token for a piece where some place has none.
class WordPieceModel : public TokenModel {
 public:
  struct Options {
    int32_t unknown = 0;
    std::string continuing_prefix = "##";
    int64_t longest_word = 100;  // characters; a longer piece is unknown
  };

  WordPieceModel(const TokenTexts& tokens, Options options);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  PrefixTrie trie_;
  Options options_;
  std::optional<uint32_t> continues_;  // the node behind the prefix
};

// The tokens whose scores have the largest sum (Viterbi); of equal sums the one found first.
class UnigramModel : public TokenModel {
 public:
  // One finite score per token.
  UnigramModel(const TokenTexts& tokens, std::vector<double> scores, int32_t unknown, bool byte_fallback);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  struct Step;
  void append(std::string_view text, bool is_unknown, int32_t id, std::vector<int32_t>& ids) const;

  PrefixTrie trie_;
  std::vector<double> scores_;
  double unknown_score_;
  int32_t unknown_;
  bool byte_fallback_;
  std::array<int32_t, 256> byte_ids_;
};

// Each piece is a token or unknown.
class WordLevelModel : public TokenModel {
 public:
  WordLevelModel(const TokenTexts& tokens, int32_t unknown) : unknown_(unknown) {
    for (size_t id = 0; id < tokens.size(); ++id) ids_.emplace(tokens[id], int32_t(id));
  }
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override {
    const auto found = ids_.find(std::string(piece));
    ids.push_back(found == ids_.end() ? unknown_ : found->second);
  }

 private:
  std::unordered_map<std::string, int32_t> ids_;
  int32_t unknown_;
};

}  // namespace foveate::io
