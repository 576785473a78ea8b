// foveate train recall: a small decoder learns associative recall.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "foveate/train/recall.h"
#include "train.h"

namespace foveate::app {
namespace {

struct Options {
  TrainCommand command;
  train::RecallTask task;
  train::RecallModel model;
  std::string attention = "nsa:compress=8,stride=4,block=8,blocks=6,window=16";
  int64_t score_batches = 16;
  int threads = 0;
};

struct Row {
  const char* name;
  train::RecallScore score;
};

void print_scores(const std::vector<Row>& rows, const Options& options) {
  const auto percent = [](double share) { return fmt::format("{:.1f}%", 100 * share); };
  for (const Row& row : rows) {
    const train::RecallScore& s = row.score;
    nlohmann::ordered_json line = {{"scored", row.name}, {"loss", s.loss}, {"accuracy", s.accuracy}};
    std::string text = fmt::format("{:16} loss {:.4f}  accuracy {:>6}", row.name, s.loss, percent(s.accuracy));
    if (s.found) line["found"] = *s.found, text += fmt::format("  found {:>6}", percent(*s.found));
    const auto add = [&](const std::string& texts, std::optional<double> accuracy, std::optional<double> full) {
      if (!full) return;
      line[texts + "_accuracy"] = *accuracy, line[texts + "_full"] = *full;
      text += fmt::format("  {} {} ({} full)", texts, percent(*accuracy), percent(*full));
    };
    add("far", s.far_accuracy, s.far_full);
    add("near", s.near_accuracy, s.near_full);
    fmt::print("{}\n", options.command.is_json ? line.dump() : text);
  }
}

void train_recall(const Options& options) {
  check_checkpoint(options.command);
  use_threads(options.threads);
  const train::TrainOptions& o = options.command.train;
  const auto anew = [&] { return train::Recall(options.task, options.model, options.attention, uint64_t(o.seed)); };
  const train::Recall recall = anew();
  train::Trainer trainer(
      recall.parameters(), [&](int64_t step, uint64_t seed) { return recall.loss(step, o.steps, seed); }, o,
      recall.subject());
  resume(trainer, options.command);
  const auto score = [&](train::Scored what) { return recall.score(what, options.score_batches); };
  std::vector<Row> rows{{"before training", anew().score(train::Scored::trained, options.score_batches)}};
  run_training(trainer, options.command);
  rows.push_back({"trained", score(train::Scored::trained)});
  const auto has_parts = [](const attention::Mechanism& m) { return m.learned() != nullptr; };
  if (std::ranges::any_of(recall.mechanisms(), has_parts))
    rows.push_back({"untrained parts", score(train::Scored::untrained_parts)});
  if (recall.has_routes()) rows.push_back({"shuffled routes", score(train::Scored::shuffled_routes)});
  print_scores(rows, options);
}

}  // namespace

void add_train_recall(CLI::App& train) {
  auto options = std::make_shared<Options>();
  options->command.train.lr = 3e-3;
  CLI::App* command = train.add_subcommand("recall", "a small decoder learns to recall values of keys far back");
  command->add_option("--attention", options->attention, "mechanism, see `foveate list`")->capture_default_str();
  add_fields(*command, options->task);
  add_fields(*command, options->model);
  add_run_options(*command, options->command);
  command->add_option("--score-batches", options->score_batches, "batches of texts, trained on by no step, to score")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_threads(*command, options->threads);
  command->footer(
      "The last lines score texts that were not trained on: the model before and after training, the trained one with\n"
      "the mechanism's learned parts as they began, and with flux the trained one whose decisions are given to other\n"
      "texts.  found: questions whose value some head of the last layer selects, if that is not flux.\n"
      "Examples:\n"
      "  foveate train recall --attention nsa:compress=8,stride=4,block=8,blocks=6,window=16 --steps 1500\n"
      "  foveate train recall --checkpoint out/nsa.safetensors --save-every 100 --resume");
  command->callback([options] { train_recall(*options); });
}

}  // namespace foveate::app
