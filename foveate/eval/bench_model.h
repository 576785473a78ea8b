// Speed of a whole model: prompts read and tokens generated a second, and how much of that is attention.
#pragma once

#include <functional>
#include <vector>

#include "foveate/models/language/session.h"

namespace foveate::eval {

struct ModelBenchOptions {
  std::vector<int64_t> lengths = {512, 2048};  // tokens of the prompts
  int64_t decoded = 64;                        // tokens generated behind each
  int64_t repeats = 3;                         // after one that is not counted
  attention::CacheType cache = attention::CacheType::model;

  void validate() const;  // Throws Error: numbers < 1
};

struct ModelTiming {
  int64_t tokens = 0;
  // One for each repeat, ascending.
  std::vector<double> prefill_tokens_per_s, decode_tokens_per_s;
  std::vector<double> prefill_attention_seconds, decode_attention_seconds;
  int64_t cache_bytes = 0;  // behind the prompt, allocated
};

// Calls done() after each length.  Tokens are arbitrary: speed does not depend on them.
void bench_model(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                 const ModelBenchOptions& options, const std::function<void(const ModelTiming&)>& done);

}  // namespace foveate::eval
