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
  std::string chart;            // file; empty: none
  std::string chart_end;        // HTML at the end of the chart's page
  std::string unit = "tokens";  // what StepReport counts in `tokens`
};

// An option of the command line for every field: --weight-decay for weight_decay.
template <class T>
void add_fields(CLI::App& command, T& options) {
  T::fields(options, [&]<class V>(std::string_view name, V& value, Range range, std::string_view doc) {
    std::string flag = "--" + std::string(name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    const auto read = [range](const std::string& text, V& into) {
      if constexpr (std::is_enum_v<V>)
        return detail::parse_value(text, into);
      else
        return CLI::detail::lexical_cast(text, into) && double(into) >= range.low && double(into) <= range.high;
    };
    CLI::Option* option = command.add_option_function<std::string>(
        flag, [read, &value](const std::string& text) { read(text, value); }, std::string(doc));
    option->default_str(detail::option_text(value));
    option->check(CLI::Validator(
        [read, range](const std::string& text) -> std::string {
          V other{};
          return read(text, other) ? "" : fmt::format("must be {}, got {}", detail::legal_text(other, range), text);
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
void add_train_super_resolution(CLI::App& train);
void add_train_upsampler(CLI::App& train);

}  // namespace foveate::app
