// What the runs of `foveate train` share.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "foveate/train/trainer.h"
#include "options.h"

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

void add_run_options(CLI::App& command, TrainCommand& options);
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
