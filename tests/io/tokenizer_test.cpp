#include "foveate/io/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/io/gguf.h"
#include "foveate/io/unicode.h"
#include "tests/support/mixed_text.h"

namespace foveate {
namespace {

using io::make_tokenizer;
using io::Vocabulary;
using Ids = std::vector<int32_t>;

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

void add_token(Vocabulary& vocabulary, const std::string& text, int32_t type = kNormal, float score = 0) {
  vocabulary.tokens.push_back(text);
  vocabulary.types.push_back(type);
  if (vocabulary.model == "llama") vocabulary.scores.push_back(score);
}

// Ids 0 .. 255 are the bytes; then the merges' results in order; then <|im_start|>, <|im_end|>, <mark>.
Vocabulary tiny_bytes(const std::vector<std::string>& merges = {"a b", "ab c", "b c", "Ġ a", "l l", "h e"}) {
  Vocabulary vocabulary{.source = "tiny", .model = "gpt2", .pre = "smollm"};
  for (const std::string& text : io::printable_bytes()) add_token(vocabulary, text);
  vocabulary.merges = merges;
  for (std::string merge : merges) {
    merge.erase(merge.find(' ', 1), 1);
    add_token(vocabulary, merge);
  }
  add_token(vocabulary, "<|im_start|>", kControl);
  add_token(vocabulary, "<|im_end|>", kControl);
  add_token(vocabulary, "<mark>", kUserDefined);
  vocabulary.eos = int32_t(vocabulary.tokens.size()) - 2;
  return vocabulary;
}

// Ids 0 <unk>, 1 <bos>, 2 <eos>, 3 .. 258 the bytes, then pieces.
Vocabulary tiny_scores() {
  Vocabulary vocabulary{.source = "tiny", .model = "llama"};
  add_token(vocabulary, "<unk>", kUnknown);
  add_token(vocabulary, "<bos>", kControl);
  add_token(vocabulary, "<eos>", kControl);
  for (int b = 0; b < 256; ++b) add_token(vocabulary, fmt::format("<0x{:02X}>", b), kByte);
  const std::vector<std::pair<std::string, float>> pieces = {{"ab", -1},  {"bc", -2}, {"abc", -3}, {"▁a", -4},
                                                             {"▁ab", -5}, {"▁", -6},  {"a", -7},   {"b", -7},
                                                             {"c", -7},   {"aa", -8}};
  for (const auto& [text, score] : pieces) add_token(vocabulary, text, kNormal, score);
  add_token(vocabulary, "\n\n", kUserDefined);
  add_token(vocabulary, "\n\n\n", kUserDefined);
  add_token(vocabulary, "</s>", kUserDefined);
  add_token(vocabulary, "unused", kUnused);
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.add_bos = true;
  return vocabulary;
}

std::vector<std::string> pieces(const io::Tokenizer& tokenizer, std::string_view text, io::EncodeOptions options = {}) {
  std::vector<std::string> texts;
  for (const int32_t id : tokenizer.encode(text, options)) texts.push_back(tokenizer.decode(Ids{id}, true));
  return texts;
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string refusal(const Vocabulary& vocabulary) {
  return message_of([&] { make_tokenizer(vocabulary); });
}

using Texts = std::vector<std::string>;

TEST(ByteBpe, merges_the_lowest_rank_first_and_the_leftmost_of_equals) {
  const auto tokenizer = make_tokenizer(tiny_bytes());
  EXPECT_EQ(pieces(*tokenizer, "abc"), (Texts{"abc"}));
  EXPECT_EQ(pieces(*tokenizer, "bc"), (Texts{"bc"}));
  EXPECT_EQ(pieces(*tokenizer, "lll"), (Texts{"ll", "l"}));
  EXPECT_EQ(pieces(*tokenizer, "x abc"), (Texts{"x", " ", "abc"}));  // "a b" outranks "Ġ a"
  EXPECT_EQ(pieces(*tokenizer, "x a"), (Texts{"x", " a"}));
  const auto reversed = make_tokenizer(tiny_bytes({"b c", "a b", "a bc"}));
  EXPECT_EQ(pieces(*reversed, "abc"), (Texts{"abc"}));
  const auto greedy = make_tokenizer(tiny_bytes({"b c", "a b"}));
  EXPECT_EQ(pieces(*greedy, "abc"), (Texts{"a", "bc"}));
}

TEST(ByteBpe, never_merges_across_the_pieces_of_the_split_pattern) {
  const auto tokenizer = make_tokenizer(tiny_bytes({"1 2", "Ġ Ġ", "' s", "s x", "Ġ 1", "Ċ Ċ", "a '", "Â ²"}));
  EXPECT_EQ(pieces(*tokenizer, "12"), (Texts{"1", "2"}));  // every number character alone
  EXPECT_EQ(pieces(*tokenizer, "²²"), (Texts{"²", "²"}));
  EXPECT_EQ(pieces(*tokenizer, "  1"), (Texts{"  ", "1"}));      // the look-ahead ends where the digit was cut off
  EXPECT_EQ(pieces(*tokenizer, "  x"), (Texts{" ", " ", "x"}));  // the last space goes with the word
  EXPECT_EQ(pieces(*tokenizer, "a'sx"), (Texts{"a", "'s", "x"}));
  EXPECT_EQ(pieces(*tokenizer, "a’s"), (Texts{"a", "\xE2", "\x80", "\x99", "s"}));
  EXPECT_EQ(pieces(*tokenizer, "\n\nx"), (Texts{"\n", "\n", "x"}));
  EXPECT_EQ(pieces(*tokenizer, "x\n\n"), (Texts{"x", "\n\n"}));
  Vocabulary gpt2 = tiny_bytes({"1 2"});
  gpt2.pre = "gpt-2";
  EXPECT_EQ(pieces(*make_tokenizer(gpt2), "12"), (Texts{"12"}));
}

TEST(ByteBpe, gives_back_every_byte_string) {
  const auto tokenizer = make_tokenizer(tiny_bytes());
  EXPECT_TRUE(tokenizer->lost_bytes().empty());
  std::string every(256, 0);
  std::iota(every.begin(), every.end(), char(0));
  Random random(11);
  for (int round = 0; round < 300; ++round) {
    const std::string text = round == 0 ? every : test::random_bytes(random, random.below(60));
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << "round " << round;
    const std::string marked = text + "<mark><|im_start|>" + text;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(marked)), marked) << "round " << round;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(marked, {.parse_special = true}), true), marked) << "round " << round;
  }
}

