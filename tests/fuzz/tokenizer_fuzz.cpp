// Fuzz target of tokenizer.json: any text gives a tokenizer that takes any bytes, or an Error of one line.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/fuzz/file_fuzz.h"
#include "tests/io/tiny_tokenizer_json.h"
#include "tests/support/mixed_text.h"

namespace {

using foveate::Random;
using foveate::test::json;

constexpr size_t kLongest = 2000;  // bytes of a message: some list every stage that there is

template <class Action>
bool succeeds(Action&& action) {
  return foveate::test::succeeds(action, kLongest);
}

void use(const foveate::io::Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true})
    succeeds([&] {  // a pattern may need more ways than it is given
      const auto ids = tokenizer.encode(text, {.add_special = special, .parse_special = special});
      for (const int32_t id : ids)
        if (id < 0 || id >= tokenizer.size()) std::abort();
      tokenizer.decode(ids, special);
    });
  succeeds([&] { tokenizer.lost_bytes(); });
}

}  // namespace

// Up to the first NUL is the file, up to the second what stands beside it, the rest a text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.find('\0'), size), next = std::min(all.find('\0', std::min(end + 1, size)), size);
  foveate::io::TokenizerFiles files{.tokenizer = std::string(all.substr(0, end))};
  files.config = files.generation_config = files.special_tokens = files.chat_template =
      std::string(all.substr(std::min(end + 1, size), next - std::min(end + 1, size)));
  std::unique_ptr<foveate::io::Tokenizer> tokenizer;
  for (const bool with_others : {true, false}) {
    if (!with_others) files.config = files.generation_config = files.special_tokens = files.chat_template = "";
    succeeds([&] { tokenizer = foveate::io::parse_tokenizer_json(files, "fuzz/tokenizer.json"); });
  }
  if (!tokenizer) return 0;
  use(*tokenizer, all.substr(next));
  use(*tokenizer, " abc  a\u0301\u00E9 \u4E2D\xFF<tag></s>[SEP] 12.\n\u3000");
  return 0;
}

