// What the runs of `foveate train` share.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "foveate/train/trainer.h"

namespace foveate::app {

struct TrainCommand {
  train::TrainOptions train;
  train::RunOptions run;
  int64_t log_every = 50;
  bool is_json = false;
  std::string chart;  // file; empty: none
};

// An option of the command line for every field: --weight-decay for weight_decay.
template <class T>
void add_fields(CLI::App& command, T& options) {
  T::fields(options, [&]<class V>(std::string_view name, V& value, Range range, std::string_view doc) {
    std::string flag = "--" + std::string(name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    CLI::Option* option = command.add_option(flag, value, std::string(doc))->capture_default_str();
    option->check(CLI::Validator(
        [range, flag](const std::string& text) -> std::string {
          V number{};
          const bool fits =
              CLI::detail::lexical_cast(text, number) && double(number) >= range.low && double(number) <= range.high;
          return fits ? "" : fmt::format("must be {}, got {}", detail::legal_text(number, range), text);
        },
        detail::legal_text(value, range)));
  });
}

void add_run_options(CLI::App& command, TrainCommand& options);
// Throws Error: a folder that cannot be written to; "" is no file.
void check_output(const std::string& file);
// Throws Error: the same, options that need --checkpoint without it.
void check_checkpoint(const TrainCommand& options);
// With --resume the run as its checkpoint has it: before anything that takes long, for it may be refused.
void resume(train::Trainer& trainer, const TrainCommand& options);
// All steps that are left, with progress; stops with a checkpoint on Ctrl-C.  The chart is written in either case.
void run_training(train::Trainer& trainer, const TrainCommand& options);

void add_train_recall(CLI::App& train);
void add_train_layers(CLI::App& train);
void add_train_image_classifier(CLI::App& train);

}  // namespace foveate::app
