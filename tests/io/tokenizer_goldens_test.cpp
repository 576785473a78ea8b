// Token ids against llama.cpp's for more than 1 MB of mixed text, with the real vocabularies.
#include "tests/io/tokenizer_goldens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/io/gguf.h"
#include "foveate/io/tokenizer.h"
#include "tests/support/mixed_text.h"
#include "tests/support/real_model.h"

namespace foveate {
namespace {

using io::make_tokenizer;
using Ids = std::vector<int32_t>;

template <class Values>
uint64_t hash_of(const Values& values, int width) {
  uint64_t state = 0xCBF29CE484222325;
  for (const auto value : values)
    for (int byte = 0; byte < width; ++byte) state = (state ^ ((uint32_t(value) >> (8 * byte)) & 0xFF)) * 0x100000001B3;
  return state;
}

TEST(MixedText, is_the_text_that_the_goldens_were_made_for) {
  const auto chunks = test::mixed_text();
  ASSERT_EQ(chunks.size(), test::kTokenizerGoldens.size());
  size_t bytes = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_EQ(hash_of(chunks[i].text, 1), test::kTokenizerGoldens[i].text) << "chunk " << i << " " << chunks[i].kind;
    bytes += chunks[i].text.size();
  }
  EXPECT_GE(bytes, 1'000'000U);
}

// The text as decode can give it back: without lost bytes and, for score-ordered BPE, without U+2581.
std::string recoverable(std::string text, const io::Tokenizer& tokenizer, bool has_space_mark) {
  const auto lost = tokenizer.lost_bytes();
  std::erase_if(text, [&](char c) { return std::ranges::find(lost, uint8_t(c)) != lost.end(); });
  for (size_t at = 0; has_space_mark && (at = text.find("\xE2\x96\x81", at)) != std::string::npos;)
    text.replace(at, 3, " ");
  return text;
}

void expect_goldens(const std::string& model, uint64_t test::TokenizerGolden::*plain,
                    uint64_t test::TokenizerGolden::*parsed) {
  const auto tokenizer = make_tokenizer(read_vocabulary(io::Gguf::open(*test::real_model(model))));
  const auto chunks = test::mixed_text();
  for (size_t i = 0; i < chunks.size(); ++i) {
    const test::TokenizerGolden& golden = test::kTokenizerGoldens[i];
    const std::string where = fmt::format("chunk {} ({})", i, chunks[i].kind);
    const Ids ids = tokenizer->encode(chunks[i].text);
    EXPECT_EQ(hash_of(ids, 4), golden.*plain) << where;
    EXPECT_EQ(hash_of(tokenizer->encode(chunks[i].text, {.parse_special = true}), 4), golden.*parsed)
        << where << " parsed";
    EXPECT_EQ(tokenizer->decode(ids), recoverable(chunks[i].text, *tokenizer, model == "gemma3")) << where;
  }
}

TEST(RealTokenizer, smollm2_gives_the_ids_of_llama_cpp) {
  if (!test::real_model("smollm2")) GTEST_SKIP() << test::no_model("smollm2");
  expect_goldens("smollm2", &test::TokenizerGolden::smollm2, &test::TokenizerGolden::smollm2_parsed);
}

TEST(RealTokenizer, gemma3_gives_the_ids_of_llama_cpp) {
  if (!test::real_model("gemma3")) GTEST_SKIP() << test::no_model("gemma3");
  expect_goldens("gemma3", &test::TokenizerGolden::gemma3, &test::TokenizerGolden::gemma3_parsed);
}

TEST(RealTokenizer, smollm2_names_the_bytes_that_its_file_lacks) {
  if (!test::real_model("smollm2")) GTEST_SKIP() << test::no_model("smollm2");
  const auto tokenizer = make_tokenizer(read_vocabulary(io::Gguf::open(*test::real_model("smollm2"))));
  EXPECT_EQ(tokenizer->lost_bytes(),
            (std::vector<uint8_t>{0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xc0, 0xc1, 0xf1, 0xf2, 0xf5,
                                  0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff}));
  EXPECT_TRUE(tokenizer->is_end(*tokenizer->find("<|im_end|>")));
  EXPECT_TRUE(tokenizer->is_end(*tokenizer->find("<|endoftext|>")));
  EXPECT_FALSE(tokenizer->is_end(*tokenizer->find("<|im_start|>")));
  EXPECT_EQ(tokenizer->encode("Hello world"), (Ids{19556, 905}));
}

TEST(RealTokenizer, bad_utf8_comes_back_from_both_models) {
  for (const std::string model : {"smollm2", "gemma3"}) {
    if (!test::real_model(model)) GTEST_SKIP() << test::no_model(model);
    const auto tokenizer = make_tokenizer(read_vocabulary(io::Gguf::open(*test::real_model(model))));
    Random random(13);
    for (int round = 0; round < 200; ++round) {
      const std::string text = test::random_bytes(random, random.below(200));
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), recoverable(text, *tokenizer, model == "gemma3"))
          << model << " round " << round;
    }
  }
}

}  // namespace
}  // namespace foveate
