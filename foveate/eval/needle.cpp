#include "foveate/eval/needle.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/eval/needle_words.h"

namespace foveate::eval {
namespace {

constexpr uint64_t kNeedleStream = 0x6e65656400000000ull;  // + haystack index; apart from other tasks' draws ("need")

struct Word {
  std::string text;             // "garden"
  std::vector<int32_t> tokens;  // of " garden"
};

struct Fact {
  std::string key;
  const Word* value = nullptr;
  std::vector<int32_t> statement, question;
  size_t answer_offset = 0;  // of the value within the statement
};

struct Facts {
  std::vector<Fact> facts;          // by depth
  std::vector<const Word*> unused;  // shuffled words of no fact
  int64_t tokens = 0, longest_question = 0, longest_answer = 0;
};

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

void validate(const NeedleOptions& options) {
  require(options.haystacks >= 1, "needle: haystacks must be >= 1, got {}", options.haystacks);
  require(options.needles >= 1 && options.needles <= 101, "needle: needles must be in 1..101, got {}", options.needles);
  require(options.distractors >= 1, "needle: distractors must be >= 1, got {}", options.distractors);
  require(options.answer_budget >= 1, "needle: answer_budget must be >= 1, got {}", options.answer_budget);
}

// Words with distinct token sequences; only one-token words when there are `wanted` of them.
std::vector<Word> usable_words(const Codec& codec, size_t wanted, bool& single_token) {
  std::vector<Word> words, single;
  std::set<std::vector<int32_t>> seen;
  for (const std::string_view noun : common_nouns()) {
    Word word{std::string(noun), codec.encode(fmt::format(" {}", noun))};
    if (word.tokens.empty() || !seen.insert(word.tokens).second) continue;
    if (word.tokens.size() == 1) single.push_back(word);
    words.push_back(std::move(word));
  }
  single_token = single.size() >= wanted;
  require(single_token || words.size() >= wanted,
          "needle: needles and distractors need {} distinct words, the list gives {} with this tokenizer", wanted,
          words.size());
  return single_token ? single : words;
}

Facts draw_facts(const Codec& codec, std::span<const Word> words, int64_t count, Random& random) {
  std::vector<std::string_view> keys(city_names().begin(), city_names().end());
  std::vector<const Word*> values;
  for (const Word& word : words) values.push_back(&word);
  random.shuffle(std::span(keys));
  random.shuffle(std::span(values));

  Facts drawn;
  for (int64_t i = 0; i < count; ++i) {
    Fact fact{.key = std::string(keys[i]), .value = values[i], .statement = {}, .question = {}};
    fact.statement = codec.encode(fmt::format(" The special magic word for {} is:", fact.key));
    fact.answer_offset = fact.statement.size();
    append(fact.statement, fact.value->tokens);
    append(fact.statement, codec.encode("."));
    fact.question = codec.encode(fmt::format(
        "\n\nWhat is the special magic word for {}? The special magic word for {} is:", fact.key, fact.key));
    drawn.tokens += int64_t(fact.statement.size());
    drawn.longest_question = std::max(drawn.longest_question, int64_t(fact.question.size()));
    drawn.longest_answer = std::max(drawn.longest_answer, int64_t(fact.value->tokens.size()));
    drawn.facts.push_back(std::move(fact));
  }
  drawn.unused.assign(values.begin() + count, values.end());
  return drawn;
}

// Tells which tokens end a sentence: ".", "!" or "?", perhaps with quotes, brackets and white space behind.
class SentenceEnds {
 public:
  explicit SentenceEnds(const Codec& codec) : codec_(codec) {}

  bool ends(int32_t token) {
    const auto [entry, is_new] = known_.try_emplace(token, false);
    if (is_new) {
      std::string text = codec_.decode(std::span(&token, 1));
      while (!text.empty() && std::string_view(" \t\r\n\"')]").find(text.back()) != std::string_view::npos)
        text.pop_back();
      entry->second = !text.empty() && std::string_view(".!?").find(text.back()) != std::string_view::npos;
    }
    return entry->second;
  }

  // The largest position <= start that follows a sentence end, or 0.
  int64_t move_left(std::span<const int32_t> tokens, int64_t start) {
    while (start > 0 && !ends(tokens[start - 1])) --start;
    return start;
  }

