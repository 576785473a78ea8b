// foveate train: learned parts, and small models with them.
#include "train.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/base/write_file.h"
#include "foveate/report/training.h"
#include "machine.h"

namespace foveate::app {

void add_run_options(CLI::App& command, TrainCommand& options) {
  add_fields(command, options.train);
  command.add_option("--checkpoint", options.run.checkpoint, "file from which a stopped run can go on");
  command.add_option("--save-every", options.run.save_every, "steps between checkpoints; 0: at the end and on Ctrl-C")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag("--resume", options.run.resumes, "go on from --checkpoint, with the options it was written with");
  command.add_option("--log-every", options.log_every, "steps between lines of progress")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("--json", options.is_json, "a JSON line for every --log-every steps and for the scores");
  command.add_option("--chart", options.chart,
                     "HTML page with a curve of the loss and of everything else that is printed");
  add_explain_option(command);
}

void check_checkpoint(const TrainCommand& options) {
  require(options.run.save_every == 0 || !options.run.checkpoint.empty(),
          "train: --save-every needs --checkpoint FILE, got none");
  require(!options.run.resumes || !options.run.checkpoint.empty(), "train: --resume needs --checkpoint FILE, got none");
  check_output(options.run.checkpoint);
  check_output(options.chart);
}

namespace {

class Progress {
 public:
  explicit Progress(const TrainCommand& options) : options_(options) {}

  const std::vector<report::TrainingRecord>& records() const { return records_; }

  void operator()(const train::StepReport& report) {
    loss_ += report.loss, seconds_ += report.seconds, tokens_ += report.tokens, ++count_;
    for (const auto& [name, value] : report.notes) notes_[name] += value;
    const int64_t steps = options_.train.steps;
    if (!options_.is_json && ::isatty(STDERR_FILENO))
      line_.show("train", fmt::format("step {} of {}, loss {:.4f}", report.step, steps, report.loss),
                 double(report.step) / double(steps));
    if (report.step % options_.log_every == 0 || report.step == steps) print(report);
    throw_if_interrupted();
  }

 private:
  // Means over the steps since the last line.
  void print(const train::StepReport& report) {
    line_.finish();
    const double n = double(count_), speed = double(tokens_) / seconds_;
    report::TrainingRecord record{report.step,
                                  {{"loss", loss_ / n},
                                   {"lr", report.learning_rate},
                                   {"gradient_norm", report.gradient_norm},
                                   {options_.unit + "_per_s", speed}}};
    for (const auto& [name, sum] : notes_) record.values.emplace_back(name, sum / n);
    if (options_.is_json) {
      nlohmann::ordered_json line = {{"step", record.step}};
      for (const auto& [name, value] : record.values) line[name] = value;
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("step {:>6}  loss {:8.4f}  lr {:.2e}  {:>8.0f} {}/s", report.step, loss_ / n, report.learning_rate,
                 speed, options_.unit);
      for (const auto& [name, sum] : notes_) fmt::print("  {} {:.4f}", name, sum / n);
      fmt::print("\n");
    }
    std::fflush(stdout);
    records_.push_back(std::move(record));
    loss_ = seconds_ = 0, tokens_ = count_ = 0;
    notes_.clear();
  }

  const TrainCommand& options_;
  ProgressLine line_;
  double loss_ = 0, seconds_ = 0;
  int64_t tokens_ = 0, count_ = 0;
  std::map<std::string, double> notes_;
  std::vector<report::TrainingRecord> records_;
};

}  // namespace

void resume(train::Trainer& trainer, const TrainCommand& options) {
  if (options.run.resumes) trainer.load(options.run.checkpoint);
}

void run_training(train::Trainer& trainer, const TrainCommand& options) {
  watch_interrupts();
  train::RunOptions run = options.run;
  run.resumes = false;  // the caller did
  Progress progress(options);
  run.observe = [&](const train::StepReport& report) { progress(report); };
  const auto write_chart = [&] {
    if (options.chart.empty()) return;
    write_file_atomically(options.chart, report::training_page(command_line(), progress.records(), options.chart_end));
  };
  try {
    train::run(trainer, run);
  } catch (...) {
    write_chart();
    throw;
  }
  write_chart();
}

void add_train(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "train learned parts of mechanisms, or small models with them");
  command->require_subcommand(1);
  add_train_recall(*command);
  add_train_layers(*command);
  add_train_image_classifier(*command);
  add_train_super_resolution(*command);
  add_train_upsampler(*command);
  command->footer(
      "Examples:\n"
      "  foveate train recall --attention nsa:compress=8,stride=4,block=8,blocks=6,window=16\n"
      "`foveate train NAME --help` shows options; docs/training.md what the runs give.");
}

}  // namespace foveate::app
