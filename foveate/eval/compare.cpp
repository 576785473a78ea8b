#include "foveate/eval/compare.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/base/error.h"
#include "foveate/base/memory.h"
#include "foveate/base/timer.h"
#include "foveate/eval/agreement.h"
#include "foveate/eval/kept_mass.h"
#include "foveate/eval/perplexity.h"
#include "foveate/eval/recall.h"

namespace foveate::eval {
namespace {

using attention::Attended;
using attention::Inputs;

// Sees every layer's call of a prefill and sums up how much was visited and what dense attention would have put there.
class Coverage {
 public:
  void operator()(const Inputs& in, const Attended& attended) {
    const at::Tensor queries = at::empty({1}, in.q.options()).expand(in.q.sizes());  // shapes are all that is needed
    for (const attention::PlannedRows& part : attended.plans)
      visited_.push_back({part.plan, queries.narrow(2, part.first_row, part.rows), queries.narrow(1, 0, in.k.size(1))});
    causal_ += double(in.q.size(1)) * double(in.q.size(2)) * double(in.q.size(2) + 1) / 2;
    const std::optional<double> mass = eval::kept_mass(in, attended);
    kept_mass_.push_back(mass.value_or(std::numeric_limits<double>::quiet_NaN()));
  }

  double density() const {
    double visited = 0;
    for (const auto& [plan, q, k] : visited_) visited += visible_pairs(plan, q, k);
    return visited / causal_;
  }
  // By layer; NaN where the mechanism gives no lse.
  const std::vector<double>& kept_mass() const { return kept_mass_; }

