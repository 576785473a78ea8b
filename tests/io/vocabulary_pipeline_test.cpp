// WordPiece and Unigram vocabularies of GGUF files; tests/python/test_tokenizer_json.py holds them against the package.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/io/tokenizer.h"
#include "tests/support/gguf_writer.h"

namespace foveate {
namespace {

using io::Vocabulary;
using Ids = std::vector<int32_t>;

constexpr io::EncodeOptions kPlain{.add_special = false};

Vocabulary tiny_bert() {
  return {.source = "tiny",
          .model = "bert",
          .tokens = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "able", "▁a", "a", "▁.", "▁中"},
          .types = {3, 3, 3, 3, 1, 1, 1, 1, 1, 1},
          .bos = 2,
          .eos = 3,
          .add_bos = true,
          .add_eos = true};
}

Vocabulary tiny_t5() {
  return {.source = "tiny",
          .model = "t5",
          .tokens = {"<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "<extra>"},
          .scores = {0, 0, 0, -2, -3, -3, -4, 0},
          .types = {3, 3, 2, 1, 1, 1, 1, 4},
          .eos = 1,
          .add_eos = true,
          .add_space_prefix = true,
          .remove_extra_spaces = true};
}

std::string refusal(const Vocabulary& vocabulary) {
  try {
    io::make_tokenizer(vocabulary);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(BertVocabulary, turns_word_starts_into_continuations) {
  const auto tokenizer = io::make_tokenizer(tiny_bert());
  EXPECT_EQ(tokenizer->encode("Un\u00E4ble \u00C1."), (Ids{2, 4, 5, 6, 8, 3}));
  EXPECT_EQ(tokenizer->encode("unable aa\u4E2D\u4E2D", kPlain), (Ids{4, 5, 6, 7, 9, 9}));
  EXPECT_EQ(tokenizer->find("##able"), 5);
  EXPECT_EQ(tokenizer->decode(Ids{2, 4, 5, 6, 8, 3}), "unable a.");
  EXPECT_EQ(tokenizer->piece(5), "able");
  EXPECT_EQ(tokenizer->encode("[SEP]", {.add_special = false, .parse_special = true}), Ids{3});
  EXPECT_TRUE(tokenizer->is_end(3));
}

TEST(BertVocabulary, needs_an_unknown_token) {
  Vocabulary vocabulary = tiny_bert();
  vocabulary.tokens[1] = "[X]";
  EXPECT_EQ(refusal(vocabulary), "tiny: the unknown token must be named, got no id and no token [UNK]");
  vocabulary.unknown = 1;
  EXPECT_EQ(refusal(vocabulary), "no error");
}

TEST(BertVocabulary, refuses_tokens_that_become_one) {
  Vocabulary vocabulary = tiny_bert();
  vocabulary.tokens[7] = "▁un";
  EXPECT_EQ(refusal(vocabulary), "tiny: a token must be listed once, got 'un' as 4 and 7");
}

TEST(T5Vocabulary, takes_the_best_sum_over_marked_spaces) {
  const auto tokenizer = io::make_tokenizer(tiny_t5());
  EXPECT_EQ(tokenizer->encode("ab  ab "), (Ids{6, 6, 1}));  // extra spaces are removed
  EXPECT_EQ(tokenizer->encode("ba<extra>x", kPlain), (Ids{3, 5, 4, 7, 3, 2}));
  EXPECT_EQ(tokenizer->decode(Ids{6, 6, 1}), "ab ab");
}

TEST(T5Vocabulary, control_tokens_are_no_text) {
  const auto tokenizer = io::make_tokenizer(tiny_t5());
  EXPECT_EQ(tokenizer->encode("</s>", kPlain), (Ids{3, 2}));
  EXPECT_EQ(tokenizer->encode("</s>", {.add_special = false, .parse_special = true}), Ids{1});
}

TEST(T5Vocabulary, refuses_scores_and_charsmaps_that_are_broken) {
  Vocabulary vocabulary = tiny_t5();
  vocabulary.scores.pop_back();
  EXPECT_EQ(refusal(vocabulary), "tiny: there must be one score per token, got 7 scores for 8 tokens");
  vocabulary = tiny_t5();
  vocabulary.scores[3] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(refusal(vocabulary), "tiny: a score must be finite, got inf for token 3");
  vocabulary = tiny_t5();
  vocabulary.charsmap = "abc";
  EXPECT_EQ(refusal(vocabulary), "tiny: precompiled_charsmap: a charsmap must begin with the trie's size, got 3 bytes");
  vocabulary.charsmap = std::string("\x04\0\0\0\xFF\xFF\xFF\xFF", 8);  // points outside itself: nothing is found
  EXPECT_EQ(io::make_tokenizer(vocabulary)->encode("ab", kPlain), Ids{6});
}

TEST(ReadVocabulary, knows_the_marks_of_bert_by_their_own_names) {
  test::GgufWriter file;
  const Vocabulary tiny = tiny_bert();
  file.set("tokenizer.ggml.model", "bert").set("tokenizer.ggml.tokens", tiny.tokens);
  file.set("tokenizer.ggml.token_type", tiny.types).set("tokenizer.ggml.cls_token_id", uint32_t(2));
  file.set("tokenizer.ggml.seperator_token_id", uint32_t(3));
  const test::TemporaryFile bert("bert-vocabulary.gguf", file.bytes());
  EXPECT_EQ(io::make_tokenizer(read_vocabulary(io::Gguf::open(bert.path())))->encode("a"), (Ids{2, 6, 3}));
}

}  // namespace
}  // namespace foveate
