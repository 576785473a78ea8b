#include "foveate/eval/passkey.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "tests/eval/toy_codec.h"

namespace foveate::eval {
namespace {

int occurrences(std::string_view text, std::string_view word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

class PasskeyLengths : public testing::TestWithParam<bool> {
 protected:
  Codec codec_ = GetParam() ? word_codec() : byte_codec();
};

INSTANTIATE_TEST_SUITE_P(codec, PasskeyLengths, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "words" : "bytes"; });

TEST_P(PasskeyLengths, never_exceed_the_target_and_miss_it_by_less_than_one_step_of_garbage) {
  for (const int64_t length : {700, 701, 1024, 5000, 20000})
    for (uint64_t trial = 0; trial < 5; ++trial) {
      const Passkey passkey = make_passkey(codec_, {.length = length, .seed = 1, .trial = trial});
      EXPECT_LE(int64_t(passkey.tokens.size()) + 10, length);
      EXPECT_GT(int64_t(passkey.tokens.size()) + 10 + 128, length);
      EXPECT_EQ(passkey.garbage_characters % 128, 0);
    }
}

TEST_P(PasskeyLengths, name_the_smallest_possible_one) {
  std::string error;
  try {
    make_passkey(codec_, {.length = 20});
  } catch (const Error& e) {
    error = e.what();
  }
  ASSERT_TRUE(error.starts_with("passkey: length must be >= ")) << error;
  const int64_t minimum = std::stol(error.substr(error.find(">= ") + 3));
  EXPECT_EQ(make_passkey(codec_, {.length = minimum}).garbage_characters, 0);
  EXPECT_THROW(make_passkey(codec_, {.length = minimum - 1}), Error);
}

TEST(Passkey, says_the_key_exactly_twice_before_the_question_and_no_other_number) {
  for (uint64_t trial = 0; trial < 50; ++trial) {
    const Passkey passkey = make_passkey(byte_codec(), {.length = 3000, .trial = trial});
    const std::string key = std::to_string(passkey.key);
    const size_t question = passkey.prompt.rfind("\nWhat is the pass key? The pass key is");
    ASSERT_NE(question, std::string::npos);
    int digits = 0;
    for (const char c : passkey.prompt) digits += c >= '0' && c <= '9' ? 1 : 0;
    EXPECT_EQ(digits, int(2 * key.size()));
    EXPECT_EQ(occurrences(passkey.prompt.substr(0, question),
                          "The pass key is " + key + ". Remember it. " + key + " is the pass key."),
              1);
    EXPECT_GE(passkey.key, 1);
    EXPECT_LE(passkey.key, 50000);
  }
}

TEST(Passkey, has_the_published_text_around_the_garbage) {
  const Passkey passkey = make_passkey(byte_codec(), {.length = 700, .depth_percent = 0.0, .seed = 4});
  EXPECT_EQ(
      passkey.prompt,
      fmt::format("There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I "
                  "will quiz you about the important information there.\n\nThe pass key is {0}. Remember it. {0} is "
                  "the pass key.\n{1}\nWhat is the pass key? The pass key is",
                  passkey.key,
                  passkey.prompt.substr(passkey.prompt.find("\nThe grass") + 1, size_t(passkey.garbage_characters))));
  EXPECT_EQ(passkey.garbage_characters, 384);
  EXPECT_EQ(occurrences(passkey.prompt, "Here we go. There and back again. The grass is green."), 4);
}

TEST(Passkey, stands_at_the_asked_depth) {
  const Codec codec = byte_codec();
  const auto prefix_share = [&](double depth) {
    const Passkey passkey = make_passkey(codec, {.length = 13500, .depth_percent = depth});
    return double(passkey.prefix_characters) / double(passkey.garbage_characters);
  };
  EXPECT_EQ(prefix_share(0), 0.0);
  EXPECT_EQ(prefix_share(100), 1.0);
  EXPECT_NEAR(prefix_share(37), 0.37, 1e-4);
  EXPECT_THROW(prefix_share(101), Error);
  EXPECT_THROW(prefix_share(-1), Error);
}

TEST(Passkey, spreads_keys_and_depths_evenly_over_the_trials) {
  const Codec codec = byte_codec();
  double keys = 0, depths = 0;
  for (uint64_t trial = 0; trial < 200; ++trial) {
    const Passkey passkey = make_passkey(codec, {.length = 1500, .seed = 5, .trial = trial});
    keys += double(passkey.key) / 50000;
    depths += double(passkey.prefix_characters) / double(passkey.garbage_characters);
  }
  EXPECT_NEAR(keys / 200, 0.5, 0.07);  // 3.4 standard errors
  EXPECT_NEAR(depths / 200, 0.5, 0.07);
}

TEST(Passkey, is_the_same_on_every_platform) {
  const Passkey passkey = make_passkey(word_codec(), {.length = 4096, .seed = 42, .trial = 3});
  EXPECT_EQ(hash_of(passkey.prompt), 0x9a7bc61279efaa77ull) << std::hex << hash_of(passkey.prompt);
  EXPECT_EQ(passkey.tokens.front(), kToyBos);
}

TEST(PasskeyHit, compares_the_first_integer_of_the_output) {
  EXPECT_TRUE(passkey_hit(" 123. The pass key is 9", 123));
  EXPECT_TRUE(passkey_hit("key:00123", 123));
  EXPECT_FALSE(passkey_hit(" 9, no, 123", 123));
  EXPECT_FALSE(passkey_hit(" 1234", 123));
  EXPECT_FALSE(passkey_hit("99999999999999999999999999", 123));
  EXPECT_FALSE(passkey_hit("none", 123));
  EXPECT_FALSE(passkey_hit("", 123));
}

}  // namespace
}  // namespace foveate::eval