 private:
  struct Visited {
    Plan plan;
    at::Tensor q, k;
  };
  std::vector<Visited> visited_;
  double causal_ = 0;
  std::vector<double> kept_mass_;
};

}  // namespace

struct Comparison::Pass {
  at::Tensor hidden;  // [context, width]: prefill rows, then decoded rows
};

void CompareOptions::validate() const {
  require(context >= 64, "compare: context must be >= 64, got {}", context);
  require(continuation >= 1 && continuation <= context / 2,
          "compare: continuation must be 1 .. context / 2 = {}, got {}", context / 2, continuation);
  require(needle_haystacks >= 0 && needles >= 1 && passkeys >= 0, "compare: needle counts must be >= 0, got {} {} {}",
          needle_haystacks, needles, passkeys);
  require(buckets >= 1 && buckets <= context - continuation - 1, "compare: buckets must be 1 .. {}, got {}",
          context - continuation - 1, buckets);
  require(ruler_samples >= 1, "compare: RULER samples must be >= 1, got {}", ruler_samples);
  heat_map.validate();
}

Comparison::Comparison(const models::Decoder& decoder, const io::Tokenizer& tokenizer, std::vector<int32_t> tokens,
                       CompareOptions options)
    : decoder_(decoder), tokenizer_(tokenizer), tokens_(std::move(tokens)), options_(options) {
  options_.validate();
  require(std::ssize(tokens_) >= options_.context,
          "compare: the text must have at least {} tokens (the context), got {}", options_.context, tokens_.size());
  make_prompts();
}

void Comparison::make_prompts() {
  const Codec codec = codec_of(tokenizer_);
  // The haystacks take text behind what perplexity reads, where there is enough of it.
  std::span<const int32_t> prose(tokens_);
  if (codec.bos) prose = prose.subspan(1);
  if (std::ssize(prose) > 4 * options_.context) prose = prose.subspan(size_t(options_.context));
  if (options_.needle_haystacks > 0)
    needles_ = make_needles(codec, prose,
                            {.length = options_.context,
                             .haystacks = options_.needle_haystacks,
                             .needles = options_.needles,
                             .answer_budget = 5,
                             .seed = options_.seed});
  for (int64_t trial = 0; trial < options_.passkeys; ++trial)
    passkeys_.push_back(make_passkey(
        codec,
        {.length = std::max<int64_t>(options_.context / 4, 256), .seed = options_.seed, .trial = uint64_t(trial)}));
  if (options_.ruler_lengths.empty()) options_.ruler_lengths = {options_.context};
  const std::string text = options_.ruler_tasks.empty() ? "" : codec.decode(prose);
  for (const int64_t length : options_.ruler_lengths)
    for (const std::string& task : options_.ruler_tasks) {
      std::vector<RulerSample>& samples = ruler_.emplace_back();
      for (int64_t i = 0; i < options_.ruler_samples; ++i)
        samples.push_back(
            make_ruler(codec, text, {.task = task, .length = length, .seed = options_.seed, .sample = uint64_t(i)}));
    }
  options_.heat_map.seed = options_.seed;
  heat_prompts_ = make_heat_prompts(codec, prose, options_.heat_map);
}

std::vector<int64_t> Comparison::edges() const {
  return bucket_edges(options_.context - options_.continuation, options_.buckets);
}

std::vector<int64_t> Comparison::bucket_positions() const {
  const std::vector<int64_t> all = edges();
  return {all.begin() + 1, all.end()};
}

Comparison::Pass Comparison::read_text(const std::vector<attention::Mechanism>& mechanisms, attention::CacheType cache,
                                       const Progress& progress, Measured& measured) const {
  const std::span<const int32_t> text(tokens_.data(), size_t(options_.context));
  const int64_t prompt = options_.context - options_.continuation;
  {  // torch prepares its products at first use: warm up outside the timing
    models::Session warm(decoder_, mechanisms, {.cache = cache});
    warm.prefill(text.first(size_t(std::min<int64_t>(prompt, 64))));
    warm.decode(text.first(1));
  }
  const bool can_measure = reset_peak_resident();
  models::SessionOptions session_options{.cache = cache};
  session_options.observe = [&](const Inputs& in, const Attended&) {
    progress("reading the text", 0.3 * double(in.layer + 1) / double(decoder_.layers()));
  };
  models::Session session(decoder_, mechanisms, session_options);
  const Timer prefill;
  std::vector<at::Tensor> rows = {session.prefill(text.first(size_t(prompt))).squeeze(0)};
  measured.prefill_tokens_per_s = double(prompt) / prefill.seconds();
  measured.kv_bytes = session.bytes();
  measured.kv_bytes_read_per_token = session.read_bytes();
  const Timer decode;
  for (int64_t i = prompt; i < options_.context; ++i)
    rows.push_back(session.decode(text.subspan(size_t(i), 1)).squeeze(0));
  measured.decode_tokens_per_s = double(options_.continuation) / decode.seconds();
  if (can_measure) measured.peak_bytes = peak_resident_bytes();
  return {at::cat(rows, 0)};
}

void Comparison::score(const Pass& pass, Measured& measured) const {
  const int64_t prompt = options_.context - options_.continuation;
  const auto agreement = [&](int64_t first, int64_t count) {
    return compare_predictions(decoder_, pass.hidden.narrow(0, first, count), dense_hidden_.narrow(0, first, count),
                               std::span<const int32_t>(tokens_).subspan(size_t(first) + 1, size_t(count)));
  };
  const Agreement read = agreement(0, prompt - 1), continued = agreement(prompt - 1, options_.continuation);
  NllSum sum(edges());
  sum.add(0, read.nll);
  measured.perplexity = sum.perplexity();
  measured.nll_by_position = sum.bucket_means();
  measured.nats_vs_dense = read.nats_vs_dense();
  measured.top1_agreement = read.top1_agreement();
  measured.kl_vs_dense = read.mean_kl();
  measured.continuation_nats_vs_dense = continued.nats_vs_dense();
  measured.continuation_top1_agreement = continued.top1_agreement();
  measured.continuation_kl_vs_dense = continued.mean_kl();
}

Measured Comparison::run(const std::vector<attention::Mechanism>& mechanisms, const Progress& progress) {
  const bool is_reference =
      options_.cache == attention::CacheType::model &&
      std::ranges::all_of(mechanisms, [](const auto& m) { return m.spec().name == attention::Dense::name; });
  if (!dense_hidden_.defined() && !is_reference) {
    Measured ignored;
    const std::vector<attention::Mechanism> dense(size_t(decoder_.layers()), attention::Dense{});
    dense_hidden_ = read_text(dense, attention::CacheType::model, progress, ignored).hidden;
  }
  Measured measured;
  const Pass pass = read_text(mechanisms, options_.cache, progress, measured);
  if (!dense_hidden_.defined()) dense_hidden_ = pass.hidden;
  progress("comparing predictions", 0.3);
  score(pass, measured);

  Coverage coverage;
  models::SessionOptions observed{.cache = options_.cache};
  observed.observe = [&](const Inputs& in, const Attended& attended) {
    coverage(in, attended);
    progress("counting visited keys", 0.35 + 0.15 * double(in.layer + 1) / double(decoder_.layers()));
  };
  models::Session session(decoder_, mechanisms, observed);
  session.prefill(std::span<const int32_t>(tokens_.data(), size_t(options_.context - options_.continuation)));
  measured.density = coverage.density();
  measured.kept_mass_by_layer = coverage.kept_mass();
  const double mass = std::accumulate(coverage.kept_mass().begin(), coverage.kept_mass().end(), 0.0);
  if (std::isfinite(mass)) measured.kept_mass = mass / double(decoder_.layers());

  measure_recall(mechanisms, progress, measured);
  return measured;
}

void Comparison::measure_recall(const std::vector<attention::Mechanism>& mechanisms, const Progress& progress,
                                Measured& measured) const {
  const auto part = [&](std::string_view what, double from, double to) {
    return [=, &progress](double share) { progress(what, from + (to - from) * share); };
  };
  if (options_.needle_haystacks > 0) {
    NeedleResult result =
        run_needles(decoder_, mechanisms, tokenizer_, needles_, options_.cache, part("needles", 0.5, 0.65));
    measured.needle_ranked_first = std::move(result.ranked_first);
    measured.needle_hits = result.hits;
  }
  measured.passkey_total = std::ssize(passkeys_);
  for (const double hit :
       run_passkeys(decoder_, mechanisms, tokenizer_, passkeys_, options_.cache, part("passkeys", 0.65, 0.7)))
    measured.passkey_hits += hit > 0;
  for (size_t i = 0; i < ruler_.size(); ++i) {
    const std::vector<RulerSample>& samples = ruler_[i];
    RulerCell cell{.task = samples[0].task, .length = samples[0].length, .samples = std::ssize(samples)};
    const double all = double(ruler_.size()), from = 0.7 + 0.15 * double(i) / all;
    for (const RulerResult& result :
         run_ruler(decoder_, mechanisms, tokenizer_, samples, options_.cache, part("RULER", from, from + 0.15 / all))) {
      cell.score += result.score / double(cell.samples);
      cell.ranked_first += result.ranked_first / double(cell.samples);
    }
    measured.ruler.push_back(std::move(cell));
  }
  if (!options_.heat_map.lengths.empty())
    measured.heat_map =
        run_heat_map(decoder_, mechanisms, tokenizer_, heat_prompts_, options_.cache, part("heat map", 0.85, 1));
}

}  // namespace foveate::eval
