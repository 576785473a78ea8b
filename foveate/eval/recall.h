// Needle, passkey and RULER prompts put to a model: what a mechanism still finds in a long text.
#pragma once

#include <functional>
#include <vector>

#include "foveate/eval/needle.h"
#include "foveate/eval/passkey.h"
#include "foveate/eval/ruler.h"
#include "foveate/io/tokenizer.h"
#include "foveate/models/language/session.h"

namespace foveate::eval {

// Called with the share done, 0 .. 1; throws to stop.
using Progress = std::function<void(double)>;

Codec codec_of(const io::Tokenizer& tokenizer);

struct NeedleResult {
  std::vector<double> ranked_first;  // 1 or 0 for each prompt, in the order of the set
  int64_t hits = 0;                  // prompts whose greedy continuation contains the answer
};

// Each haystack is read once as a prompt; each question is then appended by the decode rule, scored and taken back.
// A prompt is ranked first when the right answer's log-probability is above that of every distractor.
NeedleResult run_needles(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                         const io::Tokenizer& tokenizer, const NeedleSet& set, attention::CacheType cache,
                         const Progress& progress = {});

// 1 or 0 for each passkey: whether the greedy continuation repeats it.  Where all mechanisms are of class row a prompt
// goes on from what it shares with the one before, so give them by depth; others read each from its beginning, because
// their selection depends on where a prompt is cut.
std::vector<double> run_passkeys(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                                 const io::Tokenizer& tokenizer, const std::vector<Passkey>& passkeys,
                                 attention::CacheType cache, const Progress& progress = {});

struct RulerResult {
  double score = 0;         // ruler_score of the greedy continuation
  double ranked_first = 0;  // share of references whose log-probability, behind the references before it, is above that
                            // of all its distractors in its place: a signal where a model follows no instructions
};
// One for each sample.
std::vector<RulerResult> run_ruler(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                                   const io::Tokenizer& tokenizer, std::span<const RulerSample> samples,
                                   attention::CacheType cache, const Progress& progress = {});

}  // namespace foveate::eval
