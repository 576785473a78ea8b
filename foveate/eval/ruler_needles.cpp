// RULER's needle tasks: one fact or several, of words, numbers or identifiers, in lines that repeat, in prose, or among
// needles of the same kind.
#include <algorithm>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/eval/ruler_parts.h"

namespace foveate::eval::ruler {
namespace {

enum class Haystack { noise, essay, needles };
enum class Kind { word, number, uuid };

struct Variant {
  Haystack haystack;
  Kind key, value;
  int64_t keys, values, queries;
};
constexpr Variant kVariants[] = {
    {Haystack::noise, Kind::word, Kind::number, 1, 1, 1},    // single_1
    {Haystack::essay, Kind::word, Kind::number, 1, 1, 1},    // single_2
    {Haystack::essay, Kind::word, Kind::uuid, 1, 1, 1},      // single_3
    {Haystack::essay, Kind::word, Kind::number, 4, 1, 1},    // multikey_1
    {Haystack::needles, Kind::word, Kind::number, 1, 1, 1},  // multikey_2
    {Haystack::needles, Kind::uuid, Kind::uuid, 1, 1, 1},    // multikey_3
    {Haystack::essay, Kind::word, Kind::number, 1, 4, 1},    // multivalue
    {Haystack::essay, Kind::word, Kind::number, 4, 1, 4},    // multiquery
};

std::string draw(Kind kind, Random& random) {
  if (kind == Kind::word) return random_word_pair(random);
  if (kind == Kind::number) return std::to_string(1'000'000 + random.below(9'000'000));
  const uint64_t high = random.next_u64(), low = random.next_u64();  // a random (version 4) identifier
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", high >> 32, high >> 16 & 0xffff, high & 0xfff,
                     0x8000 | (low >> 48 & 0x3fff), low & 0xffffffffffff);
}

std::string_view plural(Kind kind) { return kind == Kind::word ? "words" : kind == Kind::number ? "numbers" : "uuids"; }
std::string_view singular(Kind kind) { return plural(kind).substr(0, plural(kind).size() - 1); }

std::string statement(Kind kind, std::string_view key, std::string_view value) {
  return fmt::format("One of the special magic {} for {} is: {}.", plural(kind), key, value);
}

// Where `count` needles stand among `units`: at random lines, in prose at distinct depths of round(linspace(0, 100,
// 40)) percent; ascending.
std::vector<int64_t> places(Haystack haystack, int64_t units, size_t count, Random& random) {
  std::vector<int64_t> at;
  if (haystack == Haystack::essay) {
    std::vector<int64_t> percents(40);
    for (size_t i = 0; i < percents.size(); ++i) percents[i] = int64_t(double(i) * 100 / 39 + 0.5);
    random.shuffle(std::span(percents));
    for (size_t i = 0; i < count; ++i) at.push_back(units * percents[i] / 100);
  } else {
    for (size_t i = 0; i < count; ++i) at.push_back(int64_t(random.below(uint64_t(units) + 1)));
  }
  std::sort(at.begin(), at.end());
  return at;
}

// `units` lines or sentences with the needles in their places.
std::string bury(const std::vector<std::string>& needles, const std::vector<int64_t>& at, int64_t units,
                 std::string_view between, const std::function<std::string(int64_t)>& unit) {
  std::string text;
  size_t next = 0;
  const auto add = [&](const std::string& piece) { text += (text.empty() ? "" : std::string(between)) + piece; };
  for (int64_t i = 0; i <= units; ++i) {
    for (; next < needles.size() && at[next] == i; ++next) add(needles[next]);
    if (i < units) add(unit(i));
  }
  return text;
}

std::string enumeration(std::span<const std::string> keys) {
  if (keys.size() == 1) return keys[0];
  return fmt::format("{}, and {}", fmt::join(keys.first(keys.size() - 1), ", "), keys.back());
}

std::string with_question(const std::string& context, Kind kind, const std::string& query, bool is_one) {
  const std::string_view name = is_one ? singular(kind) : plural(kind), verb = is_one ? "is" : "are";
  return fmt::format(
      "Special magic {} are hidden in the text below. Keep them in mind: a question about them follows the "
      "text.\n{}\nWhat {} {} special magic {} for {} that the text names? The special magic {} for {} that the text "
      "names {}",
      plural(kind), context, verb, is_one ? "the" : "all the", name, query, name, query, verb);
}

}  // namespace

Draft make_needle_task(const Source& source, int64_t units, Random& random, int variant) {
  const Variant& v = kVariants[variant];
  const auto keys = draw_distinct(size_t(v.keys), [&] { return draw(v.key, random); });
  const auto values = draw_distinct(size_t(v.keys * v.values), [&] { return draw(v.value, random); });
  std::vector<std::string> needles;
  for (size_t i = 0; i < values.size(); ++i)
    needles.push_back(statement(v.value, keys[i / size_t(v.values)], values[i]));
  random.shuffle(std::span(needles));
  const std::vector<int64_t> at = places(v.haystack, units, needles.size(), random);

  Draft draft;
  const Kind value_kind = v.value;
  draft.other = [value_kind](Random& r) { return draw(value_kind, r); };
  const size_t asked = size_t(v.queries * v.values);
  draft.references.assign(values.begin(), values.begin() + int64_t(asked));
  draft.near.assign(values.begin() + int64_t(asked), values.end());
  for (size_t i = 0; i < asked; ++i) draft.leads.push_back(i == 0 ? "" : ",");

  std::vector<std::string> others;
  if (v.haystack == Haystack::needles) {
    const auto other_keys = draw_distinct(size_t(units) + 1, [&] { return draw(v.key, random); });
    const auto other_values = draw_distinct(size_t(units) + 1, [&] { return draw(v.value, random); });
    for (size_t i = 0; i < size_t(units) + 1 && others.size() < size_t(units); ++i) {
      if (other_keys[i] == keys[0] || other_values[i] == values[0]) continue;
      others.push_back(statement(v.value, other_keys[i], other_values[i]));
      draft.near.push_back(other_values[i]);
    }
  }
  const size_t first = v.haystack == Haystack::essay ? random.below(source.sentences.size()) : 0;
  const std::string context =
      bury(needles, at, units, v.haystack == Haystack::essay ? " " : "\n", [&](int64_t i) -> std::string {
        if (v.haystack == Haystack::noise) return std::string(kNoise);
        if (v.haystack == Haystack::needles) return others[size_t(i)];
        return std::string(source.sentences[(first + size_t(i)) % source.sentences.size()]);
      });
  const std::vector<std::string> queried(keys.begin(), keys.begin() + v.queries);
  draft.prompt = with_question(context, v.value, enumeration(queried), asked == 1);
  return draft;
}

}  // namespace foveate::eval::ruler
