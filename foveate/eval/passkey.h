// The passkey test: a number said twice in a long repetitive text, to be repeated at its end.
// Source: Mohtashami and Jaggi, Landmark Attention, 2305.16300.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/eval/codec.h"

namespace foveate::eval {

struct PasskeyOptions {
  int64_t length = 4096;                  // prompt + answer budget, in tokens; never exceeded
  int64_t answer_budget = 10;             // tokens to generate, greedily
  std::optional<double> depth_percent{};  // 0 to 100: share of the garbage before the key; not given: uniform
  uint64_t seed = 0;
  uint64_t trial = 0;  // another key and another depth under the same seed
};

struct Passkey {
  std::string prompt;              // text of the tokens, without BOS
  std::vector<int32_t> tokens;     // BOS if the codec has one, then the prompt
  int64_t key = 0;                 // uniform in 1..50000
  int64_t garbage_characters = 0;  // a multiple of 128, the largest that fits
  int64_t prefix_characters = 0;   // how many of them stand before the key
};

// A pure function of its arguments.
// Throws Error: length below what the text needs without garbage (says the minimum); depth outside 0..100.
Passkey make_passkey(const Codec& codec, const PasskeyOptions& options);

// True when the first integer in the generated text is the key.
bool passkey_hit(std::string_view output, int64_t key);

}  // namespace foveate::eval
