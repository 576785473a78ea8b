// RULER's generated tasks (Hsieh et al., 2404.06654) at an exact length in tokens: needles of eight kinds, variable
// tracking, common and frequent words.  Its questions over documents (qa_1, qa_2) need data sets and are left out.
// The tasks' sizes, distributions and scores are RULER's; texts around them are our own words, so scores are meant to
// be compared between mechanisms and not with published tables.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/eval/codec.h"

namespace foveate::eval {

// niah_single_1 .. 3, niah_multikey_1 .. 3, niah_multivalue, niah_multiquery, vt, cwe, fwe
std::span<const std::string_view> ruler_tasks();

struct RulerOptions {
  std::string task = "niah_single_1";
  int64_t length = 4096;  // prompt + answer budget, in tokens; never exceeded, reached to a unit of the haystack
  uint64_t seed = 0, sample = 0;
  int64_t distractors = 20;  // wrong answers for each right one
};

struct RulerSample {
  std::string task;
  int64_t length = 0;
  std::string prompt;                   // text of the tokens, without BOS; ends right before the answer
  std::vector<int32_t> tokens;          // BOS if the codec has one, then the prompt
  std::vector<std::string> references;  // all that a full answer contains
  std::vector<std::string> leads;       // what stands before each of them in an answer: leads[0] " " references[0] ...
  // Per reference, none of them a reference: first what else stands in the text and could be mistaken for it.
  std::vector<std::vector<std::string>> distractors;
  int64_t answer_budget = 0;  // tokens that may be generated
};

// A pure function of its arguments.  prose: any text, the haystack of the "essay" tasks; may be empty for the others.
// Throws Error: an unknown task; a length below the task's minimum (says it); prose without sentences.
RulerSample make_ruler(const Codec& codec, std::string_view prose, const RulerOptions& options);

// The share of references that the output contains, upper and lower case (ASCII) alike; control characters of the
// output count as line ends.  Throws Error: no references, or an empty one.
double ruler_score(std::string_view output, std::span<const std::string> references);

// How often each rank of a text of n words stands in it: floor(n / k^2 / zeta(2)), as long as that is not 0, at most
// `ranks` ranks.
std::vector<int64_t> frequent_word_counts(int64_t n, int64_t ranks);

}  // namespace foveate::eval
