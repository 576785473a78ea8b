// foveate score: the log-probability of every token of a text.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/eval/agreement.h"
#include "foveate/eval/perplexity.h"
#include "foveate/io/cache.h"
#include "foveate/models/language/session.h"

namespace foveate::app {
namespace {

struct Options {
  ModelOptions model;
  std::string file, attention = "dense";
  int64_t context = 0, stride = 0;
  bool is_streaming = false;
  attention::CacheType cache = attention::CacheType::model;
};

// {"token": 42, "text": "...", "logprob": -1.5}; bytes that are no UTF-8 become U+FFFD in the text
void print_token(const io::Tokenizer& tokenizer, int32_t token, std::optional<float> logprob) {
  nlohmann::ordered_json line = {{"token", token}, {"text", tokenizer.decode({&token, 1}, true)}};
  line["logprob"] = logprob ? nlohmann::ordered_json(*logprob) : nlohmann::ordered_json(nullptr);
  fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

// Prints what is scored as it comes, and sums it up.
class Scores {
 public:
  Scores(const io::Tokenizer& tokenizer, std::span<const int32_t> tokens) : tokenizer_(tokenizer), tokens_(tokens) {}

  void add(int64_t first, std::span<const float> losses) {
    if (scored_.empty()) print_token(tokenizer_, tokens_.front(), std::nullopt);  // nothing stands before it
    for (size_t i = 0; i < losses.size(); ++i) {
      scored_.push_back(tokens_[size_t(first) + i]);
      print_token(tokenizer_, scored_.back(), -losses[i]);
    }
    std::fflush(stdout);
    sum_.add(first, losses);
  }

  void print_sum() const {
    const int64_t bytes = std::ssize(tokenizer_.decode(scored_));
    const nlohmann::ordered_json summary = {{"tokens", sum_.count()},
                                            {"mean_nats", sum_.mean()},
                                            {"perplexity", sum_.perplexity()},
                                            {"bits_per_byte", sum_.bits_per_byte(std::max<int64_t>(bytes, 1))}};
    fmt::print("{}\n", summary.dump());
  }

 private:
  const io::Tokenizer& tokenizer_;
  std::span<const int32_t> tokens_;
  std::vector<int32_t> scored_;
  eval::NllSum sum_;
};

using Mechanisms = std::vector<attention::Mechanism>;

// Windows that overlap: every token is scored once, from what stands before it in its window; one that has nothing
// before it is not.
void score_windows(const Options& options, const LoadedModel& loaded, const Mechanisms& mechanisms,
                   std::span<const int32_t> tokens, Scores& scores) {
  const int64_t context = options.context > 0 ? options.context : loaded.decoder->config().context;
  require_context(*loaded.decoder, context, false);
  const int64_t stride = options.stride > 0 ? options.stride : std::max<int64_t>(context / 2, 1);
  for (const eval::Window& window : eval::sliding_windows(std::ssize(tokens), context, stride)) {
    const std::span<const int32_t> read = tokens.subspan(size_t(window.begin), size_t(window.end - window.begin));
    models::Session session(*loaded.decoder, mechanisms, {.cache = options.cache});
    const at::Tensor hidden = session.prefill(read).squeeze(0);
    const int64_t first = std::max(window.score_from, window.begin + 1), count = window.end - first;
    const std::vector<float> nll = eval::token_nll(*loaded.decoder, hidden.narrow(0, first - window.begin - 1, count),
                                                   read.subspan(size_t(first - window.begin)));
    scores.add(first, nll);
  }
}

// Token by token through the decode rule and whatever the mechanism's cache keeps: 256 rows a call give what single
// ones would.
void score_stream(const Options& options, const LoadedModel& loaded, const Mechanisms& mechanisms,
                  std::span<const int32_t> tokens, Scores& scores) {
  constexpr size_t kRows = 256;
  models::Session session(*loaded.decoder, mechanisms, {.cache = options.cache});
  const size_t last = tokens.size() - 1;  // predicts nothing
  for (size_t first = 0; first < last;) {
    const size_t count = first == 0 ? 1 : std::min(kRows, last - first);
    const std::span<const int32_t> read = tokens.subspan(first, count);
    const at::Tensor hidden = first == 0 ? session.prefill(read) : session.decode(read);
    const std::vector<float> nll =
        eval::token_nll(*loaded.decoder, hidden.squeeze(0), tokens.subspan(first + 1, count));
    scores.add(int64_t(first) + 1, nll);
    first += count;
  }
}

void score(const Options& options) {
  require(!options.is_streaming || (options.context == 0 && options.stride == 0),
          "score: --streaming reads the text as one; leave --context and --stride out");
  const std::string path = options.file == "-" ? options.file : io::find_text(options.file);
  const LoadedModel loaded = load_model(options.model);
  const auto mechanisms = make_mechanisms(options.attention, loaded, options.model);
  const std::vector<int32_t> tokens = loaded.tokenizer->encode(io::read_text(path));
  require(tokens.size() >= 2, "score: the text must have at least 2 tokens, got {}", tokens.size());
  Scores scores(*loaded.tokenizer, tokens);
  (options.is_streaming ? score_stream : score_windows)(options, loaded, mechanisms, tokens, scores);
  scores.print_sum();
}

}  // namespace

void add_score(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("score", "log-probability of every token of a text, as JSON lines");
  add_model_options(*command, options->model);
  command->add_option("file", options->file, "text file, name of a fetched text, or - for standard input")->required();
  command->add_option("--attention", options->attention, "mechanism, see `foveate list`")->capture_default_str();
  add_cache_option(*command, options->cache);
  command->add_option("--context", options->context, "tokens read at a time; 0: the model's own")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--stride", options->stride, "tokens scored per window; 0: half the context")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--streaming", options->is_streaming,
                    "one token after the other by the decode rule, the mechanism's cache being all that is kept");
  command->footer(
      "Lines come as windows are read.  The first token has no logprob.  The last line sums up: tokens, mean_nats, "
      "perplexity, bits_per_byte.\n"
      "Examples:\n  foveate score --model smollm2 notes.txt\n  cat notes.txt | foveate score --context 2048 -\n  "
      "foveate score --streaming --attention window:size=1020,positions=cache notes.txt");
  command->callback([options] { score(*options); });
}

}  // namespace foveate::app
