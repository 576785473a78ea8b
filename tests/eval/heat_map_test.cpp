// Grids of needles and passkeys, and RULER's ranking, with a real model: what a mask hides can not be found.
#include "foveate/eval/heat_map.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "foveate/io/open_tokenizer.h"
#include "tests/eval/toy_codec.h"
#include "tests/support/real_model.h"

namespace foveate::eval {
namespace {

TEST(HeatMap, grids_are_even) {
  EXPECT_EQ(even_lengths(1000, 16000, 35).front(), 1000);
  EXPECT_EQ(even_lengths(1000, 16000, 35)[1], 1441);  // round(1000 + 15000 / 34)
  EXPECT_EQ(even_lengths(1000, 16000, 35).back(), 16000);
  EXPECT_EQ(even_lengths(5, 9, 1), (std::vector<int64_t>{9}));
  EXPECT_EQ((HeatMapOptions{.lengths = {}, .depths = 6}).depth_percent(), (std::vector<int>{0, 20, 40, 60, 80, 100}));
  EXPECT_THROW(even_lengths(2, 1, 3), Error);
  EXPECT_THROW((HeatMapOptions{.lengths = {0}}).validate(), Error);
  EXPECT_THROW((HeatMapOptions{.lengths = {}, .depths = 0}).validate(), Error);
}

TEST(HeatMap, prompts_are_of_their_length_and_depth) {
  const Codec codec = word_codec();
  std::string prose;
  for (int i = 0; i < 2000; ++i) prose += "Rain fell on the old town. ";
  const HeatMapOptions options{.lengths = {900, 1200}, .depths = 3, .prompts = 2, .seed = 4};
  const HeatPrompts prompts = make_heat_prompts(codec, codec.encode(prose), options);
  ASSERT_EQ(prompts.needles.size(), 2u);
  EXPECT_EQ(prompts.needles[1].haystacks.size(), 2u);
  EXPECT_EQ(prompts.needles[1].haystacks[0].needles[2].depth_percent, 100);
  ASSERT_EQ(prompts.passkeys[1].size(), 6u);
  for (const Passkey& passkey : prompts.passkeys[1]) {
    EXPECT_LE(std::ssize(passkey.tokens) + 10, 1200);
    EXPECT_GE(std::ssize(passkey.tokens) + 10, 1080);
  }
  EXPECT_EQ(prompts.passkeys[1][0].prefix_characters, 0);                                          // depth 0
  EXPECT_EQ(prompts.passkeys[1][5].prefix_characters, prompts.passkeys[1][5].garbage_characters);  // depth 100
}

class RealModel : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::real_model("smollm2")) GTEST_SKIP() << test::no_model("smollm2");
    const std::string path = *test::real_model("smollm2");
    tokenizer_ = io::open_tokenizer(path);
    decoder_ = std::make_unique<models::Decoder>(
        models::Decoder::load(models::Checkpoint::open(path), at::kBFloat16, models::WeightForm::packed));
  }
  std::vector<attention::Mechanism> mechanisms(std::string_view spec) const {
    return attention::make_mechanisms(spec, decoder_->layers());
  }
  std::unique_ptr<io::Tokenizer> tokenizer_;
  std::unique_ptr<models::Decoder> decoder_;
};

// 30 layers of a window of 8 carry nothing further than 210 tokens; sinks are read before the key stands there.
TEST_F(RealModel, a_policy_that_drops_the_needles_block_scores_nothing_there_alone) {
  const HeatMapOptions options{.lengths = {450}, .depths = 2, .prompts = 2};
  const Codec codec = codec_of(*tokenizer_);
  std::string prose;
  for (int i = 0; i < 120; ++i) prose += "The rain fell on the old town, and nobody was in the street. ";
  const HeatPrompts prompts = make_heat_prompts(codec, codec.encode(prose), options);
  const auto map = [&](std::string_view spec) {
    return run_heat_map(*decoder_, mechanisms(spec), *tokenizer_, prompts, attention::CacheType::model);
  };
  const HeatMap dense = map("dense"), narrow = map("window:size=8,sinks=4"), wide = map("window:size=200,sinks=4");
  EXPECT_EQ(dense.passkey[0], (std::vector<double>{1, 1}));
  EXPECT_EQ(narrow.passkey[0][0], 0);
  EXPECT_EQ(wide.passkey[0][1], 1);  // the key stands before the question
  // One prompt after the other gives what shared beginnings give.
  for (size_t i = 0; i < prompts.passkeys[0].size(); ++i)
    EXPECT_EQ(run_passkeys(*decoder_, mechanisms("dense"), *tokenizer_, {prompts.passkeys[0][i]},
                           attention::CacheType::model)[0],
              1);
}

TEST_F(RealModel, rulers_ranking_needs_the_needle) {
  const Codec codec = codec_of(*tokenizer_);
  std::vector<RulerSample> samples;
  for (uint64_t i = 0; i < 3; ++i) {
    samples.push_back(make_ruler(codec, "", {.task = "niah_single_1", .length = 700, .sample = i}));
    EXPECT_LE(std::ssize(samples.back().tokens) + samples.back().answer_budget, 700);
    EXPECT_GE(std::ssize(samples.back().tokens) + samples.back().answer_budget, 630);
    samples.back().answer_budget = 12;
  }
  const auto firsts = [&](std::string_view spec) {
    double sum = 0;
    for (const RulerResult& result :
         run_ruler(*decoder_, mechanisms(spec), *tokenizer_, samples, attention::CacheType::model))
      sum += result.ranked_first;
    return sum / 3;
  };
  EXPECT_EQ(firsts("dense"), 1);
  EXPECT_LT(firsts("window:size=8,sinks=4"), 1);
}

}  // namespace
}  // namespace foveate::eval
