// Continues a session token by token and hands out text as it becomes complete.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "foveate/io/tokenizer.h"
#include "foveate/models/language/landmarks.h"
#include "foveate/models/language/sampling.h"
#include "foveate/models/language/session.h"

namespace foveate::models {

struct GenerateOptions {
  int64_t max_tokens = 256;
  Sampling sampling;
  std::vector<std::string> stop;  // generation ends before the first of them
  uint64_t seed = 0;
};

struct Generated {
  std::vector<int32_t> tokens;  // without the end token
  std::string text;             // without the stop string
  enum class Reason { end_token, stop_string, max_tokens, cancelled } reason = Reason::max_tokens;
};

// hidden: the last position's state [width] after the prompt.  `show` gets text in pieces that are whole UTF-8
// characters and can no longer be the start of a stop string; it returns false to cancel.  Invalid UTF-8 that the model
// itself makes is passed on at the end.
Generated generate(Session& session, const io::Tokenizer& tokenizer, at::Tensor hidden, const GenerateOptions& options,
                   const std::function<bool(std::string_view)>& show = {});
// The same for a model that reads landmarks: a step that fills a block reads its landmark too.
Generated generate(LandmarkSession& session, const io::Tokenizer& tokenizer, at::Tensor hidden,
                   const GenerateOptions& options, const std::function<bool(std::string_view)>& show = {});

// Log-probabilities [vocabulary] fp32 of one hidden state [width].
at::Tensor log_probabilities(const Decoder& decoder, const at::Tensor& hidden);

}  // namespace foveate::models