#ifndef FOVEATE_LIBFUZZER
namespace {

json piece(const char* type, json options = json::object()) {
  options["type"] = type;
  return options;
}

json pattern(const char* text) { return {{"Regex", text}}; }

std::vector<json> seed_files() {
  namespace test = foveate::test;
  std::vector<json> files = {test::tiny_bpe(), test::tiny_word_piece(), test::tiny_unigram(), test::tiny_word_level()};
  json many = test::tiny_bpe();
  many["normalizer"] =
      piece("Sequence",
            {{"normalizers",
              {piece("NFC"), piece("NFKD"), piece("Lowercase"), piece("StripAccents"), piece("Nmt"),
               piece("Prepend", {{"prepend", "_"}}), piece("Strip", {{"strip_left", true}, {"strip_right", true}}),
               piece("Replace", {{"pattern", pattern("\\s+|[a-c]*?x")}, {"content", "-"}}),
               piece("Precompiled", {{"precompiled_charsmap", "CAAAAAAEAAAABAAAYWIA"}})}}});
  many["pre_tokenizer"] = piece(
      "Sequence", {{"pretokenizers",
                    {piece("Split", {{"pattern", pattern("(?i:'s|[^\\p{L}\\d]{1,3}?)|\\b\\w*")},
                                     {"behavior", "MergedWithNext"},
                                     {"invert", false}}),
                     piece("Digits", {{"individual_digits", true}}), piece("Punctuation", {{"behavior", "Contiguous"}}),
                     piece("CharDelimiterSplit", {{"delimiter", "b"}}),
                     piece("Metaspace", {{"replacement", "_"}, {"prepend_scheme", "first"}, {"split", true}}),
                     piece("ByteLevel", {{"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}})}}});
  many["decoder"] =
      piece("Sequence", {{"decoders",
                          {piece("ByteLevel"), piece("Strip", {{"content", "a"}, {"start", 1}, {"stop", 2}}),
                           piece("BPEDecoder", {{"suffix", "b"}})}}});
  files.push_back(many);
  many["model"] = test::tiny_unigram()["model"];
  many["added_tokens"] = json::array({{{"id", 7}, {"content", "<tag>"}, {"lstrip", true}, {"single_word", true}}});
  many["post_processor"] = nullptr;
  files.push_back(many);
  return files;
}

// Any value of the file, by a walk from its root.
json& pick(json& root, Random& random) {
  json* at = &root;
  while (at->is_structured() && !at->empty() && random.below(6) != 0) {
    auto next = at->begin();
    std::advance(next, ptrdiff_t(random.below(at->size())));
    at = &*next;
  }
  return *at;
}

json odd_value(Random& random) {
  const json values[] = {
      nullptr, true, 0,           -1,       1.5,          2147483647, 2147483648U,   ~uint64_t{0},   "",   "a",
      "a b",   "\n", "[^\\s(]*?", "(a*)*b", "{,3}\\p{L}", "\u4E2D",   json::array(), json::object(), "##", "<unk>"};
  return values[random.below(std::size(values))];
}

void mutate_value(json& file, const std::vector<json>& seeds, Random& random) {
  json& place = pick(file, random);
  switch (random.below(5)) {
    case 0:
      place = odd_value(random);
      break;
    case 1: {
      json other = seeds[random.below(seeds.size())];
      place = json(pick(other, random));
      break;
    }
    case 2:
      if (place.is_structured() && !place.empty()) {
        auto gone = place.begin();
        std::advance(gone, ptrdiff_t(random.below(place.size())));
        place.erase(gone);
      }
      break;
    case 3:
      if (place.is_array())
        place.push_back(place.empty() ? odd_value(random) : json(place[random.below(place.size())]));
      else if (place.is_object())
        place["key"] = odd_value(random);
      break;
    default:
      if (place.is_string() && !place.get_ref<const std::string&>().empty()) {
        std::string text = place;
        constexpr std::string_view kLetters = "()[]{}|*+?\\^$.&-,:#<>!=abcwsdpPLN019 ";
        text[random.below(text.size())] = kLetters[random.below(kLetters.size())];
        place = text;
      } else if (place.is_number()) {
        place = int64_t(random.below(20)) - 2;
      }
  }
}

void mutate_text(std::string& text, Random& random) {
  if (text.empty()) return;
  const size_t at = random.below(text.size()), length = random.below(std::min<size_t>(text.size() - at, 32) + 1);
  switch (random.below(4)) {
    case 0:
      text[at] = char(1 + random.below(255));
      break;
    case 1:
      text.resize(at);
      break;
    case 2:
      text.erase(at, length);
      break;
    default:
      text.insert(random.below(text.size()), text.substr(at, length));
  }
}

json seed_config() {
  return {{"chat_template", json::array({{{"name", "default"}, {"template", "{{ messages }}"}}})},
          {"bos_token", {{"content", "<s>"}}},
          {"eos_token", "</s>"},
          {"add_bos_token", true},
          {"add_eos_token", true},
          {"eos_token_id", json::array({0, 11})}};
}

std::string mutated(const std::vector<json>& seeds, Random& random) {
  json file = seeds[random.below(seeds.size())];
  for (uint64_t changes = random.below(5); changes > 0; --changes) mutate_value(file, seeds, random);
  std::string text = file.dump(-1, ' ', false, json::error_handler_t::replace);
  if (random.below(4) == 0) mutate_text(text, random);
  return text;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<json> seeds = seed_files();
  std::vector<std::string> texts;
  const std::vector<json> configs = {seed_config()};
  for (const json& seed : seeds) texts.push_back(seed.dump());
  const auto is_good = [](const std::string& bytes) {
    const std::string file = bytes.substr(0, bytes.find('\0'));
    return succeeds([&] { foveate::io::parse_tokenizer_json({.tokenizer = file}, "fuzz/tokenizer.json"); });
  };
  return foveate::test::run_target(count, arguments, texts, is_good, [&](Random& random) {
    return mutated(seeds, random) + '\0' + mutated(configs, random) + '\0' +
           foveate::test::random_bytes(random, random.below(60));
  });
}
#endif
