#include "common.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <map>

#include "foveate/base/error.h"
#include "foveate/io/cache.h"
#include "foveate/io/open_tokenizer.h"
#include "foveate/ops/attend/explain.h"
#include "options.h"

namespace foveate::app {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int) {
  interrupted = 1;
  std::signal(SIGINT, SIG_DFL);
}

bool explain_at_end = false;

}  // namespace

void add_explain_option(CLI::App& command) {
  if (command.get_option_no_throw("--explain")) return;
  command.add_flag("--explain", explain_at_end, "at the end, say which attention kernels ran, or why none did");
}

void add_model_options(CLI::App& command, ModelOptions& options) {
  command.add_option("--model", options.model, "GGUF file, Hugging Face folder, or the name of a fetched model")
      ->capture_default_str();
  command.add_option("--dtype", options.dtype, "of matrices, keys and values")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command
      .add_option("--weights", options.weights,
                  "quantised matrices: packed as in the file, or dense; auto: packed with bf16, dense with fp32")
      ->check(CLI::IsMember({"auto", "packed", "dense"}))
      ->capture_default_str();
  add_threads(command, options.threads);
  command.add_option("--adapter", options.adapters, "learned parts of mechanisms that have such; repeat for more")
      ->allow_extra_args(false);
  add_explain_option(command);
}

void add_cache_option(CLI::App& command, attention::CacheType& cache) {
  const auto names = enum_names(cache);
  std::map<std::string, attention::CacheType> types;
  for (size_t i = 0; i < names.size(); ++i) types[std::string(names[i])] = attention::CacheType(i);
  command.add_option("--cache", cache, "keys and values of earlier tokens: model (as computed) or q8 (8 bits)")
      ->transform(CLI::CheckedTransformer(types))
      ->default_str("model");
}

void print_kernel_uses() {
  if (!explain_at_end) return;
  for (const ops::KernelUse& use : ops::kernel_uses()) fmt::print(stderr, "{:>8} calls  {}\n", use.calls, use.what);
}

LoadedModel load_model(const ModelOptions& options) {
  use_threads(options.threads);
  LoadedModel loaded;
  loaded.path = io::find_model(options.model);
  loaded.tokenizer = io::open_tokenizer(loaded.path);
  const bool is_bf16 = options.dtype == "bf16";
  const bool must_pack = options.weights == "packed";
  const bool is_packed = must_pack || (options.weights == "auto" && is_bf16);
  loaded.decoder = std::make_unique<models::Decoder>(
      models::Decoder::load(models::Checkpoint::open(loaded.path), is_bf16 ? at::kBFloat16 : at::kFloat,
                            is_packed ? models::WeightForm::packed : models::WeightForm::dense));
  loaded.has_packed_weights = loaded.decoder->weights().packed_count() > 0;
  require(loaded.has_packed_weights || !must_pack,
          "{}: no matrix is quantised, so that none can stay packed; use --weights dense", loaded.path);
  require(loaded.tokenizer->size() <= loaded.decoder->config().vocabulary,
          "{}: the tokenizer has {} tokens, the model only {}", loaded.path, loaded.tokenizer->size(),
          loaded.decoder->config().vocabulary);
  return loaded;
}

std::vector<attention::Mechanism> make_mechanisms(const std::string& spec, const LoadedModel& loaded,
                                                  const ModelOptions& options) {
  return models::Adapter::load(options.adapters, *loaded.decoder)
      .equip(attention::make_mechanisms(spec, loaded.decoder->layers()), *loaded.decoder);
}

std::unique_ptr<io::Tokenizer> load_tokenizer(const std::string& model) { return io::open_tokenizer(model); }

void require_context(const models::Decoder& decoder, int64_t tokens, bool force) {
  require(force || tokens <= decoder.config().context, "context: {} tokens exceed the model's {}; --force goes on",
          tokens, decoder.config().context);
}

void ProgressLine::show(std::string_view title, std::string_view what, double share) {
  const bool is_terminal = ::isatty(STDERR_FILENO);
  std::string step = fmt::format("{}: {}", title, what);
  if (!is_terminal) {
    if (step != step_) fmt::print(stderr, "{}\n", step);
    step_ = std::move(step);
    return;
  }
  if (step == step_ && timer_.seconds() - shown_at_ < 0.1) return;
  constexpr int kBar = 24;
  const int filled = int(kBar * share);
  const std::string line = fmt::format("\r[{}{}] {:3.0f} %  {}", std::string(filled, '#'),
                                       std::string(kBar - filled, '.'), 100 * share, step);
  fmt::print(stderr, "{}{}", line, std::string(width_ > line.size() ? width_ - line.size() : 0, ' '));
  std::fflush(stderr);
  width_ = line.size();
  shown_at_ = timer_.seconds();
  step_ = std::move(step);
}

void ProgressLine::finish() {
  if (width_ > 0) fmt::print(stderr, "\r{}\r", std::string(width_, ' '));
  width_ = 0;
}

void watch_interrupts() { std::signal(SIGINT, on_interrupt); }
bool was_interrupted() { return interrupted != 0; }
void throw_if_interrupted() {
  if (interrupted) throw Interrupted();
}

}  // namespace foveate::app