 private:
  const Codec& codec_;
  std::unordered_map<int32_t, bool> known_;
};

void give_distractors(std::vector<Needle>& needles, const Facts& drawn, int64_t count, Random& random) {
  for (size_t i = 0; i < needles.size(); ++i) {
    std::vector<const Word*> others;
    for (size_t j = 0; j < needles.size(); ++j)
      if (j != i) others.push_back(drawn.facts[j].value);
    random.shuffle(std::span(others));
    std::vector<const Word*> spare = drawn.unused;
    random.shuffle(std::span(spare));
    others.insert(others.end(), spare.begin(), spare.end());
    for (int64_t d = 0; d < count; ++d) needles[i].distractors.push_back(others[d]->tokens);
  }
}

// Puts the facts into the prose, each at its depth.
Haystack bury(const Codec& codec, std::span<const int32_t> prose, const Facts& drawn, SentenceEnds& sentences) {
  Haystack haystack;
  if (codec.bos) haystack.tokens.push_back(*codec.bos);
  const int64_t count = int64_t(drawn.facts.size()), length = int64_t(prose.size());
  int64_t taken = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Fact& fact = drawn.facts[i];
    const int depth = depth_percent(i, count);
    const int64_t point = depth == 100 ? length : sentences.move_left(prose, length * depth / 100);
    append(haystack.tokens, prose.subspan(taken, point - taken));
    taken = point;
    const int64_t position = int64_t(haystack.tokens.size());
    append(haystack.tokens, fact.statement);
    haystack.needles.push_back({.key = fact.key,
                                .value = fact.value->text,
                                .depth_percent = depth,
                                .position = position,
                                .tokens = int64_t(fact.statement.size()),
                                .answer_position = position + int64_t(fact.answer_offset),
                                .question = fact.question,
                                .answer = fact.value->tokens,
                                .distractors = {}});
  }
  append(haystack.tokens, prose.subspan(taken));
  return haystack;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
  return result;
}

}  // namespace

int depth_percent(int64_t index, int64_t count) {
  return count == 1 ? 50 : int((200 * index + count - 1) / (2 * (count - 1)));
}

NeedleSet make_needles(const Codec& codec, std::span<const int32_t> text, const NeedleOptions& options) {
  validate(options);
  NeedleSet set;
  const size_t wanted = size_t(std::max(options.needles, options.distractors + 1));
  const std::vector<Word> words = usable_words(codec, wanted, set.single_token_answers);

  std::vector<Facts> drawn;
  std::vector<Random> randoms;
  int64_t facts_tokens = 0, question = 0;
  set.answer_budget = options.answer_budget;
  for (int64_t h = 0; h < options.haystacks; ++h) {
    Random& random = randoms.emplace_back(options.seed, kNeedleStream + uint64_t(h));
    const Facts& facts = drawn.emplace_back(draw_facts(codec, words, options.needles, random));
    facts_tokens = std::max(facts_tokens, facts.tokens);
    question = std::max(question, facts.longest_question);
    set.answer_budget = std::max(set.answer_budget, facts.longest_answer);
  }

  // At least as much prose as facts, or the test is a list to read and no haystack.
  const int64_t bos = codec.bos ? 1 : 0, minimum = bos + 2 * facts_tokens + question + set.answer_budget;
  require(options.length >= minimum, "needle: length must be >= {} tokens for {} needles, got {}", minimum,
          options.needles, options.length);
  const int64_t haystack_length = options.length - question - set.answer_budget;

  SentenceEnds sentences(codec);
  for (int64_t h = 0; h < options.haystacks; ++h) {
    const int64_t prose = haystack_length - bos - drawn[h].tokens, source = int64_t(text.size());
    require(source >= prose, "needle: the haystack text must have >= {} tokens, got {}", prose, source);
    const int64_t begin = sentences.move_left(text, int64_t(randoms[h].below(uint64_t(source - prose) + 1)));
    Haystack& haystack = set.haystacks.emplace_back(bury(codec, text.subspan(begin, prose), drawn[h], sentences));
    give_distractors(haystack.needles, drawn[h], options.distractors, randoms[h]);
  }
  return set;
}

int rank_of_answer(double answer_logprob, std::span<const double> distractor_logprobs) {
  require(!distractor_logprobs.empty(), "rank_of_answer: needs at least one distractor, got none");
  int rank = 0;
  for (const double other : distractor_logprobs) rank += answer_logprob > other ? 0 : 1;
  return rank;
}

bool contains_answer(std::string_view output, std::string_view answer) {
  require(!answer.empty(), "contains_answer: the answer must not be empty, got ''");
  return lower(output).find(lower(answer)) != std::string::npos;
}

}  // namespace foveate::eval
