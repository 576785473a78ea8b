#include "foveate/eval/ruler.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "tests/eval/toy_codec.h"

namespace foveate::eval {
namespace {

std::string prose() {
  std::string text;
  for (int i = 0; i < 900; ++i)
    text += i % 3 == 0 ? "The sailor looked at the quiet sea and said nothing. " : "Rain fell on the old town!\n";
  return text;
}

std::string error_of(const Codec& codec, const RulerOptions& options, std::string_view text) {
  try {
    make_ruler(codec, text, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::set<std::string> matches(const std::string& text, const std::string& pattern) {
  std::set<std::string> found;
  const std::regex expression(pattern);
  for (std::sregex_iterator it(text.begin(), text.end(), expression), end; it != end; ++it) found.insert((*it)[1]);
  return found;
}

std::string escaped(std::string text) { return std::regex_replace(text, std::regex("[.-]"), "\\$&"); }

std::string joined(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += word + ", ";
  return text;
}

// What a perfect reader answers: it knows the prompt alone.
std::string oracle_answer(const RulerSample& sample) {
  const std::string& prompt = sample.prompt;
  const std::string question = prompt.substr(prompt.rfind(sample.task == "vt" ? "Follow" : "\n"));
  if (sample.task.starts_with("niah")) {
    std::set<std::string> found;
    for (const std::string& key : matches(prompt, "magic \\w+ for (\\S+) is: "))
      if (question.find(key) != std::string::npos)
        found.merge(matches(prompt, "for " + escaped(key) + " is: (\\S+)\\."));
    return joined(found);
  }
  if (sample.task == "vt") {  // follows the assignments behind the example
    std::map<std::string, std::string> value_of;
    const std::regex line("VAR (\\w+) = (?:VAR )?(\\w+)\n");
    for (std::sregex_iterator it(question.begin(), question.end(), line), end; it != end; ++it)
      value_of[(*it)[1]] = value_of.contains((*it)[2]) ? value_of[(*it)[2]] : std::string((*it)[2]);
    const std::string wanted = *matches(question, "hold the value (\\d+):").begin();
    std::set<std::string> found;
    for (const auto& [name, value] : value_of)
      if (value == wanted) found.insert(name);
    return joined(found);
  }
  std::map<std::string, int> counts;
  const size_t last = prompt.rfind("\nQuestion"), first = prompt.rfind('\n', last - 1);
  const std::string list = prompt.substr(first + 1, last - first - 1);
  const std::regex word(sample.task == "cwe" ? "\\d+\\. (\\S+)" : "([a-z]{6})");
  for (std::sregex_iterator it(list.begin(), list.end(), word), end; it != end; ++it) ++counts[(*it)[1]];
  std::vector<std::pair<int, std::string>> order;
  for (const auto& [text, count] : counts) order.emplace_back(-count, text);
  std::sort(order.begin(), order.end());
  std::set<std::string> found;
  for (size_t i = 0; i < (sample.task == "cwe" ? 10u : 3u); ++i) found.insert(order[i].second);
  return joined(found);
}

class Ruler : public testing::TestWithParam<std::string_view> {
 protected:
  RulerSample make(const Codec& codec, int64_t length, uint64_t sample = 0) const {
    return make_ruler(codec, prose_, {.task = std::string(GetParam()), .length = length, .seed = 3, .sample = sample});
  }
  std::string prose_ = prose();
};

INSTANTIATE_TEST_SUITE_P(tasks, Ruler, testing::ValuesIn(ruler_tasks().begin(), ruler_tasks().end()),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Ruler, length_is_within_a_tenth_of_the_target_and_never_above) {
  for (const Codec& codec : {byte_codec(), word_codec()})
    for (const int64_t length : {8192, 12000, 20000}) {
      const RulerSample sample = make(codec, length);
      const int64_t used = std::ssize(sample.tokens) + sample.answer_budget;
      EXPECT_LE(used, length);
      EXPECT_GE(double(used), 0.9 * double(length));
      EXPECT_EQ(codec.decode(sample.tokens), sample.prompt);
      EXPECT_EQ(sample.tokens.front() == kToyBos, codec.bos.has_value());
    }
}

TEST_P(Ruler, every_reference_stands_in_the_prompt_and_distractors_are_none) {
  const RulerSample sample = make(byte_codec(), 16000);
  ASSERT_FALSE(sample.references.empty());
  EXPECT_EQ(std::set(sample.references.begin(), sample.references.end()).size(), sample.references.size());
  EXPECT_EQ(sample.leads.size(), sample.references.size());
  ASSERT_EQ(sample.distractors.size(), sample.references.size());
  for (const std::string& reference : sample.references)
    EXPECT_NE(sample.prompt.find(reference), std::string::npos) << reference;
  for (const auto& wrong : sample.distractors) {
    EXPECT_EQ(wrong.size(), 20u);
    EXPECT_EQ(std::set(wrong.begin(), wrong.end()).size(), wrong.size());
    for (const std::string& reference : sample.references)
      EXPECT_EQ(std::count(wrong.begin(), wrong.end(), reference), 0);
  }
}

TEST_P(Ruler, one_who_reads_the_prompt_scores_all_and_one_who_guesses_nothing) {
  for (uint64_t trial = 0; trial < 5; ++trial) {
    const RulerSample sample = make(byte_codec(), 16000, trial);
    EXPECT_EQ(ruler_score(oracle_answer(sample), sample.references), 1) << oracle_answer(sample);
    std::string guess;
    Random random(trial);
    for (int i = 0; i < 128; ++i) guess += char('!' + random.below(90));
    EXPECT_EQ(ruler_score(guess, sample.references), 0);
    EXPECT_EQ(ruler_score("", sample.references), 0);
  }
}

TEST_P(Ruler, is_a_pure_function_of_seed_and_sample) {
  const Codec codec = byte_codec();
  EXPECT_EQ(make(codec, 9000).prompt, make(codec, 9000).prompt);
  EXPECT_NE(make(codec, 9000).references, make(codec, 9000, 1).references);
}

TEST_P(Ruler, says_which_length_is_too_short) {
  const std::string error = error_of(byte_codec(), {.task = std::string(GetParam()), .length = 200}, prose_);
  EXPECT_NE(error.find("tokens for"), std::string::npos) << error;
  EXPECT_NE(error.find("got 200"), std::string::npos) << error;
}

TEST(RulerTasks, numbers_of_keys_values_and_questions_are_rulers) {
  const auto sample = [](const char* task) {
    return make_ruler(byte_codec(), prose(), {.task = task, .length = 12000, .seed = 1});
  };
  const auto needles = [](const RulerSample& s) { return matches(s.prompt, "is: (\\S+)\\.").size(); };
  EXPECT_EQ(needles(sample("niah_single_2")), 1u);
  EXPECT_EQ(needles(sample("niah_multikey_1")), 4u);
  EXPECT_EQ(sample("niah_multikey_1").references.size(), 1u);
  EXPECT_GT(needles(sample("niah_multikey_2")), 50u);
  EXPECT_EQ(sample("niah_multivalue").references.size(), 4u);
  EXPECT_EQ(matches(sample("niah_multivalue").prompt, "for (\\S+) is: ").size(), 1u);
  EXPECT_EQ(sample("niah_multiquery").references.size(), 4u);
  EXPECT_EQ(matches(sample("niah_multiquery").prompt, "for (\\S+) is: ").size(), 4u);
  EXPECT_EQ(sample("niah_single_3").references[0].size(), 36u);
  EXPECT_EQ(sample("niah_single_3").references[0][14], '4');
  EXPECT_EQ(sample("niah_single_1").references[0].size(), 7u);
  EXPECT_EQ(sample("vt").references.size(), 5u);
  EXPECT_EQ(sample("vt").references[0].size(), 5u);
  EXPECT_EQ(sample("cwe").references.size(), 10u);
  EXPECT_EQ(sample("fwe").references.size(), 3u);
}

TEST(RulerTasks, frequent_words_follow_the_zeta_law) {
  const std::vector<int64_t> counts = frequent_word_counts(1000, 4);
  EXPECT_EQ(counts, (std::vector<int64_t>{607, 151, 67, 37}));
  EXPECT_EQ(frequent_word_counts(10, 100), (std::vector<int64_t>{6, 1}));
}

TEST(RulerTasks, scores_are_shares_of_contained_references) {
  const std::vector<std::string> references = {"Alpha", "beta"};
  EXPECT_EQ(ruler_score("xALPHAx", references), 0.5);
  EXPECT_EQ(ruler_score("beta alpha", references), 1);
  EXPECT_THROW(ruler_score("x", {}), Error);
}

TEST(RulerTasks, say_where_words_run_out) {
  // 70 adjectives before 210 nouns, one of them the key that is asked for
  for (const auto& [task, length] : {std::pair("niah_multikey_2", 400'000), {"cwe", 600'000}}) {
    const std::string error = error_of(word_codec(), {.task = task, .length = length}, "");
    EXPECT_NE(error.find(fmt::format("for {}, which has no more different words, got {}", task, length)),
              std::string::npos)
        << error;
    const int64_t most = std::stoll(error.substr(std::string_view("ruler: length must be <= ").size()));
    const RulerSample longest = make_ruler(word_codec(), "", {.task = task, .length = most});
    EXPECT_EQ(std::ssize(longest.tokens) + longest.answer_budget, most);
    EXPECT_NE(error_of(word_codec(), {.task = task, .length = most + 1}, ""), "no error");
  }
  const RulerSample sample = make_ruler(word_codec(), "", {.task = "niah_multikey_2", .length = 150'000});
  EXPECT_GT(std::ssize(sample.tokens), 149'000);  // twice as many lines as fit would need more words than there are
}

TEST(RulerTasks, refuse_what_they_do_not_know) {
  EXPECT_NE(error_of(byte_codec(), {.task = "qa_1"}, "").find("unknown task 'qa_1', known: niah_single_1"),
            std::string::npos);
  EXPECT_NE(error_of(byte_codec(), {.task = "niah_single_2", .length = 9000}, "no end").find("needs prose"),
            std::string::npos);
}

}  // namespace
}  // namespace foveate::eval
