// foveate train indexer: learned parts of mechanisms in the layers of a frozen model.
#include <nlohmann/json.hpp>

#include "common.h"
#include "foveate/eval/recall.h"
#include "foveate/io/cache.h"
#include "foveate/train/layers.h"
#include "train.h"

namespace foveate::app {
namespace {

struct Options {
  TrainCommand command;
  ModelOptions model;
  std::string text = "book", attention, out;
  train::TextOptions windows;
};

void print_score(const char* name, const train::LayerScore& score, bool is_json) {
  if (is_json) {
    nlohmann::ordered_json line = {{"scored", name},
                                   {"loss", score.loss},
                                   {"kept_mass", score.kept_mass},
                                   {"kept_mass_by_layer", score.kept_mass_by_layer}};
    for (const auto& [note, value] : score.notes) line[note] = value;
    fmt::print("{}\n", line.dump());
    return;
  }
  fmt::print("{:16} loss {:.4f}  kept mass {:.1f}%", name, score.loss, 100 * score.kept_mass);
  for (const auto& [note, value] : score.notes) fmt::print("  {} {:.3f}", note, value);
  fmt::print("\n");
}

void train_layers(const Options& options, const train::LayerTask& task) {
  check_checkpoint(options.command);
  check_output(options.out);
  const std::string path = io::find_text(options.text);
  const LoadedModel loaded = load_model(options.model);
  const models::Decoder& decoder = *loaded.decoder;
  const train::TrainOptions& o = options.command.train;
  const auto anew = [&] {
    return models::equip_anew(attention::make_mechanisms(options.attention, decoder.layers()), decoder,
                              uint64_t(o.seed));
  };
  const eval::Codec codec = eval::codec_of(*loaded.tokenizer);
  const train::LayerTraining training(decoder, anew(), codec.encode(io::read_text(path)), codec.bos, options.windows,
                                      task);
  std::map<std::string, std::string> subject = {{"run", task.name},
                                                {"attention", options.attention},
                                                {"model", decoder.fingerprint()},
                                                {"text", fmt::format("{:016x}", training.text_hash())},
                                                {"length", fmt::format("{}", options.windows.length)},
                                                {"held_out", fmt::format("{}", options.windows.held_out)},
                                                {"dtype", options.model.dtype},
                                                {"weights", options.model.weights}};
  train::Trainer trainer(
      training.parameters(), [&](int64_t step, uint64_t seed) { return training.loss(step, seed); }, o,
      std::move(subject));
  resume(trainer, options.command);
  const train::LayerScore before = training.score(anew());
  run_training(trainer, options.command);
  if (!options.out.empty()) models::Adapter::save(options.out, decoder, training.mechanisms());
  print_score("before training", before, options.command.is_json);
  if (task.unlearned) {
    std::vector<attention::Mechanism> plain = training.mechanisms();
    for (attention::Mechanism& m : plain)
      if (m.learned()) m = task.unlearned(m);
    print_score("without parts", training.score(plain), options.command.is_json);
  }
  print_score("trained", training.score(training.mechanisms()), options.command.is_json);
}

void add_layer_run(CLI::App& train, const train::LayerTask& task, const char* what, const char* attention,
                   const char* footer) {
  auto options = std::make_shared<Options>();
  options->attention = attention;
  options->command.train.steps = 100, options->command.train.warmup = 10, options->command.log_every = 10;
  CLI::App* command = train.add_subcommand(task.name, what);
  add_model_options(*command, options->model);
  command->remove_option(command->get_option("--adapter"));  // what is trained begins anew, or goes on by --resume
  command->add_option("--text", options->text, "text file, or name of a fetched text")->capture_default_str();
  command->add_option("--attention", options->attention, "mechanism, see `foveate list`; layers of others are left out")
      ->capture_default_str();
  add_fields(*command, options->windows);
  add_run_options(*command, options->command);
  command->add_option("-o,--out", options->out, "adapter with what was learned, written at the end");
  command->footer(footer);
  command->callback([options, task] { train_layers(*options, task); });
}

}  // namespace

void add_train_layers(CLI::App& train) {
  add_layer_run(
      train, train::indexer_task(), "indexers of hisa learn from dense attention of a frozen model",
      "hisa:heads=4,dim=32,rope_dims=16,topk=128,block=32,block_topk=8",
      "kept mass: share of dense attention's weight on the keys that are selected, in windows of the text\n"
      "that no step reads.\n"
      "Examples:\n"
      "  foveate train indexer --model smollm2 --text book -o out/hisa.safetensors\n"
      "  foveate compare --attention hisa:heads=4,dim=32,rope_dims=16,topk=128,block=32,block_topk=8 --adapter "
      "out/hisa.safetensors");
  add_layer_run(
      train, train::boundaries_task(), "boundary predictors of dhsa learn where dense attention changes",
      "dhsa:chunks=learned,query_block=64,budget=256,global_tokens=16,local_tokens=32",
      "without parts: chunks of one length.  f1: of boundaries, that is gaps where the attention that later rows\n"
      "pay to the keys before and after differs at least twofold.\n"
      "Examples:\n"
      "  foveate train boundaries --model smollm2 --text book --attention "
      "'dhsa:chunks=learned,budget=512@0;dense' -o out/dhsa.safetensors\n"
      "  foveate compare --attention 'dhsa:chunks=learned,budget=512@0;dhsa:chunks=shared,budget=512' --adapter "
      "out/dhsa.safetensors");
}

}  // namespace foveate::app
