// Small tokenizer.json files for tests, one per kind of model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "foveate/io/pipeline/tokenizer_json.h"

namespace foveate::test {

using nlohmann::json;

inline json numbered(const std::vector<std::string>& tokens) {
  json vocabulary = json::object();
  for (const std::string& token : tokens) {
    const size_t id = vocabulary.size();
    vocabulary[token] = id;
  }
  return vocabulary;
}

// Ids 0 <unk>, 1 a, 2 b, 3 c, 4 ab, 5 abc, 6 ▁, 7 ▁a, 8 <0xC3>, 9 <0xA9>; then <s> 10, </s> 11, <tag> 12.
inline json tiny_bpe() {
  json file;
  file["version"] = "1.0";
  file["added_tokens"] = json::array({{{"id", 0}, {"content", "<unk>"}, {"special", true}, {"normalized", false}},
                                      {{"id", 10}, {"content", "<s>"}, {"special", true}, {"normalized", false}},
                                      {{"id", 11}, {"content", "</s>"}, {"special", true}, {"normalized", false}},
                                      {{"id", 12}, {"content", "<tag>"}, {"special", false}, {"normalized", false}}});
  file["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  file["pre_tokenizer"] = nullptr;
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {10}}, {"tokens", {"<s>"}}}}}}};
  file["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}}}}};
  file["model"] = {{"type", "BPE"},
                   {"unk_token", "<unk>"},
                   {"fuse_unk", true},
                   {"byte_fallback", true},
                   {"vocab", numbered({"<unk>", "a", "b", "c", "ab", "abc", "▁", "▁a", "<0xC3>", "<0xA9>"})},
                   {"merges", {"a b", "ab c", "▁ a"}}};
  return file;
}

// Ids 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 un, 5 ##aff, 6 ##able, 7 a, 8 ##a, 9 ".".
inline json tiny_word_piece() {
  json file;
  file["added_tokens"] = json::array({{{"id", 1}, {"content", "[UNK]"}, {"special", true}, {"normalized", false}},
                                      {{"id", 2}, {"content", "[CLS]"}, {"special", true}, {"normalized", false}},
                                      {{"id", 3}, {"content", "[SEP]"}, {"special", true}, {"normalized", false}}});
  file["normalizer"] = {{"type", "BertNormalizer"},
                        {"clean_text", true},
                        {"handle_chinese_chars", true},
                        {"strip_accents", nullptr},
                        {"lowercase", true}};
  file["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
  file["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"[SEP]", 3}}, {"cls", {"[CLS]", 2}}};
  file["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  file["model"] = {{"type", "WordPiece"},
                   {"unk_token", "[UNK]"},
                   {"continuing_subword_prefix", "##"},
                   {"max_input_chars_per_word", 10},
                   {"vocab", numbered({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "a", "##a", "."})}};
  return file;
}

// Ids 0 <unk>, 1 ▁, 2 a, 3 b, 4 ab, 5 ▁ab, 6 bb.
inline json tiny_unigram() {
  json file;
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}};
  file["decoder"] = file["pre_tokenizer"];
  file["model"] = {{"type", "Unigram"},
                   {"unk_id", 0},
                   {"vocab", json::parse(R"([["<unk>", 0], ["▁", -2], ["a", -3], ["b", -3], ["ab", -5.5], ["▁ab", -9.5],
                                             ["bb", -4]])")}};
  return file;
}

// Ids 0 <unk>, 1 one, 2 two.
inline json tiny_word_level() {
  json file;
  file["pre_tokenizer"] = {{"type", "Whitespace"}};
  file["model"] = {{"type", "WordLevel"}, {"unk_token", "<unk>"}, {"vocab", numbered({"<unk>", "one", "two"})}};
  return file;
}

inline std::unique_ptr<io::Tokenizer> open(const json& file, io::TokenizerFiles others = {}) {
  others.tokenizer = file.dump();
  return io::parse_tokenizer_json(others, "tiny/tokenizer.json");
}

}  // namespace foveate::test
