#include "foveate/eval/ruler.h"

#include <algorithm>
#include <set>

#include "foveate/base/error.h"
#include "foveate/eval/needle.h"
#include "foveate/eval/needle_words.h"
#include "foveate/eval/ruler_parts.h"

namespace foveate::eval {
namespace ruler {
namespace {

constexpr uint64_t kStream = 0x72756c0000000000ull;  // + task and sample; apart from other tests' draws ("rul")

constexpr std::string_view kAdjectives[] = {
    "amber",  "ancient", "blue",   "brave", "bright", "broken", "calm",   "clever", "cold",   "crisp",
    "dark",   "deep",    "dry",    "dusty", "early",  "empty",  "faint",  "famous", "fresh",  "gentle",
    "golden", "grand",   "green",  "happy", "heavy",  "hidden", "hollow", "humble", "jolly",  "late",
    "light",  "lively",  "lonely", "loud",  "lucky",  "mild",   "modern", "narrow", "noble",  "odd",
    "pale",   "plain",   "proud",  "quick", "quiet",  "rapid",  "rare",   "red",    "rough",  "round",
    "royal",  "rusty",   "sharp",  "shiny", "silent", "simple", "small",  "smooth", "steady", "sweet",
    "tall",   "tiny",    "tough",  "warm",  "wide",   "wild",   "wise",   "yellow", "young",  "zesty"};

constexpr int64_t kPairs = int64_t(std::size(kAdjectives)) * kCommonNouns;

// As in synthetic.yaml of NVIDIA/RULER: tokens to generate.
constexpr Task kTasks[] = {
    {"niah_single_1", 128, 1, make_needle_task, 0, false},
    {"niah_single_2", 128, 1, make_needle_task, 1, true},
    {"niah_single_3", 128, 1, make_needle_task, 2, true},
    {"niah_multikey_1", 128, 4, make_needle_task, 3, true},
    {"niah_multikey_2", 128, 2, make_needle_task, 4, false, kPairs - 1},  // the key of one needle more
    {"niah_multikey_3", 128, 2, make_needle_task, 5, false},
    {"niah_multivalue", 128, 4, make_needle_task, 6, true},
    {"niah_multiquery", 128, 4, make_needle_task, 7, true},
    {"vt", 30, 5, make_variables, 0, false},
    {"cwe", 120, 10, make_common_words, 0, false, kPairs - 50},  // words that repeat, and those of the example
    {"fwe", 50, 150, make_frequent_words, 0, false},
};

// Ends of sentences are ".", "!" or "?" before white space; the sentence keeps its mark.
std::vector<std::string_view> sentences_of(std::string_view prose) {
  std::vector<std::string_view> sentences;
  size_t start = 0;
  const auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  for (size_t i = 0; i + 1 < prose.size(); ++i) {
    if (std::string_view(".!?").find(prose[i]) == std::string_view::npos || !is_space(prose[i + 1])) continue;
    while (start < i && is_space(prose[start])) ++start;
    sentences.push_back(prose.substr(start, i + 1 - start));
    start = i + 1;
  }
  return sentences;
}

const Task& task_of(const std::string& name) {
  for (const Task& task : kTasks)
    if (task.name == name) return task;
  fail("ruler: unknown task '{}', known: {}", name, fmt::join(ruler_tasks(), " "));
}

RulerSample finished(const Codec& codec, const Task& task, const RulerOptions& options, Draft draft, Random& random) {
  RulerSample sample{.task = std::string(task.name),
                     .length = options.length,
                     .prompt = std::move(draft.prompt),
                     .tokens = {},
                     .references = draft.references,
                     .leads = std::move(draft.leads),
                     .distractors = {},
                     .answer_budget = task.answer_budget};
  if (codec.bos) sample.tokens.push_back(*codec.bos);
  const std::vector<int32_t> tokens = codec.encode(sample.prompt);
  sample.tokens.insert(sample.tokens.end(), tokens.begin(), tokens.end());
  for (size_t r = 0; r < sample.references.size(); ++r) {
    std::set<std::string> seen(draft.references.begin(), draft.references.end());
    std::vector<std::string> wrong;
    random.shuffle(std::span(draft.near));
    for (const std::string& near : draft.near)
      if (std::ssize(wrong) < options.distractors && seen.insert(near).second) wrong.push_back(near);
    while (std::ssize(wrong) < options.distractors)
      if (std::string more = draft.other(random); seen.insert(more).second) wrong.push_back(std::move(more));
    sample.distractors.push_back(std::move(wrong));
  }
  return sample;
}

}  // namespace

std::vector<std::string> draw_distinct(size_t count, const std::function<std::string()>& draw) {
  std::vector<std::string> drawn;
  std::set<std::string> seen;
  while (drawn.size() < count)
    if (std::string one = draw(); seen.insert(one).second) drawn.push_back(std::move(one));
  return drawn;
}

std::string random_letters(Random& random, int count, char first) {
  std::string word;
  for (int i = 0; i < count; ++i) word += char(first + int(random.below(26)));
  return word;
}

std::string random_word_pair(Random& random) {
  const std::span<const std::string_view> nouns = common_nouns();
  return fmt::format("{}-{}", kAdjectives[random.below(std::size(kAdjectives))], nouns[random.below(nouns.size())]);
}

}  // namespace ruler

std::span<const std::string_view> ruler_tasks() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const ruler::Task& task : ruler::kTasks) all.push_back(task.name);
    return all;
  }();
  return names;
}

