#include "foveate/eval/bench_model.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"

namespace foveate::eval {

void ModelBenchOptions::validate() const {
  for (const int64_t length : lengths) require(length >= 1, "bench model: tokens must be >= 1, got {}", length);
  require(decoded >= 1, "bench model: decoded tokens must be >= 1, got {}", decoded);
  require(repeats >= 1, "bench model: repeats must be >= 1, got {}", repeats);
}

void bench_model(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                 const ModelBenchOptions& options, const std::function<void(const ModelTiming&)>& done) {
  options.validate();
  for (const int64_t length : options.lengths) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < length; ++i) tokens.push_back(int32_t((i * 7919 + 100) % decoder.config().vocabulary));
    ModelTiming t{.tokens = length};
    for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {
      models::Session session(decoder, mechanisms, {.cache = options.cache});
      const Timer prefill;
      decoder.logits(session.prefill(tokens).select(1, -1));
      const double read = prefill.seconds(), read_attention = session.attention_seconds();
      t.cache_bytes = session.bytes();
      const Timer decode;
      for (int64_t i = 0; i < options.decoded; ++i)
        decoder.logits(session.decode({&tokens[size_t(i % length)], 1}).select(1, -1));
      const double written = decode.seconds();
      if (repeat == 0) continue;  // torch prepares its products at first use
      t.prefill_tokens_per_s.push_back(double(length) / read);
      t.decode_tokens_per_s.push_back(double(options.decoded) / written);
      t.prefill_attention_seconds.push_back(read_attention);
      t.decode_attention_seconds.push_back(session.attention_seconds() - read_attention);
    }
    for (auto* numbers :
         {&t.prefill_tokens_per_s, &t.decode_tokens_per_s, &t.prefill_attention_seconds, &t.decode_attention_seconds})
      std::ranges::sort(*numbers);
    done(t);
  }
}

}  // namespace foveate::eval
