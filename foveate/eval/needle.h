// Needle-in-a-haystack prompts built in token space: one haystack holds many facts, so one prefill serves many
// questions. Source: Kamradt, "Needle in a Haystack" (placement), RULER, 2404.06654 (facts, other needles as
// distractors).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/eval/codec.h"

namespace foveate::eval {

struct NeedleOptions {
  int64_t length = 4096;       // haystack + longest question + answer budget, in tokens
  int64_t haystacks = 5;       // prompts = haystacks * needles
  int64_t needles = 20;        // per haystack, 1 to 101
  int64_t distractors = 20;    // wrong answers per question
  int64_t answer_budget = 10;  // tokens that may be generated; raised to the longest answer
  uint64_t seed = 0;
};

struct Needle {
  std::string key, value;         // "Paris", "garden"
  int depth_percent = 0;          // on the grid round(linspace(0, 100, needles)); one needle alone stands at 50
  int64_t position = 0;           // where the fact's first token stands in the haystack
  int64_t tokens = 0;             // length of the fact; it is contiguous
  int64_t answer_position = 0;    // where the value's first token stands in the haystack
  std::vector<int32_t> question;  // continues the haystack and ends right before the value
  std::vector<int32_t> answer;    // the value's tokens, as they stand in the haystack
  std::vector<std::vector<int32_t>> distractors;  // distinct, none the answer; first the haystack's other values
};

struct Haystack {
  std::vector<int32_t> tokens;  // BOS if the codec has one, then prose with the needles in it
  std::vector<Needle> needles;  // by depth
};

struct NeedleSet {
  std::vector<Haystack> haystacks;    // all of one length: options.length - longest question - answer budget
  int64_t answer_budget = 0;          // as used
  bool single_token_answers = false;  // every value is one token: log-probabilities compare without length effects
};

// A pure function of its arguments.  text: tokens of prose without special tokens; each haystack takes a slice of it
// that begins at a sentence.  A fact moves left from its depth to the end of a sentence, as in the original test;
// depths 0 and 100 are exact.  Depth counts prose tokens, without BOS and other needles. Throws Error: option out of
// range; length too small for the facts (says the minimum); text too short.
NeedleSet make_needles(const Codec& codec, std::span<const int32_t> text, const NeedleOptions& options);

// round(linspace(0, 100, count))[index]; 50 where count is 1.
int depth_percent(int64_t index, int64_t count);

// How many distractors score at least as high as the answer: 0 = ranked first.  Ties and NaN count against the answer.
// Throws Error: no distractors.
int rank_of_answer(double answer_logprob, std::span<const double> distractor_logprobs);

// True when the generated text contains the answer, upper and lower case (ASCII) alike.  Throws Error: empty answer.
bool contains_answer(std::string_view output, std::string_view answer);

}  // namespace foveate::eval