RulerSample make_ruler(const Codec& codec, std::string_view prose, const RulerOptions& options) {
  const ruler::Task& task = ruler::task_of(options.task);
  require(options.distractors >= 1, "ruler: distractors must be >= 1, got {}", options.distractors);
  ruler::Source source{.sentences = {}, .length = options.length};
  if (task.needs_prose) source.sentences = ruler::sentences_of(prose);
  require(!task.needs_prose || !source.sentences.empty(), "ruler: {} needs prose with sentences, got {} bytes without",
          task.name, prose.size());
  const uint64_t stream = ruler::kStream + (uint64_t(&task - ruler::kTasks) << 32) + options.sample;
  const int64_t bos = codec.bos ? 1 : 0, room = options.length - task.answer_budget - bos;
  const auto draft = [&](int64_t units) {
    Random random(options.seed, stream);
    return task.make(source, units, random, task.variant);
  };
  const auto tokens_of = [&](int64_t units) { return std::ssize(codec.encode(draft(units).prompt)); };

  const int64_t least = tokens_of(task.minimum);
  require(least <= room, "ruler: length must be >= {} tokens for {}, got {}", least + task.answer_budget + bos,
          task.name, options.length);
  int64_t fits = task.minimum, too_many = 2 * task.minimum;
  while (too_many <= task.most && tokens_of(too_many) <= room) fits = too_many, too_many *= 2;
  too_many = std::min(too_many - 1, task.most) + 1;
  while (too_many - fits > 1) {
    const int64_t middle = fits + (too_many - fits) / 2;
    (tokens_of(middle) <= room ? fits : too_many) = middle;
  }
  require(fits < task.most || room == tokens_of(fits),
          "ruler: length must be <= {} tokens for {}, which has no more different words, got {}",
          tokens_of(fits) + task.answer_budget + bos, task.name, options.length);
  Random random(options.seed, stream + (uint64_t{1} << 31));
  return ruler::finished(codec, task, options, draft(fits), random);
}

double ruler_score(std::string_view output, std::span<const std::string> references) {
  require(!references.empty(), "ruler: a score needs references, got none");
  std::string text(output);
  for (char& c : text)
    if (uint8_t(c) < 32) c = '\n';
  double found = 0;
  for (const std::string& reference : references) found += contains_answer(text, reference);
  return found / double(references.size());
}

}  // namespace foveate::eval
