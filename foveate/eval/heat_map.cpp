#include "foveate/eval/heat_map.h"

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::eval {

std::vector<int64_t> even_lengths(int64_t low, int64_t high, int64_t count) {
  require(count >= 1 && low <= high, "even lengths: need a count >= 1 and low <= high, got {} from {} to {}", count,
          low, high);
  if (count == 1) return {high};
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) lengths.push_back(low + (2 * (high - low) * i + count - 1) / (2 * (count - 1)));
  return lengths;
}

std::vector<int64_t> default_heat_lengths(int64_t context) {
  constexpr int64_t kShortest = 256, kMost = 6;
  const int64_t low = std::min(std::max(context / kMost, kShortest), context);
  return even_lengths(low, context, std::min(kMost, context - low + 1));
}

void HeatMapOptions::validate() const {
  require(depths >= 1 && depths <= 101, "heat map: depths must be 1 .. 101, got {}", depths);
  require(prompts >= 1, "heat map: prompts must be >= 1, got {}", prompts);
  for (const int64_t length : lengths) require(length >= 1, "heat map: lengths must be >= 1, got {}", length);
}

std::vector<int> HeatMapOptions::depth_percent() const {
  std::vector<int> percents;
  for (int64_t i = 0; i < depths; ++i) percents.push_back(eval::depth_percent(i, depths));
  return percents;
}

HeatPrompts make_heat_prompts(const Codec& codec, std::span<const int32_t> prose, const HeatMapOptions& options) {
  options.validate();
  HeatPrompts prompts{.needles = {}, .passkeys = {}, .depths = options.depths, .prompts = options.prompts};
  for (const int64_t length : options.lengths) {
    prompts.needles.push_back(make_needles(codec, prose,
                                           {.length = length,
                                            .haystacks = options.prompts,
                                            .needles = options.depths,
                                            .answer_budget = 5,
                                            .seed = options.seed}));
    std::vector<Passkey>& passkeys = prompts.passkeys.emplace_back();
    for (const int depth : options.depth_percent())
      for (int64_t trial = 0; trial < options.prompts; ++trial)
        passkeys.push_back(make_passkey(
            codec, {.length = length, .depth_percent = double(depth), .seed = options.seed, .trial = uint64_t(trial)}));
  }
  return prompts;
}

HeatMap run_heat_map(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                     const io::Tokenizer& tokenizer, const HeatPrompts& prompts, attention::CacheType cache,
                     const Progress& progress) {
  HeatMap map;
  const double lengths = double(prompts.needles.size()), each = 1.0 / double(prompts.prompts);
  for (size_t l = 0; l < prompts.needles.size(); ++l) {
    const auto part = [&](double share) {
      if (progress) progress((double(l) + share) / lengths);
    };
    const NeedleResult needles = run_needles(decoder, mechanisms, tokenizer, prompts.needles[l], cache,
                                             [&](double share) { part(0.4 * share); });
    const std::vector<double> passkeys = run_passkeys(decoder, mechanisms, tokenizer, prompts.passkeys[l], cache,
                                                      [&](double share) { part(0.4 + 0.6 * share); });
    std::vector<double>& needle = map.needle.emplace_back(size_t(prompts.depths));
    std::vector<double>& passkey = map.passkey.emplace_back(size_t(prompts.depths));
    for (int64_t depth = 0; depth < prompts.depths; ++depth)
      for (int64_t i = 0; i < prompts.prompts; ++i) {
        needle[size_t(depth)] += each * needles.ranked_first[size_t(i * prompts.depths + depth)];
        passkey[size_t(depth)] += each * passkeys[size_t(depth * prompts.prompts + i)];
      }
  }
  return map;
}

}  // namespace foveate::eval