TEST(ByteBpe, drops_and_names_the_bytes_without_a_token) {
  Vocabulary vocabulary = tiny_bytes({});
  vocabulary.tokens[4] = "four";
  vocabulary.tokens[0xFF] = "last";
  const auto tokenizer = make_tokenizer(vocabulary);
  EXPECT_EQ(tokenizer->lost_bytes(), (std::vector<uint8_t>{4, 0xFF}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\x04\xFFz")), "az");
}

TEST(ByteBpe, refuses_broken_vocabularies_and_says_why) {
  Vocabulary vocabulary = tiny_bytes();
  vocabulary.merges[1] = "abc";
  EXPECT_EQ(refusal(vocabulary), "tiny: a merge must be two tokens with a space between, got 'abc' as merge 1");
  vocabulary = tiny_bytes();
  vocabulary.merges[1] = "ab zz";
  EXPECT_EQ(refusal(vocabulary), "tiny: merge 1 ('ab zz') must name tokens of the file, got 'zz'");
  vocabulary.merges[1] = "ab ab";
  EXPECT_EQ(refusal(vocabulary), "tiny: merge 1 ('ab ab') must name tokens of the file, got 'abab'");
  vocabulary = tiny_bytes();
  vocabulary.pre = "qwen9";
  EXPECT_EQ(refusal(vocabulary),
            "tiny: tokenizer.ggml.pre must be one of: smollm starcoder refact command-r gpt-2 olmo phi-2 "
            "mpt llama-bpe llama3 dbrx smaug-bpe qwen2 stablelm2 deepseek-r1-qwen; got 'qwen9'");
}

TEST(ScoreBpe, merges_the_highest_score_first_and_the_leftmost_of_equals) {
  const auto tokenizer = make_tokenizer(tiny_scores());
  const io::EncodeOptions plain{.add_special = false};
  EXPECT_EQ(pieces(*tokenizer, "abc", plain), (Texts{"abc"}));
  EXPECT_EQ(pieces(*tokenizer, "aaa", plain), (Texts{"aa", "a"}));
  EXPECT_EQ(pieces(*tokenizer, "bcb", plain), (Texts{"bc", "b"}));
  EXPECT_EQ(pieces(*tokenizer, "c ab", plain), (Texts{"c", " ab"}));
  EXPECT_EQ(tokenizer->encode("abc")[0], 1);  // BOS
  EXPECT_EQ(tokenizer->encode(""), Ids{1});
  EXPECT_TRUE(tokenizer->encode("", plain).empty());
}

TEST(ScoreBpe, spells_unknown_characters_and_bad_bytes_with_byte_tokens) {
  const auto tokenizer = make_tokenizer(tiny_scores());
  const io::EncodeOptions plain{.add_special = false};
  EXPECT_EQ(tokenizer->encode("é", plain), (Ids{3 + 0xC3, 3 + 0xA9}));
  // A lead byte without its tail takes nothing with it.
  EXPECT_EQ(pieces(*tokenizer, "\xE2 ab", plain), (Texts{"\xE2", " ab"}));
  EXPECT_EQ(pieces(*tokenizer,
                   "\xFF"
                   "ab",
                   plain),
            (Texts{"\xFF", "ab"}));
}

TEST(ScoreBpe, gives_back_every_byte_string_but_for_the_space_mark) {
  Vocabulary vocabulary = tiny_scores();
  for (const bool prefix : {false, true}) {
    vocabulary.add_space_prefix = prefix;
    const auto tokenizer = make_tokenizer(vocabulary);
    Random random(12);
    for (int round = 0; round < 300; ++round) {
      std::string text = test::random_bytes(random, random.below(60));
      for (size_t at; (at = text.find("\xE2\x96\x81")) != std::string::npos;) text.replace(at, 3, " ");
      if (prefix && text.find("\n\n") != std::string::npos) continue;  // text after a special token gets a space too
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << "round " << round;
    }
  }
  EXPECT_EQ(make_tokenizer(tiny_scores())->decode(make_tokenizer(tiny_scores())->encode("a▁b")), "a b");
}

TEST(ScoreBpe, puts_the_space_prefix_where_text_begins) {
  Vocabulary vocabulary = tiny_scores();
  vocabulary.add_space_prefix = true;
  const auto tokenizer = make_tokenizer(vocabulary);
  const int32_t ab = *tokenizer->find("▁ab");
  EXPECT_EQ(tokenizer->encode("ab\n\nab", {.add_special = false}), (Ids{ab, *tokenizer->find("\n\n"), ab}));
  EXPECT_EQ(tokenizer->encode("ab", {.add_special = false}), Ids{ab});
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("ab")), "ab");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(" ab")), " ab");
}

