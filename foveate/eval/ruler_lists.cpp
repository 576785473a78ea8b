// RULER's variable tracking, common words and frequent words.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "foveate/base/error.h"
#include "foveate/eval/needle_words.h"
#include "foveate/eval/ruler.h"
#include "foveate/eval/ruler_parts.h"

namespace foveate::eval {
namespace ruler {
namespace {

constexpr double kZeta2 = 1.6449340668482264;

std::string upper_name(Random& random, int letters) { return random_letters(random, letters, 'A'); }

// A chain of variables in lines of noise, and the question about them, up to the answer.
std::string chain_text(std::span<const std::string> names, int64_t value, int64_t lines, Random& random) {
  std::vector<int64_t> at(static_cast<size_t>(lines));
  std::iota(at.begin(), at.end(), 0);
  random.shuffle(std::span(at));
  at.resize(names.size());
  std::sort(at.begin(), at.end());
  std::string text;
  size_t next = 0;
  for (int64_t line = 0; line < lines; ++line) {
    text += fmt::format("{}\n", kNoise);
    if (next == names.size() || at[next] != line) continue;
    text += next == 0 ? fmt::format("VAR {} = {}\n", names[0], value)
                      : fmt::format("VAR {} = VAR {}\n", names[next], names[next - 1]);
    ++next;
  }
  return fmt::format(
      "Follow the assignments of variables that are hidden in the text below.\n\n{}\nQuestion: Which variables hold "
      "the "
      "value {} in the text above? Answer: By the chain of assignments in the text above, {} variables hold the value "
      "{}:",
      text, value, names.size(), value);
}

// "1. apple 2. river ...": every word `common` times or `rare` times, shuffled.
struct WordList {
  std::vector<std::string> common, rare;
  int64_t common_times, rare_times;

  std::string text(Random& random) const {
    std::vector<const std::string*> all;
    for (const std::string& word : common) all.insert(all.end(), size_t(common_times), &word);
    for (const std::string& word : rare) all.insert(all.end(), size_t(rare_times), &word);
    random.shuffle(std::span(all));
    std::string list;
    for (size_t i = 0; i < all.size(); ++i) list += fmt::format("{}{}. {}", i == 0 ? "" : " ", i + 1, *all[i]);
    return fmt::format(
        "Below is a numbered list of words. Some of the words stand in it often, others seldom. Remember those that "
        "stand in it most often.\n{}\nQuestion: Which {} words are the most common in the list above? Answer: The {} "
        "most common words in the list above are:",
        list, common.size(), common.size());
  }
};

// Different words: single ones first, pairs of words when those run out.
std::vector<std::string> draw_words(int64_t count, Random& random) {
  std::vector<std::string> pool;
  for (const std::string_view noun : common_nouns()) pool.emplace_back(noun);
  random.shuffle(std::span(pool));
  const size_t single = pool.size();
  if (count > std::ssize(pool)) {
    const auto pairs = draw_distinct(size_t(count) - single, [&] { return random_word_pair(random); });
    pool.insert(pool.end(), pairs.begin(), pairs.end());
  }
  pool.resize(size_t(count));
  return pool;
}

}  // namespace

Draft make_variables(const Source&, int64_t units, Random& random, int) {
  constexpr size_t kVariables = 5;  // a value and four hops
  constexpr int64_t kExampleLines = 10;
  const auto value = [&] { return 10'000 + int64_t(random.below(90'000)); };
  const auto names = draw_distinct(kVariables, [&] { return upper_name(random, 5); });
  const auto example = draw_distinct(kVariables, [&] { return upper_name(random, 3); });
  const int64_t wanted = value(), shown = value();
  Draft draft;
  draft.prompt = fmt::format("{} {}\n\n", chain_text(example, shown, kExampleLines, random), fmt::join(example, ", "));
  draft.prompt += chain_text(names, wanted, units, random);
  draft.references = names;
  for (size_t i = 0; i < kVariables; ++i) draft.leads.push_back(i == 0 ? "" : ",");
  draft.near = example;
  draft.other = [](Random& r) { return upper_name(r, 5); };
  return draft;
}

Draft make_common_words(const Source& source, int64_t units, Random& random, int) {
  const bool is_short = source.length < 4096;
  const std::vector<std::string> words = draw_words(units + 10 + 40, random);
  const auto slice = [&](int64_t first, int64_t count) {
    return std::vector<std::string>(words.begin() + first, words.begin() + first + count);
  };
  const int64_t example_rare = is_short ? 10 : 30;
  const WordList example{slice(0, 10), slice(10, example_rare), is_short ? 3 : 10, is_short ? 1 : 3};
  const WordList list{slice(40, 10), slice(50, units), is_short ? 6 : 30, is_short ? 1 : 3};
  Draft draft;
  std::string shown;
  for (size_t i = 0; i < example.common.size(); ++i) shown += fmt::format(" {}. {}", i + 1, example.common[i]);
  draft.prompt = fmt::format("{}{}\n\n", example.text(random), shown);
  draft.prompt += list.text(random);
  draft.references = list.common;
  for (size_t i = 0; i < draft.references.size(); ++i) draft.leads.push_back(fmt::format(" {}.", i + 1));
  draft.near = list.rare;
  draft.other = [](Random& r) { return random_word_pair(r); };
  return draft;
}

Draft make_frequent_words(const Source& source, int64_t units, Random& random, int) {
  const auto word = [&] { return random_letters(random, 6, 'a'); };
  const auto vocabulary = draw_distinct(size_t(std::max<int64_t>(source.length / 50, 8)), word);
  const std::vector<int64_t> counts = frequent_word_counts(units, std::ssize(vocabulary));
  std::vector<std::string_view> text;
  for (size_t rank = 0; rank < counts.size(); ++rank)
    text.insert(text.end(), size_t(counts[rank]), rank == 0 ? std::string_view("...") : vocabulary[rank]);
  random.shuffle(std::span(text));
  Draft draft;
  draft.prompt = fmt::format(
      "Read the following coded text and keep track of how often each coded word stands in it. Ignore the dots "
      "'....'.\n{}\nQuestion: Which are the three coded words that stand most often in the text above? Answer: By the "
      "coded text above, the three words that stand in it most often are:",
      fmt::join(text, " "));
  draft.references.assign(vocabulary.begin() + 1, vocabulary.begin() + 4);
  draft.leads = {"", ",", ","};
  draft.near.assign(vocabulary.begin() + 4, vocabulary.begin() + int64_t(std::max<size_t>(counts.size(), 4)));
  draft.other = [](Random& r) { return random_letters(r, 6, 'a'); };
  return draft;
}

}  // namespace ruler

std::vector<int64_t> frequent_word_counts(int64_t n, int64_t ranks) {
  std::vector<int64_t> counts;
  for (int64_t rank = 1; rank <= ranks; ++rank) {
    const auto count = int64_t(std::floor(double(n) / double(rank * rank) / ruler::kZeta2));
    if (count == 0) break;
    counts.push_back(count);
  }
  return counts;
}

}  // namespace foveate::eval
