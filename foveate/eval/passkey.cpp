#include "foveate/eval/passkey.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::eval {
namespace {

constexpr uint64_t kPasskeyStream = 0x7061737300000000ull;  // + trial; apart from other tasks' draws ("pass")
constexpr int64_t kStepCharacters = 128;
constexpr std::string_view kTask =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about "
    "the important information there.";
constexpr std::string_view kGarbage =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
constexpr std::string_view kQuestion = "What is the pass key? The pass key is";

std::string garbage(int64_t characters) {
  std::string text;
  while (int64_t(text.size()) < characters) text += kGarbage;
  text.resize(size_t(characters));
  return text;
}

// share: of the garbage that stands before the key, in [0, 1].
Passkey with_garbage(const Codec& codec, int64_t key, int64_t characters, double share) {
  Passkey result{.prompt = {}, .tokens = {}, .key = key, .garbage_characters = characters};
  // characters + 1 prefix lengths, all equally likely for a uniform share
  result.prefix_characters = std::min(characters, int64_t(share * double(characters + 1)));
  result.prompt = fmt::format("{}\n{}\nThe pass key is {}. Remember it. {} is the pass key.\n{}\n{}", kTask,
                              garbage(result.prefix_characters), key, key,
                              garbage(characters - result.prefix_characters), kQuestion);
  if (codec.bos) result.tokens.push_back(*codec.bos);
  const std::vector<int32_t> tokens = codec.encode(result.prompt);
  result.tokens.insert(result.tokens.end(), tokens.begin(), tokens.end());
  return result;
}

}  // namespace

Passkey make_passkey(const Codec& codec, const PasskeyOptions& options) {
  require(options.answer_budget >= 1, "passkey: answer_budget must be >= 1, got {}", options.answer_budget);
  const double depth = options.depth_percent.value_or(0);
  require(depth >= 0 && depth <= 100, "passkey: depth_percent must be in 0..100, got {}", depth);
  Random random(options.seed, kPasskeyStream + options.trial);
  const int64_t key = 1 + int64_t(random.below(50000));
  const double share = options.depth_percent ? depth / 100 : random.uniform();

  const int64_t limit = options.length - options.answer_budget;
  Passkey best = with_garbage(codec, key, 0, share);
  const int64_t minimum = int64_t(best.tokens.size());
  require(minimum <= limit, "passkey: length must be >= {} tokens, got {}", minimum + options.answer_budget,
          options.length);

  int64_t fits = 0, too_many = 1;  // in steps of 128 characters
  for (;; too_many *= 2) {
    Passkey trial = with_garbage(codec, key, too_many * kStepCharacters, share);
    if (int64_t(trial.tokens.size()) > limit) break;
    fits = too_many, best = std::move(trial);
  }
  while (too_many - fits > 1) {
    const int64_t middle = fits + (too_many - fits) / 2;
    Passkey trial = with_garbage(codec, key, middle * kStepCharacters, share);
    if (int64_t(trial.tokens.size()) > limit) {
      too_many = middle;
    } else {
      fits = middle, best = std::move(trial);
    }
  }
  return best;
}

bool passkey_hit(std::string_view output, int64_t key) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto first = std::find_if(output.begin(), output.end(), is_digit);
  const auto last = std::find_if_not(first, output.end(), is_digit);
  std::string_view digits(first, last);
  if (digits.empty()) return false;
  while (digits.size() > 1 && digits.front() == '0') digits.remove_prefix(1);
  return digits == fmt::format("{}", key);
}

}  // namespace foveate::eval
