// What the subcommands share: loading, threads, progress, interruption.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/base/timer.h"
#include "foveate/io/gguf.h"
#include "foveate/io/tokenizer.h"
#include "foveate/models/language/adapter.h"
#include "foveate/models/language/decoder.h"

namespace foveate::app {

struct ModelOptions {
  std::string model = "smollm2";
  std::string dtype = "bf16", weights = "auto";
  int threads = 0;                    // 0: all
  std::vector<std::string> adapters;  // of mechanisms with learned parts
};
void add_model_options(CLI::App& command, ModelOptions& options);
void add_explain_option(CLI::App& command);  // --explain, once
void add_cache_option(CLI::App& command, attention::CacheType& cache);

struct LoadedModel {
  std::string path;
  std::unique_ptr<io::Tokenizer> tokenizer;
  std::unique_ptr<models::Decoder> decoder;
  bool has_packed_weights = false;
};
LoadedModel load_model(const ModelOptions& options);  // also sets the number of threads
std::unique_ptr<io::Tokenizer> load_tokenizer(const std::string& model);

// One mechanism per layer, with learned parts from --adapter.
std::vector<attention::Mechanism> make_mechanisms(const std::string& spec, const LoadedModel& loaded,
                                                  const ModelOptions& options);

// Throws Error naming the limit unless tokens <= the model's context or `force`.
void require_context(const models::Decoder& decoder, int64_t tokens, bool force);

// With --explain: which attention kernels ran and how often, or why none did, on standard error.
void print_kernel_uses();

// A line on standard error that is rewritten in place; nothing unless that is a terminal, where only titles of steps
// are printed once.
class ProgressLine {
 public:
  void show(std::string_view title, std::string_view what, double share);
  void finish();  // ends the line, if one is open

 private:
  Timer timer_;
  double shown_at_ = -1;
  std::string step_;
  size_t width_ = 0;
};

// Ctrl-C.  After watch_interrupts() the first one only sets a flag, the second ends the program.
void watch_interrupts();
bool was_interrupted();
class Interrupted {};
void throw_if_interrupted();  // throws Interrupted

}  // namespace foveate::app
