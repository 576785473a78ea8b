// foveate train upsampler: UPLiFT learns to make the features of a trained backbone finer.

#include <nlohmann/json.hpp>

#include "foveate/models/vision/state_dict.h"
#include "foveate/train/upsampler.h"
#include "train.h"

namespace foveate::app {
namespace {

struct Options {
  TrainCommand command;
  train::UpsamplerModel model;
  std::string data = "fashion-mnist", backbone, out;
  int64_t scored = 500;
  int threads = 0;
};

nlohmann::ordered_json as_json(const train::Closeness& c) { return {{"cosine", c.cosine}, {"square", c.square}}; }

void print_json(const std::vector<train::UpsamplingScore>& scores, int64_t parameters) {
  nlohmann::ordered_json line = {{"scored", "test"}, {"parameters", parameters}};
  for (size_t i = 0; i < scores.size(); ++i)
    line[fmt::format("{}x", 2 << i)] = {{"uplift", as_json(scores[i].uplift)},
                                        {"bilinear", as_json(scores[i].bilinear)},
                                        {"nearest", as_json(scores[i].nearest)}};
  fmt::print("{}\n", line.dump());
}

void print_table(const std::vector<train::UpsamplingScore>& scores, int64_t parameters) {
  fmt::print("test  cosine to the true features ({:.3f}M parameters)", double(parameters) / 1e6);
  for (size_t i = 0; i < scores.size(); ++i)
    fmt::print("  {}x: uplift {:.4f} bilinear {:.4f} nearest {:.4f}", 2 << i, scores[i].uplift.cosine,
               scores[i].bilinear.cosine, scores[i].nearest.cosine);
  fmt::print("\n");
}

void train_upsampler(const Options& options) {
  check_checkpoint(options.command);
  check_output(options.out);
  use_threads(options.threads);
  const train::TrainOptions& o = options.command.train;
  const train::Upsampler upsampler(options.model, train::load_backbone(options.backbone), uint64_t(o.seed));
  const train::ImageSet set = train::read_mnist(options.data, train::ImagePart::train);
  const train::ImageSet test = train::read_mnist(options.data, train::ImagePart::test);
  auto subject = upsampler.subject();
  subject["data"] = options.data;
  train::Trainer trainer(
      upsampler.parameters(), [&](int64_t step, uint64_t seed) { return upsampler.loss(set, step, seed); }, o, subject,
      upsampler.buffers());
  resume(trainer, options.command);
  run_training(trainer, options.command);
  if (!options.out.empty()) upsampler.save(options.out);
  const auto scores = upsampler.score(test, options.scored);
  const int64_t parameters = models::count_parameters(*upsampler.net());
  (options.command.is_json ? print_json : print_table)(scores, parameters);
}

}  // namespace

void add_train_upsampler(CLI::App& train) {
  auto options = std::make_shared<Options>();
  options->command.unit = "mosaics";
  train::TrainOptions& o = options->command.train;
  o.steps = 400, o.warmup = 20, o.lr = 2e-3, o.weight_decay = 0, o.beta2 = 0.99;
  CLI::App* command = train.add_subcommand("upsampler", "UPLiFT learns to make the features of a backbone finer");
  command
      ->add_option("--backbone", options->backbone,
                   "weights (-o) of foveate train image-classifier, kind nat or dinat; they stay as they are")
      ->required();
  command->add_option("--data", options->data, "fetched set, or folder with MNIST's files")->capture_default_str();
  add_fields(*command, options->model);
  command->add_option("--scored", options->scored, "most mosaics of test images to score with")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_run_options(*command, options->command);
  command->add_option("-o,--out", options->out, "weights (safetensors, names of UPLiFT's), written at the end");
  add_threads(*command, options->threads);
  command->footer(
      "The last line scores mosaics of the test images, which no step reads: the cosine of features made of the most\n"
      "reduced mosaic to those that the backbone gives of larger ones.\n"
      "Examples:\n"
      "  foveate train image-classifier -o out/nat.safetensors\n"
      "  foveate train upsampler --backbone out/nat.safetensors -o out/uplift.safetensors --chart out/uplift.html");
  command->callback([options] { train_upsampler(*options); });
}

}  // namespace foveate::app
