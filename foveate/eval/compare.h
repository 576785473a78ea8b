// The main job: one model, one text, several mechanisms; what each costs and what it loses against dense attention.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "foveate/eval/heat_map.h"
#include "foveate/io/tokenizer.h"
#include "foveate/models/language/session.h"

namespace foveate::eval {

struct CompareOptions {
  int64_t context = 4096;        // tokens read of the text
  int64_t continuation = 256;    // of them at the end, read by the decode rule one by one
  int64_t needle_haystacks = 5;  // prompts = haystacks * needles; 0: no recall tests
  int64_t needles = 20;          // per haystack
  int64_t passkeys = 5;
  int64_t buckets = 16;                  // of perplexity by position
  std::vector<std::string> ruler_tasks;  // ruler.h names them; empty: none
  std::vector<int64_t> ruler_lengths;    // in tokens; empty: the context
  int64_t ruler_samples = 5;             // of each task at each length
  HeatMapOptions heat_map;               // its seed is the one below
  uint64_t seed = 0;
  attention::CacheType cache = attention::CacheType::model;  // of what is compared; the reference has the model's own

  void validate() const;  // Throws Error: out of range
};

// What one mechanism did in one of RULER's tasks at one length: means over samples (recall.h).
struct RulerCell {
  std::string task;
  int64_t length = 0, samples = 0;
  double score = 0, ranked_first = 0;
};

// What one mechanism did.  Losses are means in nats per token.
struct Measured {
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0;
  int64_t kv_bytes = 0, kv_bytes_read_per_token = 0;
  std::optional<int64_t> peak_bytes;
  double density = 0;                      // visited / causal query-key pairs of the prefill
  std::optional<double> kept_mass;         // mean over layers of what kept_mass.h says; absent where one has none
  std::vector<double> kept_mass_by_layer;  // NaN where a layer has none
  double perplexity = 0, nats_vs_dense = 0, top1_agreement = 0, kl_vs_dense = 0;
  double continuation_nats_vs_dense = 0, continuation_top1_agreement = 0, continuation_kl_vs_dense = 0;
  std::vector<double> nll_by_position;
  std::vector<double> needle_ranked_first;  // 1 or 0 per prompt
  int64_t needle_hits = 0, passkey_hits = 0, passkey_total = 0;
  std::vector<RulerCell> ruler;  // by length, then task
  std::optional<HeatMap> heat_map;
};

class Comparison {
 public:
  // Says what is being done and the share done of the current mechanism, 0 .. 1.  May throw to stop.
  using Progress = std::function<void(std::string_view what, double share)>;

  // tokens: of the text, BOS first where the model wants one; at least context + what haystacks need.
  // decoder and tokenizer must outlive the comparison.
  Comparison(const models::Decoder& decoder, const io::Tokenizer& tokenizer, std::vector<int32_t> tokens,
             CompareOptions options);

  // Runs one mechanism per layer against dense attention, which is run first where it has not been.
  Measured run(const std::vector<attention::Mechanism>& mechanisms, const Progress& progress);

  std::vector<int64_t> bucket_positions() const;  // where each bucket ends, in tokens

 private:
  struct Pass;  // hidden states and costs of one reading of the text
  Pass read_text(const std::vector<attention::Mechanism>& mechanisms, attention::CacheType cache,
                 const Progress& progress, Measured& measured) const;
  void score(const Pass& pass, Measured& measured) const;
  std::vector<int64_t> edges() const;
  void make_prompts();
  void measure_recall(const std::vector<attention::Mechanism>& mechanisms, const Progress& progress,
                      Measured& measured) const;

  const models::Decoder& decoder_;
  const io::Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;
  CompareOptions options_;
  NeedleSet needles_;
  std::vector<Passkey> passkeys_;
  std::vector<std::vector<RulerSample>> ruler_;  // all of one task and length together
  HeatPrompts heat_prompts_;
  at::Tensor dense_hidden_;  // [context, width]; undefined before dense was run
};

}  // namespace foveate::eval