TEST(ScoreBpe, tokenizes_words_apart_only_where_no_token_spans_them) {
  Vocabulary vocabulary = tiny_scores();
  const auto apart = make_tokenizer(vocabulary);
  EXPECT_EQ(pieces(*apart, "a ab", {.add_special = false}), (Texts{"a", " ab"}));
  add_token(vocabulary, "a▁", kNormal, -0.5F);
  add_token(vocabulary, "a▁ab", kNormal, -0.6F);
  const auto across = make_tokenizer(vocabulary);
  EXPECT_EQ(pieces(*across, "a ab", {.add_special = false}), (Texts{"a ab"}));
}

TEST(ScoreBpe, refuses_broken_vocabularies_and_says_why) {
  Vocabulary vocabulary = tiny_scores();
  vocabulary.scores.pop_back();
  EXPECT_EQ(refusal(vocabulary), "tiny: there must be one score per token, got 272 scores for 273 tokens");
  vocabulary.scores.clear();
  EXPECT_EQ(refusal(vocabulary), "tiny: there must be one score per token, got 0 scores for 273 tokens");
  vocabulary = tiny_scores();
  vocabulary.scores[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(refusal(vocabulary), "tiny: a score must be finite, got nan for token 5");
  vocabulary = tiny_scores();
  vocabulary.tokens[3 + 0x41] = "<0xGG>";
  EXPECT_EQ(refusal(vocabulary), "tiny: a byte token must be <0x00> .. <0xFF>, got '<0xGG>' as token 68");
  vocabulary.types[3 + 0x41] = kNormal;
  EXPECT_EQ(make_tokenizer(vocabulary)->lost_bytes(), std::vector<uint8_t>{0x41});
  vocabulary.unknown.reset();
  EXPECT_EQ(refusal(vocabulary), "tiny: every byte must have a token, or the unknown token be named, got no <0x41>");
}

TEST(Tokenizer, cuts_user_defined_tokens_out_of_any_text_leftmost_and_longest) {
  const auto scores = make_tokenizer(tiny_scores());
  const io::EncodeOptions plain{.add_special = false};
  EXPECT_EQ(pieces(*scores, "a\n\n\n\n\nb", plain), (Texts{"a", "\n\n\n", "\n\n", "b"}));
  EXPECT_EQ(pieces(*scores, "\n", plain), (Texts{"\n"}));
  const auto bytes = make_tokenizer(tiny_bytes());
  EXPECT_EQ(pieces(*bytes, "a<mark>b"), (Texts{"a", "<mark>", "b"}));
}

TEST(Tokenizer, takes_control_tokens_from_the_text_only_when_asked) {
  const auto tokenizer = make_tokenizer(tiny_bytes());
  const std::string text = "<|im_start|>ab<|im_end|>";
  EXPECT_EQ(pieces(*tokenizer, text, {.parse_special = true}), (Texts{"<|im_start|>", "ab", "<|im_end|>"}));
  const Ids plain = tokenizer->encode(text);
  EXPECT_EQ(std::ranges::count(plain, *tokenizer->find("<|im_start|>")), 0);
  EXPECT_EQ(tokenizer->decode(plain), text);
  EXPECT_EQ(tokenizer->encode("<unk>", {.parse_special = true}).size(), 5U);  // not in this vocabulary
  EXPECT_EQ(make_tokenizer(tiny_scores())->encode("<unk>", {.parse_special = true}), (Ids{1, 0}));
}

TEST(Tokenizer, treats_an_end_mark_that_the_file_calls_user_defined_as_llama_cpp_does) {
  const auto tokenizer = make_tokenizer(tiny_scores());
  const int32_t mark = *tokenizer->find("</s>");
  EXPECT_EQ(tokenizer->encode("</s>", {.parse_special = true}), (Ids{1, mark}));
  EXPECT_EQ(tokenizer->encode("</s>").size(), 5U);
  EXPECT_EQ(tokenizer->piece(mark), "</s>");
  EXPECT_FALSE(tokenizer->is_end(mark));
}

TEST(Tokenizer, writes_control_tokens_only_with_special) {
  const auto tokenizer = make_tokenizer(tiny_scores());
  const Ids ids = {1, *tokenizer->find("ab"), *tokenizer->find("\n\n"), 3 + 0x21, *tokenizer->find("unused"), 2};
  EXPECT_EQ(tokenizer->decode(ids), "ab\n\n!unused");
  EXPECT_EQ(tokenizer->decode(ids, true), "<bos>ab\n\n!unused<eos>");
  EXPECT_EQ(tokenizer->piece(1), "");
  EXPECT_EQ(tokenizer->piece(*tokenizer->find("▁ab")), " ab");
}

TEST(Tokenizer, knows_its_ends_and_finds_tokens_by_text) {
  Vocabulary vocabulary = tiny_bytes();
  const auto start = int32_t(vocabulary.tokens.size()) - 3;
  vocabulary.ends = {7};
  const auto tokenizer = make_tokenizer(vocabulary);
  EXPECT_TRUE(tokenizer->is_end(start + 1));
  EXPECT_TRUE(tokenizer->is_end(7));
  EXPECT_FALSE(tokenizer->is_end(start));
  EXPECT_FALSE(tokenizer->is_end(-1));
  EXPECT_EQ(tokenizer->eos(), start + 1);
  EXPECT_EQ(tokenizer->bos(), std::nullopt);
  EXPECT_EQ(tokenizer->find("<|im_start|>"), start);
  EXPECT_EQ(tokenizer->find("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer->size(), int64_t(vocabulary.tokens.size()));
}

TEST(Tokenizer, adds_the_end_where_the_file_asks_for_it) {
  Vocabulary vocabulary = tiny_scores();
  vocabulary.add_eos = true;
  EXPECT_EQ(make_tokenizer(vocabulary)->encode("").size(), 2U);
  EXPECT_EQ(make_tokenizer(vocabulary)->encode("", {.add_special = false}).size(), 0U);
}

TEST(Tokenizer, refuses_ids_outside_its_range) {
  const auto tokenizer = make_tokenizer(tiny_scores());
  EXPECT_EQ(message_of([&] { tokenizer->decode(Ids{1, 273}); }), "decode: a token id must be in [0, 273), got 273");
  EXPECT_EQ(message_of([&] { tokenizer->decode(Ids{-1}); }), "decode: a token id must be in [0, 273), got -1");
  EXPECT_EQ(message_of([&] { tokenizer->piece(INT32_MAX); }), "decode: a token id must be in [0, 273), got 2147483647");
}

TEST(Tokenizer, refuses_broken_vocabularies_and_says_why) {
  const std::map<std::string, std::function<void(Vocabulary&)>> broken = {
      {"tiny: the vocabulary must have tokens, got none", [](auto& v) { v.tokens.clear(); }},
      {"tiny: a token must be listed once, got 'ab' as 259 and 260", [](auto& v) { v.tokens[260] = "ab"; }},
      {"tiny: there must be one type per token, got 1 types for 273 tokens", [](auto& v) { v.types.resize(1); }},
      {"tiny: a token type must be 1 .. 6, got 7 for token 2", [](auto& v) { v.types[2] = 7; }},
      {"tiny: a token type must be 1 .. 6, got 0 for token 2", [](auto& v) { v.types[2] = 0; }},
      {"tiny: the BOS token must be one of the 273 tokens, got id 273", [](auto& v) { v.bos = 273; }},
      {"tiny: the EOS token must be one of the 273 tokens, got id -1", [](auto& v) { v.eos = -1; }},
      {"tiny: the unknown token must be one of the 273 tokens, got id 900", [](auto& v) { v.unknown = 900; }},
      {"tiny: the end token must be one of the 273 tokens, got id 900", [](auto& v) { v.ends = {900}; }},
      {"tiny: BOS must be named where it is to be added, got no id", [](auto& v) { v.bos.reset(); }},
      {"tiny: the tokenizer model must be one of: gpt2 llama bert t5; got 'rwkv'", [](auto& v) { v.model = "rwkv"; }},
  };
  for (const auto& [message, damage] : broken) {
    Vocabulary vocabulary = tiny_scores();
    damage(vocabulary);
    EXPECT_EQ(refusal(vocabulary), message);
  }
}

TEST(Tokenizer, takes_long_pieces_without_spaces_in_near_linear_time) {
  const auto bytes = make_tokenizer(tiny_bytes({"a a", "aa aa", "Ġ Ġ", "l l"}));
  const auto scores = make_tokenizer(tiny_scores());
  for (const std::string unit : {"a", " ", "ab", "\n", "\xFF", "é", "<"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(bytes->decode(bytes->encode(text)), text);
    EXPECT_EQ(scores->decode(scores->encode(text)), text);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    EXPECT_LT(passed.count(), 20) << "unit " << unit;  // a quadratic merge takes hours
  }
}

// A GGUF file of metadata alone.
class MetadataFile {
 public:
  explicit MetadataFile(const std::string& name) : path_(testing::TempDir() + name) {}
  ~MetadataFile() { std::filesystem::remove(path_); }

  void add(const std::string& key, const std::string& text) { entry(key, 8), put(text); }
  void add(const std::string& key, uint32_t number) { entry(key, 4), put(number); }
  void add(const std::string& key, bool flag) { entry(key, 7), put(uint8_t(flag)); }
  void add(const std::string& key, const std::vector<std::string>& texts) {
    entry(key, 9), put(uint32_t(8)), put(uint64_t(texts.size()));
    for (const std::string& text : texts) put(text);
  }
  template <class T>
  void add(const std::string& key, uint32_t type, const std::vector<T>& numbers) {
    entry(key, 9), put(type), put(uint64_t(numbers.size()));
    for (const T number : numbers) put(number);
  }

  std::string write() const {
    std::string head = "GGUF";
    const auto append = [&](auto value) { head.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
    append(uint32_t(3)), append(uint64_t(0)), append(count_);
    head += bytes_;
    head.resize((head.size() + 31) / 32 * 32);
    std::ofstream(path_, std::ios::binary) << head;
    return path_;
  }

 private:
  template <class T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void put(const std::string& text) { put(uint64_t(text.size())), bytes_ += text; }
  void entry(const std::string& key, uint32_t type) { put(key), put(type), ++count_; }

  std::string path_, bytes_;
  uint64_t count_ = 0;
};

MetadataFile vocabulary_file(const std::string& name, const Vocabulary& vocabulary) {
  MetadataFile file(name);
  file.add("tokenizer.ggml.model", vocabulary.model);
  if (!vocabulary.pre.empty()) file.add("tokenizer.ggml.pre", vocabulary.pre);
  file.add("tokenizer.ggml.tokens", vocabulary.tokens);
  file.add("tokenizer.ggml.token_type", 5, vocabulary.types);
  if (!vocabulary.merges.empty()) file.add("tokenizer.ggml.merges", vocabulary.merges);
  if (!vocabulary.scores.empty()) file.add("tokenizer.ggml.scores", 6, vocabulary.scores);
  return file;
}

TEST(ReadVocabulary, takes_everything_from_the_file) {
  MetadataFile file = vocabulary_file("tokenizer_full.gguf", tiny_scores());
  file.add("tokenizer.ggml.bos_token_id", 1U);
  file.add("tokenizer.ggml.eos_token_id", 2U);
  file.add("tokenizer.ggml.unknown_token_id", 0U);
  file.add("tokenizer.ggml.eot_token_id", 9U);
  file.add("tokenizer.ggml.add_bos_token", true);
  file.add("tokenizer.ggml.add_space_prefix", false);
  file.add("tokenizer.chat_template", std::string("{{ x }}"));
  const Vocabulary read = read_vocabulary(io::Gguf::open(file.write())), expected = tiny_scores();
  EXPECT_EQ(read.source, file.write());
  EXPECT_EQ(read.tokens, expected.tokens);
  EXPECT_EQ(read.types, expected.types);
  EXPECT_EQ(read.scores, expected.scores);
  EXPECT_EQ(read.chat_template, "{{ x }}");
  EXPECT_FALSE(read.add_space_prefix);
  const auto tokenizer = make_tokenizer(read);
  EXPECT_EQ(tokenizer->encode("abc ab"), make_tokenizer(expected)->encode("abc ab"));
  EXPECT_TRUE(tokenizer->is_end(9));
}

TEST(ReadVocabulary, uses_the_models_defaults_where_the_file_is_silent) {
  const MetadataFile bytes = vocabulary_file("tokenizer_bytes.gguf", tiny_bytes());
  const Vocabulary byte_level = read_vocabulary(io::Gguf::open(bytes.write()));
  EXPECT_FALSE(byte_level.add_bos || byte_level.add_eos || byte_level.add_space_prefix);
  EXPECT_EQ(byte_level.merges, tiny_bytes().merges);
  EXPECT_EQ(byte_level.chat_template, std::nullopt);
  const MetadataFile scores = vocabulary_file("tokenizer_scores.gguf", tiny_scores());
  const Vocabulary scored = read_vocabulary(io::Gguf::open(scores.write()));
  EXPECT_TRUE(scored.add_bos && scored.add_space_prefix);
  EXPECT_FALSE(scored.add_eos);
}

TEST(ReadVocabulary, names_the_file_and_what_it_lacks) {
  MetadataFile file("tokenizer_broken.gguf");
  const auto read = [&] { return message_of([&] { read_vocabulary(io::Gguf::open(file.write())); }); };
  const std::string path = file.write();
  EXPECT_EQ(read(), path + ": tokenizer.ggml.model must name the tokenizer, got no such key");
  file.add("tokenizer.ggml.model", std::string("gpt2"));
  EXPECT_EQ(read(), path + ": tokenizer.ggml.tokens must list the tokens, got no such key");
  MetadataFile other("tokenizer_other.gguf");
  other.add("tokenizer.ggml.model", std::string("rwkv"));
  EXPECT_EQ(message_of([&] { read_vocabulary(io::Gguf::open(other.write())); }),
            other.write() + ": tokenizer.ggml.model must be one of: gpt2 llama bert t5; got 'rwkv'");
  MetadataFile far = vocabulary_file("tokenizer_far.gguf", tiny_bytes());
  far.add("tokenizer.ggml.bos_token_id", 4000000000U);
  EXPECT_EQ(message_of([&] { make_tokenizer(read_vocabulary(io::Gguf::open(far.write()))); }),
            far.write() + ": the BOS token must be one of the 265 tokens, got id -1");
}

}  // namespace
}  // namespace foveate
