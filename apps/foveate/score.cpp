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
  attention::CacheType cache = attention::CacheType::model;
};

// {"token": 42, "text": "...", "logprob": -1.5}; bytes that are no UTF-8 become U+FFFD in the text
void print_token(const io::Tokenizer& tokenizer, int32_t token, std::optional<float> logprob) {
  nlohmann::ordered_json line = {{"token", token}, {"text", tokenizer.decode({&token, 1}, true)}};
  line["logprob"] = logprob ? nlohmann::ordered_json(*logprob) : nlohmann::ordered_json(nullptr);
  fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void score(const Options& options) {
  const std::string path = options.file == "-" ? options.file : io::find_text(options.file);
  const LoadedModel loaded = load_model(options.model);
  const auto mechanisms = make_mechanisms(options.attention, loaded, options.model);
  const int64_t context = options.context > 0 ? options.context : loaded.decoder->config().context;
  require_context(*loaded.decoder, context, false);
  const std::vector<int32_t> tokens = loaded.tokenizer->encode(io::read_text(path));
  require(tokens.size() >= 2, "score: the text must have at least 2 tokens, got {}", tokens.size());
  const int64_t stride = options.stride > 0 ? options.stride : std::max<int64_t>(context / 2, 1);
  const std::vector<eval::Window> windows = eval::sliding_windows(std::ssize(tokens), context, stride);
  eval::NllSum sum;
  print_token(*loaded.tokenizer, tokens.front(), std::nullopt);  // nothing stands before it
  for (const eval::Window& window : windows) {
    const std::span<const int32_t> read(tokens.data() + window.begin, size_t(window.end - window.begin));
    models::Session session(*loaded.decoder, mechanisms, {.cache = options.cache});
    const at::Tensor hidden = session.prefill(read).squeeze(0);
    const int64_t first = std::max(window.score_from, window.begin + 1), count = window.end - first;
    const std::vector<float> nll = eval::token_nll(*loaded.decoder, hidden.narrow(0, first - window.begin - 1, count),
                                                   read.subspan(size_t(first - window.begin)));
    sum.add(first - window.begin, nll);
    for (int64_t i = 0; i < count; ++i) print_token(*loaded.tokenizer, tokens[size_t(first + i)], -nll[size_t(i)]);
  }
  const nlohmann::ordered_json summary = {
      {"tokens", sum.count()}, {"mean_nats", sum.mean()}, {"perplexity", sum.perplexity()}};
  fmt::print("{}\n", summary.dump());
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
  command->footer(
      "The first token has no logprob.  The last line sums up: tokens, mean_nats, perplexity.\n"
      "Examples:\n  foveate score --model smollm2 notes.txt\n  cat notes.txt | foveate score --context 2048 -");
  command->callback([options] { score(*options); });
}

}  // namespace foveate::app
