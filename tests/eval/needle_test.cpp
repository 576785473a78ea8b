#include "foveate/eval/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "foveate/base/error.h"
#include "foveate/eval/interval.h"
#include "foveate/eval/needle_words.h"
#include "tests/eval/toy_codec.h"

namespace foveate::eval {
namespace {

using Tokens = std::vector<int32_t>;

std::string prose(int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i)
    text += i % 3 == 0 ? "The sailor looked at the quiet sea and said nothing. " : "Rain fell on the old town. ";
  return text;
}

Tokens slice(const Tokens& tokens, int64_t begin, int64_t count) {
  return Tokens(tokens.begin() + begin, tokens.begin() + begin + count);
}

// Everything that a set holds, as text.
std::string transcript(const Codec& codec, const NeedleSet& set) {
  std::string text;
  for (const Haystack& haystack : set.haystacks) {
    text += codec.decode(haystack.tokens);
    for (const Needle& needle : haystack.needles) {
      text += fmt::format("|{} {} {}", needle.depth_percent, needle.position, codec.decode(needle.question));
      for (const Tokens& wrong : needle.distractors) text += codec.decode(wrong);
    }
  }
  return text;
}

std::string error_of(const Codec& codec, const Tokens& text, const NeedleOptions& options) {
  try {
    make_needles(codec, text, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class Needles : public testing::TestWithParam<bool> {
 protected:
  Codec codec_ = GetParam() ? word_codec() : byte_codec();
  Tokens text_ = codec_.encode(prose(4000));
  NeedleOptions options_{.length = GetParam() ? 2048 : 9000, .haystacks = 3, .needles = 20, .seed = 7};
};

INSTANTIATE_TEST_SUITE_P(codec, Needles, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "words" : "bytes"; });

TEST_P(Needles, prompts_with_the_longest_question_and_the_budget_have_exactly_the_asked_length) {
  const NeedleSet set = make_needles(codec_, text_, options_);
  ASSERT_EQ(set.haystacks.size(), 3u);
  int64_t longest = 0, prompts = 0;
  for (const Haystack& haystack : set.haystacks) {
    EXPECT_EQ(haystack.tokens.size(), set.haystacks[0].tokens.size());
    for (const Needle& needle : haystack.needles) {
      longest = std::max(longest, int64_t(needle.question.size()));
      EXPECT_LE(int64_t(needle.answer.size()), set.answer_budget);
      ++prompts;
    }
  }
  EXPECT_EQ(int64_t(set.haystacks[0].tokens.size()) + longest + set.answer_budget, options_.length);
  EXPECT_EQ(prompts, 60);
  EXPECT_EQ(set.single_token_answers, GetParam());
}

TEST_P(Needles, stand_contiguous_at_the_reported_position) {
  const NeedleSet set = make_needles(codec_, text_, options_);
  for (const Haystack& haystack : set.haystacks)
    for (const Needle& needle : haystack.needles) {
      EXPECT_EQ(codec_.decode(slice(haystack.tokens, needle.position, needle.tokens)),
                fmt::format(" The special magic word for {} is: {}.", needle.key, needle.value));
      EXPECT_EQ(slice(haystack.tokens, needle.answer_position, int64_t(needle.answer.size())), needle.answer);
      EXPECT_EQ(codec_.decode(needle.answer), " " + needle.value);
    }
}

TEST_P(Needles, stand_behind_a_sentence_at_or_left_of_their_depth) {
  const NeedleSet set = make_needles(codec_, text_, options_);
  const int64_t bos = codec_.bos ? 1 : 0;
  for (const Haystack& haystack : set.haystacks) {
    int64_t inserted = 0;
    for (const Needle& needle : haystack.needles) inserted += needle.tokens;
    const int64_t length = int64_t(haystack.tokens.size()) - bos - inserted;
    int64_t before = bos, previous = -1;  // tokens that are not prose
    for (const Needle& needle : haystack.needles) {
      const int64_t point = needle.position - before, asked = length * needle.depth_percent / 100;
      EXPECT_LE(point, asked);
      EXPECT_GE(point, asked - 60) << "a sentence is at most 60 tokens here";
      EXPECT_GT(needle.depth_percent, previous);
      if (point > 0 && needle.depth_percent < 100) {
        EXPECT_EQ(codec_.decode(slice(haystack.tokens, needle.position - 1, 1)), ".");
      }
      before += needle.tokens, previous = needle.depth_percent;
    }
    EXPECT_EQ(haystack.needles.front().depth_percent, 0);
    EXPECT_EQ(haystack.needles.front().position, bos);
    EXPECT_EQ(haystack.needles.back().depth_percent, 100);
    EXPECT_EQ(haystack.needles.back().position + haystack.needles.back().tokens, int64_t(haystack.tokens.size()));
    if (codec_.bos) {
      EXPECT_EQ(haystack.tokens[0], *codec_.bos);
      EXPECT_EQ(std::count(haystack.tokens.begin(), haystack.tokens.end(), *codec_.bos), 1);
    }
  }
}

TEST_P(Needles, have_distinct_keys_and_values_and_distinct_wrong_answers_from_their_neighbours) {
  options_.distractors = 25;
  const NeedleSet set = make_needles(codec_, text_, options_);
  for (const Haystack& haystack : set.haystacks) {
    std::set<std::string> keys, values;
    std::set<Tokens> answers;
    for (const Needle& needle : haystack.needles) {
      keys.insert(needle.key), values.insert(needle.value), answers.insert(needle.answer);
    }
    EXPECT_EQ(keys.size(), 20u);
    EXPECT_EQ(values.size(), 20u);
    for (const Needle& needle : haystack.needles) {
      const std::set<Tokens> wrong(needle.distractors.begin(), needle.distractors.end());
      EXPECT_EQ(needle.distractors.size(), 25u);
      EXPECT_EQ(wrong.size(), 25u);
      EXPECT_FALSE(wrong.contains(needle.answer));
      const auto hard = std::count_if(wrong.begin(), wrong.end(), [&](const Tokens& w) { return answers.contains(w); });
      EXPECT_EQ(hard, 19) << "every other needle's value comes first";
    }
  }
}

TEST_P(Needles, are_found_by_a_model_that_copies_what_followed_the_question_before) {
  const NeedleSet set = make_needles(codec_, text_, options_);
  for (const Haystack& haystack : set.haystacks)
    for (const Needle& needle : haystack.needles) {
      const Tokens cue = codec_.encode(fmt::format(" for {} is:", needle.key));
      ASSERT_TRUE(std::equal(cue.rbegin(), cue.rend(), needle.question.rbegin()));
      const auto found = std::search(haystack.tokens.begin(), haystack.tokens.end(), cue.begin(), cue.end());
      ASSERT_NE(found, haystack.tokens.end());
      EXPECT_EQ(found + int64_t(cue.size()) - haystack.tokens.begin(), needle.answer_position);
    }
}

TEST_P(Needles, depend_on_the_seed_alone) {
  const std::string once = transcript(codec_, make_needles(codec_, text_, options_));
  EXPECT_EQ(once, transcript(codec_, make_needles(codec_, text_, options_)));
  options_.seed = 8;
  EXPECT_NE(once, transcript(codec_, make_needles(codec_, text_, options_)));
  EXPECT_EQ(hash_of(once), GetParam() ? 0xec0f3d909fbd303cull : 0x663b1d1bf8684120ull) << std::hex << hash_of(once);
}

TEST(Needle, haystacks_of_one_set_differ_in_prose_keys_and_values) {
  const Codec codec = byte_codec();
  const NeedleSet set = make_needles(codec, codec.encode(prose(4000)), {.length = 4000, .haystacks = 2, .needles = 5});
  EXPECT_NE(set.haystacks[0].tokens, set.haystacks[1].tokens);
  EXPECT_NE(set.haystacks[0].needles[0].key, set.haystacks[1].needles[0].key);
}

TEST(Needle, one_alone_stands_in_the_middle) {
  const Codec codec = byte_codec();
  const NeedleSet set = make_needles(codec, codec.encode(prose(400)), {.length = 4000, .haystacks = 1, .needles = 1});
  EXPECT_EQ(set.haystacks[0].needles[0].depth_percent, 50);
  EXPECT_EQ(set.haystacks[0].needles[0].distractors.size(), 20u);
}

TEST(Needle, moves_to_the_start_of_a_text_without_sentences) {
  const Codec codec = byte_codec();
  const NeedleSet set = make_needles(codec, Tokens(5000, 'x'), {.length = 3000, .haystacks = 1, .needles = 3});
  const std::vector<Needle>& needles = set.haystacks[0].needles;
  EXPECT_EQ(needles[1].position, needles[0].tokens);
  EXPECT_EQ(needles[2].position + needles[2].tokens, int64_t(set.haystacks[0].tokens.size()));
}

TEST(Needle, takes_a_text_of_exactly_the_needed_length_and_names_it_when_one_token_is_missing) {
  const Codec codec = byte_codec();
  const NeedleOptions options{.length = 4000, .haystacks = 1, .needles = 5};
  const std::string error = error_of(codec, Tokens(10, 'x'), options);
  ASSERT_TRUE(error.starts_with("needle: the haystack text must have >= ")) << error;
  const size_t needed = std::stoul(error.substr(error.find(">= ") + 3));
  EXPECT_EQ(error_of(codec, Tokens(needed, 'x'), options), "no error");
  EXPECT_EQ(error_of(codec, Tokens(needed - 1, 'x'), options),
            fmt::format("needle: the haystack text must have >= {} tokens, got {}", needed, needed - 1));
  EXPECT_NE(error_of(codec, {}, options), "no error");
}

TEST(Needle, names_the_smallest_length_and_works_with_it) {
  const Codec codec = word_codec();
  const Tokens text = codec.encode(prose(2000));
  NeedleOptions options{.length = 64};
  const std::string error = error_of(codec, text, options);
  ASSERT_TRUE(error.starts_with("needle: length must be >= ")) << error;
  options.length = std::stol(error.substr(error.find(">= ") + 3));
  EXPECT_EQ(error_of(codec, text, options), "no error");
  --options.length;
  EXPECT_NE(error_of(codec, text, options), "no error");
}

TEST(Needle, refuses_options_out_of_range) {
  const Codec codec = byte_codec();
  const Tokens text = codec.encode(prose(4000));
  EXPECT_EQ(error_of(codec, text, {.needles = 0}), "needle: needles must be in 1..101, got 0");
  EXPECT_EQ(error_of(codec, text, {.needles = 102}), "needle: needles must be in 1..101, got 102");
  EXPECT_EQ(error_of(codec, text, {.haystacks = 0}), "needle: haystacks must be >= 1, got 0");
  EXPECT_EQ(error_of(codec, text, {.distractors = 0}), "needle: distractors must be >= 1, got 0");
  EXPECT_EQ(error_of(codec, text, {.answer_budget = 0}), "needle: answer_budget must be >= 1, got 0");
  EXPECT_TRUE(error_of(codec, text, {.distractors = 1000}).starts_with("needle: needles and distractors need 1001"));
}

TEST(Needle, word_lists_hold_at_least_150_distinct_words) {
  const std::set<std::string_view> cities(city_names().begin(), city_names().end());
  const std::set<std::string_view> nouns(common_nouns().begin(), common_nouns().end());
  EXPECT_GE(cities.size(), 150u);
  EXPECT_GE(nouns.size(), 150u);
  EXPECT_EQ(cities.size(), city_names().size());
  EXPECT_EQ(nouns.size(), common_nouns().size());
  for (const std::string_view noun : nouns) EXPECT_GE(noun.size(), 4u) << noun;
}

TEST(RankOfAnswer, counts_ties_and_nan_against_the_answer) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(rank_of_answer(-1.0, std::vector{-2.0, -3.0}), 0);
  EXPECT_EQ(rank_of_answer(-2.0, std::vector{-1.0, -2.0, -3.0}), 2);
  EXPECT_EQ(rank_of_answer(nan, std::vector{-1.0, -2.0}), 2);
  EXPECT_EQ(rank_of_answer(-1.0, std::vector{nan, -2.0}), 1);
  EXPECT_THROW(rank_of_answer(0, {}), Error);
}

TEST(ContainsAnswer, ignores_case_and_says_no_to_an_empty_output) {
  EXPECT_TRUE(contains_answer(" It is GARDEN, of course", "garden"));
  EXPECT_FALSE(contains_answer(" gar den", "garden"));
  EXPECT_FALSE(contains_answer("", "garden"));
  EXPECT_THROW(contains_answer("x", ""), Error);
}

TEST(PairedInterval, is_exact_when_all_pairs_differ_alike) {
  const std::vector<double> ones(100, 1.0), zeros(100, 0.0);
  const Interval same = paired_interval(ones, ones, 3), all = paired_interval(ones, zeros, 3);
  EXPECT_EQ(same.mean, 0);
  EXPECT_EQ(same.low, 0);
  EXPECT_EQ(same.high, 0);
  EXPECT_EQ(all.mean, 1);
  EXPECT_EQ(all.low, 1);
  EXPECT_EQ(all.high, 1);
}

TEST(PairedInterval, has_the_width_of_the_normal_approximation_and_depends_on_the_seed_alone) {
  std::vector<double> mechanism(400), dense(400, 1.0);
  for (size_t i = 0; i < 400; ++i) mechanism[i] = i % 4 == 0 ? 0.0 : 1.0;  // differences: mean -0.25, variance 0.1875
  const Interval interval = paired_interval(mechanism, dense, 11);
  const double half = 1.96 * std::sqrt(0.1875 / 400);
  EXPECT_DOUBLE_EQ(interval.mean, -0.25);
  EXPECT_NEAR(interval.low, -0.25 - half, 0.006);
  EXPECT_NEAR(interval.high, -0.25 + half, 0.006);
  const Interval again = paired_interval(mechanism, dense, 11), other = paired_interval(mechanism, dense, 12);
  EXPECT_EQ(again.low, interval.low);
  EXPECT_EQ(again.high, interval.high);
  EXPECT_TRUE(other.low != interval.low || other.high != interval.high);
}

TEST(PairedInterval, refuses_lists_that_are_empty_or_of_different_sizes) {
  EXPECT_THROW(paired_interval({}, {}, 0), Error);
  EXPECT_THROW(paired_interval(std::vector{1.0}, std::vector{1.0, 2.0}, 0), Error);
}

}  // namespace
}  // namespace foveate::eval
