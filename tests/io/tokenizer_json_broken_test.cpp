// Broken tokenizer.json files, each named after what is wrong with it: one line that names the file and the place.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include "foveate/base/error.h"
#include "tests/io/tiny_tokenizer_json.h"
#include "tests/support/files.h"

namespace foveate {
namespace {

using test::json;

std::string refusal_of(const io::TokenizerFiles& files) {
  try {
    io::parse_tokenizer_json(files, "tiny/tokenizer.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string refusal_of(const json& file) { return refusal_of(io::TokenizerFiles{.tokenizer = file.dump()}); }

struct Broken {
  std::string name;  // of the defect
  json (*whole)();
  std::function<void(json&)> damage;
  std::string message;  // behind "tiny/tokenizer.json"
};

void expect_refusals(const std::vector<Broken>& files) {
  for (const Broken& broken : files) {
    json file = broken.whole();
    ASSERT_EQ(refusal_of(file), "no error") << broken.name;
    broken.damage(file);
    EXPECT_EQ(refusal_of(file), "tiny/tokenizer.json" + broken.message) << broken.name;
  }
}

TEST(BrokenTokenizerJson, models) {
  expect_refusals({
      {"no model", test::tiny_bpe, [](json& f) { f.erase("model"); }, ": key 'model' must be there, is not"},
      {"model is a list", test::tiny_bpe, [](json& f) { f["model"] = json::array(); },
       ": model must be an object, got a list of 0"},
      {"unknown model", test::tiny_bpe, [](json& f) { f["model"]["type"] = "Rwkv"; },
       ": model.type must be one of: BPE Unigram WordLevel WordPiece, got 'Rwkv'"},
      {"unknown option", test::tiny_bpe, [](json& f) { f["model"]["turbo"] = true; },
       ": model must have only the keys type vocab merges unk_token fuse_unk byte_fallback ignore_merges dropout "
       "continuing_subword_prefix end_of_word_suffix; got 'turbo'"},
      {"vocab is no object", test::tiny_bpe, [](json& f) { f["model"]["vocab"] = "a b"; },
       ": model.vocab must be an object, got 'a b'"},
      {"vocab is empty", test::tiny_word_level, [](json& f) { f["model"]["vocab"] = json::object(); },
       ": model.vocab must have tokens, got an object"},
      {"id twice", test::tiny_bpe, [](json& f) { f["model"]["vocab"]["b"] = 1; },
       ": model.vocab.b must be a token's own, not that of 'a' too, got 1"},
      {"gap in ids", test::tiny_bpe, [](json& f) { f["model"]["vocab"]["b"] = 99; },
       ": model.vocab.b must leave no gap: < 10, got 99"},
      {"negative id", test::tiny_bpe, [](json& f) { f["model"]["vocab"]["b"] = -1; },
       ": model.vocab.b must be a whole number in 0 .. 2147483647, got -1"},
      {"huge id", test::tiny_bpe, [](json& f) { f["model"]["vocab"]["b"] = 18446744073709551615U; },
       ": model.vocab.b must be a whole number in 0 .. 2147483647, got 18446744073709551615"},
      {"fractional id", test::tiny_bpe, [](json& f) { f["model"]["vocab"]["b"] = 1.5; },
       ": model.vocab.b must be a whole number in 0 .. 2147483647, got 1.5"},
      {"merge of an unknown token", test::tiny_bpe, [](json& f) { f["model"]["merges"][1] = "ab z"; },
       ": model.merges[1] must name tokens of the vocabulary, got 'z'"},
      {"merge into an unknown token", test::tiny_bpe,
       [](json& f) {
         f["model"]["merges"][1] = json::array({"b", "c"});
       },
       ": model.merges[1] must name tokens of the vocabulary, got 'bc'"},
      {"merge of one token", test::tiny_bpe, [](json& f) { f["model"]["merges"][1] = "abc"; },
       ": model.merges[1] must be two tokens with a space between, got 'abc'"},
      {"merge of three tokens", test::tiny_bpe,
       [](json& f) {
         f["model"]["merges"][1] = json::array({"a", "b", "c"});
       },
       ": model.merges[1] must be two tokens, got a list of 3"},
      {"unknown token is no token", test::tiny_bpe, [](json& f) { f["model"]["unk_token"] = "[UNK]"; },
       ": model.unk_token must name tokens of the vocabulary, got '[UNK]'"},
      {"dropout", test::tiny_bpe, [](json& f) { f["model"]["dropout"] = 0.1; },
       ": model.dropout must be null or 0: ids would be random, got 0.1"},
      {"word piece without a prefix", test::tiny_word_piece,
       [](json& f) { f["model"].erase("continuing_subword_prefix"); },
       ": model: key 'continuing_subword_prefix' must be there, is not"},
  });
}

TEST(BrokenTokenizerJson, unigram_vocabularies) {
  expect_refusals({
      {"score is a text", test::tiny_unigram, [](json& f) { f["model"]["vocab"][2][1] = "NaN"; },
       ": model.vocab[2][1] must be a finite number, got 'NaN'"},
      {"score is missing", test::tiny_unigram, [](json& f) { f["model"]["vocab"][2].erase(1); },
       ": model.vocab[2] must be a token and its score, got a list of 1"},
      {"token twice", test::tiny_unigram, [](json& f) { f["model"]["vocab"][3][0] = "a"; },
       ": model.vocab[3] must be a new token, got 'a', which is token 2"},
      {"unk_id out of range", test::tiny_unigram, [](json& f) { f["model"]["unk_id"] = 7; },
       ": model.unk_id must be a whole number in 0 .. 6, got 7"},
      {"unk_id is null", test::tiny_unigram, [](json& f) { f["model"]["unk_id"] = nullptr; },
       ": model.unk_id must be a whole number in 0 .. 6, got null"},
      {"no tokens", test::tiny_unigram, [](json& f) { f["model"]["vocab"] = json::array(); },
       ": model.vocab must have tokens, got a list of 0"},
  });
}

TEST(BrokenTokenizerJson, added_tokens_and_post_processors) {
  expect_refusals({
      {"added token with the id of another", test::tiny_bpe, [](json& f) { f["added_tokens"][3]["id"] = 1; },
       ": added_tokens[3].id must be 10, the id of '<tag>', got 1"},
      {"added token beyond a gap", test::tiny_bpe, [](json& f) { f["added_tokens"][3]["id"] = 13; },
       ": added_tokens[3].id must be 12, the id of '<tag>', got 13"},
      {"added token twice", test::tiny_bpe, [](json& f) { f["added_tokens"][3]["content"] = "<s>"; },
       ": added_tokens[3].id must be 10, the id of '<s>', got 12"},
      {"added token twice by the same id", test::tiny_bpe,
       [](json& f) {
         f["added_tokens"].push_back({{"id", 10}, {"content", "<s>"}, {"special", false}, {"normalized", false}});
       },
       ": added_tokens[4].content must stand once, got '<s>' again"},
      {"added token of the vocabulary with another id", test::tiny_bpe,
       [](json& f) { f["added_tokens"][3]["content"] = "ab"; },
       ": added_tokens[3].id must be 4, the id of 'ab', got 12"},
      {"added token without text", test::tiny_bpe, [](json& f) { f["added_tokens"][3]["content"] = ""; },
       ": added_tokens[3].content must not be empty, got ''"},
      {"added token with an unknown option", test::tiny_bpe, [](json& f) { f["added_tokens"][3]["strip"] = true; },
       ": added_tokens[3] must have only the keys id content special lstrip rstrip single_word normalized; got "
       "'strip'"},
      {"template of an unknown token", test::tiny_bpe,
       [](json& f) { f["post_processor"]["single"][0]["SpecialToken"]["id"] = "<bos>"; },
       ": post_processor.single[0].SpecialToken.id must be one of special_tokens, got '<bos>'"},
      {"template without the text", test::tiny_bpe, [](json& f) { f["post_processor"]["single"].erase(1); },
       ": post_processor.single must have the text, Sequence A, got a list of 1"},
      {"template with the text twice", test::tiny_bpe,
       [](json& f) { f["post_processor"]["single"].push_back(f["post_processor"]["single"][1]); },
       ": post_processor.single[2].Sequence.id must be A, once in a single text, got 'A'"},
      {"template adds an id that is none", test::tiny_bpe,
       [](json& f) { f["post_processor"]["special_tokens"]["<s>"]["ids"][0] = 13; },
       ": the post-processor must add one of the 13 tokens, got id 13"},
      {"unknown post-processor", test::tiny_bpe, [](json& f) { f["post_processor"]["type"] = "Last"; },
       ": post_processor.type must be one of: BertProcessing ByteLevel RobertaProcessing Sequence "
       "TemplateProcessing, got 'Last'"},
      {"separator without an id", test::tiny_word_piece, [](json& f) { f["post_processor"]["sep"] = {"[SEP]"}; },
       ": post_processor.sep must be a token and its id, got a list of 1"},
  });
}

TEST(BrokenTokenizerJson, stages) {
  expect_refusals({
      {"unknown normalizer", test::tiny_bpe, [](json& f) { f["normalizer"]["type"] = "Rot13"; },
       ": normalizer.type must be one of: BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend "
       "Replace Sequence Strip StripAccents, got 'Rot13'"},
      {"normalizer with an unknown option", test::tiny_bpe, [](json& f) { f["normalizer"]["times"] = 2; },
       ": normalizer must have only the keys type pattern content; got 'times'"},
      {"unknown pre-tokenizer", test::tiny_bpe,
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
       },
       ": pre_tokenizer.type must be one of: BertPreTokenizer ByteLevel CharDelimiterSplit Digits Metaspace "
       "Punctuation "
       "Sequence Split Whitespace WhitespaceSplit, got 'UnicodeScripts'"},
      {"unknown decoder", test::tiny_bpe, [](json& f) { f["decoder"]["decoders"][1]["type"] = "CTC"; },
       ": decoder.decoders[1].type must be one of: BPEDecoder ByteFallback ByteLevel Fuse Metaspace Replace Sequence "
       "Strip WordPiece, got 'CTC'"},
      {"unknown behavior", test::tiny_bpe,
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Punctuation"}, {"behavior", "Kept"}};
       },
       ": pre_tokenizer.behavior must be one of: Removed Isolated MergedWithPrevious MergedWithNext Contiguous, got "
       "'Kept'"},
      {"replacement of two characters", test::tiny_unigram, [](json& f) { f["pre_tokenizer"]["replacement"] = "ab"; },
       ": pre_tokenizer.replacement must be one character, got 'ab'"},
      {"charsmap is not base64", test::tiny_bpe,
       [](json& f) {
         f["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "?"}};
       },
       ": normalizer.precompiled_charsmap must be base64, got '?'"},
      {"charsmap ends early", test::tiny_bpe,
       [](json& f) {
         f["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "AAQAAA=="}};
       },
       ": normalizer.precompiled_charsmap: a charsmap's trie must be whole units within the 0 bytes that follow, got "
       "1024 bytes"},
      {"unknown stage", test::tiny_bpe, [](json& f) { f["postnormalizer"] = nullptr; },
       " must have only the keys version truncation padding added_tokens normalizer pre_tokenizer post_processor "
       "decoder model; got 'postnormalizer'"},
      {"later version", test::tiny_bpe, [](json& f) { f["version"] = "2.0"; }, ": version must be '1.0', got '2.0'"},
  });
}

TEST(BrokenTokenizerJson, patterns) {
  const auto pattern = [](std::string_view text) {
    return [text](json& f) {
      f["pre_tokenizer"] = {
          {"type", "Split"}, {"pattern", {{"Regex", text}}}, {"behavior", "Isolated"}, {"invert", false}};
    };
  };
  expect_refusals({
      {"bad pattern", test::tiny_bpe, pattern("(a"),
       ": pre_tokenizer.pattern.Regex: PCRE2 must accept the pattern '(a', says at byte 2: missing closing "
       "parenthesis"},
      {"pattern with an intersection", test::tiny_bpe, pattern("[a&&b]"),
       ": pre_tokenizer.pattern.Regex: patterns must do without && in a class, got it at byte 2 of '[a&&b]'"},
      {"pattern with options in its middle", test::tiny_bpe, pattern("a(?i)b"),
       ": pre_tokenizer.pattern.Regex: patterns must do without options behind the beginning, got it at byte 4 of "
       "'a(?i)b'"},
      {"pattern with an unknown property", test::tiny_bpe, pattern("\\p{Cn}"),
       ": pre_tokenizer.pattern.Regex: a property must be one of: Cc Cf Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P "
       "Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm So Z Zl Zp Zs Arabic Armenian Bengali Common Cyrillic Devanagari Georgian "
       "Greek "
       "Han Hangul Hebrew Hiragana Inherited Katakana Latin Thai; got 'Cn'"},
      {"range from a class", test::tiny_bpe, pattern("[\\w-.]"),
       ": pre_tokenizer.pattern.Regex: patterns must do without a range from or to a class, got it at byte 3 of "
       "'[\\\\w-.]'"},
      {"range to a class", test::tiny_bpe, pattern("[!-\\h]"),
       ": pre_tokenizer.pattern.Regex: patterns must do without a range from or to a class, got it at byte 2 of "
       "'[!-\\\\h]'"},
      {"range to a class in brackets", test::tiny_bpe, pattern("[a-[b]]"),
       ": pre_tokenizer.pattern.Regex: patterns must do without a range from or to a class, got it at byte 2 of "
       "'[a-[b]]'"},
      {"class of one case where case is ignored", test::tiny_bpe, pattern("(?i:a[\\p{Lu}])"),
       ": pre_tokenizer.pattern.Regex: patterns must do without a class of upper or lower case where case is ignored, "
       "got "
       "it at byte 12 of '(?i:a[\\\\p{Lu}])'"},
      {"pattern that sets PCRE2's limits", test::tiny_bpe, pattern("(*LIMIT_MATCH=4000000000)a"),
       ": pre_tokenizer.pattern.Regex: patterns must do without '(*', got it at byte 0 of "
       "'(*LIMIT_MATCH=4000000000)a'"},
  });
}

TEST(BrokenTokenizerJson, texts_that_are_no_json) {
  const auto with_text = [](const std::string& text) { return refusal_of(io::TokenizerFiles{.tokenizer = text}); };
  const std::string whole = test::tiny_bpe().dump();
  EXPECT_EQ(with_text(""), "tiny/tokenizer.json: must be valid JSON, is not at byte 1");
  EXPECT_EQ(with_text(whole.substr(0, whole.size() - 1)),
            "tiny/tokenizer.json: must be valid JSON, is not at byte " + std::to_string(whole.size()));
  EXPECT_EQ(with_text("{\"model\": \"\xFF\"}"), "tiny/tokenizer.json: must be valid JSON, is not at byte 12");
  EXPECT_EQ(with_text(std::string(100, '[') + std::string(100, ']')),
            "tiny/tokenizer.json: JSON must have <= 64 levels");
  EXPECT_EQ(with_text(R"({"model": 1, "model": 2})"), "tiny/tokenizer.json: key 'model' must stand once in its object");
  EXPECT_EQ(with_text(R"({"model": 1e999})"),
            "tiny/tokenizer.json: must be valid JSON, has a number that no double holds");
}

TEST(BrokenTokenizerJson, files_beside_it) {
  const std::string whole = test::tiny_bpe().dump();
  EXPECT_EQ(refusal_of({.tokenizer = whole, .config = "[]"}),
            "tiny/tokenizer_config.json must be an object, got a list of 0");
  EXPECT_EQ(refusal_of({.tokenizer = whole, .config = R"({"chat_template": 3})"}),
            "tiny/tokenizer_config.json: chat_template must be a string, got 3");
  EXPECT_EQ(refusal_of({.tokenizer = whole, .generation_config = R"({"eos_token_id": [11, 13]})"}),
            "tiny/generation_config.json: eos_token_id[1] must be a whole number in 0 .. 12, got 13");
}

TEST(BrokenTokenizerJson, a_pattern_that_never_ends_is_an_error_in_bounded_time) {
  json file = test::tiny_bpe();
  file["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(?:a+)+[yz]"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const auto tokenizer = test::open(file);
  EXPECT_EQ(tokenizer->encode("abc", {.add_special = false}).size(), 1U);
  try {
    tokenizer->encode(std::string(100, 'a') + "b");
    FAIL() << "2^100 ways were tried";
  } catch (const Error& error) {
    EXPECT_TRUE(
        std::string(error.what()).starts_with("tiny/tokenizer.json: pre_tokenizer.pattern.Regex: PCRE2 must find"))
        << error.what();
  }
}

TEST(BrokenTokenizerJson, stages_that_multiply_a_text_are_stopped) {
  const auto error_of = [](const json& file, const auto& use) -> std::string {
    try {
      const auto tokenizer = test::open(file);
      use(*tokenizer);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const auto encodes = [](const io::Tokenizer& t) { t.encode("aaaaaaaa"); };
  json spelled = test::tiny_bpe();
  spelled["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  for (int i = 0; i < 40; ++i) spelled["normalizer"]["normalizers"].push_back({{"type", "ByteLevel"}});
  EXPECT_TRUE(
      error_of(spelled, [](const io::Tokenizer& t) { t.encode(" "); }).starts_with("tokenizer: stages must make"));
  json grown = test::tiny_bpe();
  grown["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1 << 20, 'a')}};
  EXPECT_TRUE(error_of(grown, encodes).starts_with("tokenizer: stages must make"));
  json added = grown;  // the normalised form of an added token
  added["added_tokens"].push_back({{"id", 13}, {"content", "aaa"}, {"special", false}, {"normalized", true}});
  EXPECT_TRUE(error_of(added, [](const io::Tokenizer&) {}).starts_with("tokenizer: stages must make"));
  json told = test::tiny_bpe();
  told["decoder"] = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1 << 20, 'b')}};
  const std::vector<int32_t> ids(20, 1);
  EXPECT_TRUE(
      error_of(told, [&](const io::Tokenizer& t) { t.decode(ids); }).starts_with("tokenizer: stages must make"));
}

TEST(BrokenTokenizerJson, a_token_without_end_is_refused_where_it_may_be_tried_everywhere) {
  json file = test::tiny_unigram();
  file["model"]["vocab"].push_back({std::string(5000, 'a'), -1});
  EXPECT_EQ(refusal_of(file), "tokenizer: a token must have <= 4096 bytes, got 5000 in token 7");
}

TEST(BrokenTokenizerJson, side_files_that_are_no_files) {
  test::TemporaryFolder folder("side_files");
  folder.add("tokenizer.json", test::tiny_bpe().dump());
  const auto error = [&]() -> std::string {
    try {
      io::read_tokenizer_json(folder.path());
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(error(), "no error");
  std::filesystem::create_symlink("tokenizer_config.json", folder.file("tokenizer_config.json"));
  EXPECT_NE(error().find("tokenizer_config.json"), std::string::npos);
  std::filesystem::remove(folder.file("tokenizer_config.json"));
  ASSERT_EQ(::mkfifo(folder.file("generation_config.json").c_str(), 0600), 0);
  EXPECT_NE(error().find("generation_config.json"), std::string::npos);  // and does not wait for a writer
}

}  // namespace
}  // namespace foveate
