// foveate train super-resolution: a small vision model learns to enlarge photographs.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "foveate/models/vision/catanet_weights.h"
#include "foveate/train/super_resolution.h"
#include "train.h"

namespace foveate::app {
namespace {

struct Options {
  TrainCommand command;
  train::SuperResolutionModel model;
  train::PatchOptions patches{.batch = 4, .size = 32};
  std::string data = "photos", test_data = "test-photos", out;
  int threads = 0;
};

struct Scores {
  train::EnlargingScore ours, bicubic;
};

void print_json(const Scores& scores, const std::vector<train::PhotoPair>& photos, int64_t parameters, double macs) {
  const auto numbers = [](const eval::ImageQuality& ours, const eval::ImageQuality& bicubic) {
    return nlohmann::ordered_json{
        {"psnr", ours.psnr}, {"ssim", ours.ssim}, {"bicubic_psnr", bicubic.psnr}, {"bicubic_ssim", bicubic.ssim}};
  };
  nlohmann::ordered_json line = {{"scored", "test"}};
  line.update(numbers(scores.ours.mean, scores.bicubic.mean));
  line["parameters"] = parameters;
  line["macs"] = macs;
  for (size_t i = 0; i < photos.size(); ++i) {
    line["photos"].push_back({{"name", std::filesystem::path(photos[i].name).filename().string()}});
    line["photos"].back().update(numbers(scores.ours.photos[i], scores.bicubic.photos[i]));
  }
  fmt::print("{}\n", line.dump());
}

void print_table(const Scores& scores, const std::vector<train::PhotoPair>& photos, int64_t parameters, double macs) {
  const auto print = [](const std::string& what, const eval::ImageQuality& ours, const eval::ImageQuality& bicubic) {
    fmt::print("{:<24} PSNR {:6.2f} dB  SSIM {:.4f}   bicubic {:6.2f} dB  {:.4f}", what, ours.psnr, ours.ssim,
               bicubic.psnr, bicubic.ssim);
  };
  for (size_t i = 0; i < photos.size(); ++i) {
    print(std::filesystem::path(photos[i].name).filename().string(), scores.ours.photos[i], scores.bicubic.photos[i]);
    fmt::print("\n");
  }
  print(fmt::format("test, {} photos", photos.size()), scores.ours.mean, scores.bicubic.mean);
  fmt::print("  ({:.3f}M parameters, {:.1f}G multiply-adds for 1280 x 720)\n", double(parameters) / 1e6, macs / 1e9);
}

void train_super_resolution(const Options& options) {
  check_checkpoint(options.command);
  check_output(options.out);
  use_threads(options.threads);
  const train::TrainOptions& o = options.command.train;
  const train::SuperResolution learner(options.model, options.patches, uint64_t(o.seed));
  const auto photos = train::read_photos(options.data, options.model.scale);
  const auto test = train::read_photos(options.test_data, options.model.scale);
  auto subject = learner.subject();
  subject["data"] = options.data;
  train::Trainer trainer(
      learner.parameters(), [&](int64_t step, uint64_t seed) { return learner.loss(photos, step, seed); }, o, subject,
      learner.buffers());
  resume(trainer, options.command);
  run_training(trainer, options.command);
  if (!options.out.empty()) models::save_catanet(*learner.net(), options.out);
  const Scores scores{learner.score(test), train::score_enlarging(train::bicubic(options.model.scale), test)};
  const int64_t parameters = models::count_parameters(*learner.net());
  (options.command.is_json ? print_json : print_table)(scores, test, parameters, learner.macs());
}

}  // namespace

void add_train_super_resolution(CLI::App& train) {
  auto options = std::make_shared<Options>();
  options->command.unit = "pixels";
  train::TrainOptions& o = options->command.train;
  o.steps = 3000, o.warmup = 100, o.lr = 2e-3, o.weight_decay = 1e-4, o.beta2 = 0.99;
  CLI::App* command = train.add_subcommand("super-resolution", "a small CATANet learns to enlarge photographs");
  command->add_option("--data", options->data, "fetched set, or folder of PNG and JPEG files")->capture_default_str();
  command->add_option("--test-data", options->test_data, "the same, of photographs that no step reads")
      ->capture_default_str();
  add_fields(*command, options->model);
  add_fields(*command, options->patches);
  add_run_options(*command, options->command);
  command->add_option("-o,--out", options->out, "weights (safetensors, released names), written at the end");
  add_threads(*command, options->threads);
  command->footer(
      "The last lines score --test-data: each photograph, and the mean.\n"
      "Examples:\n"
      "  tools/fetch.py photos test-photos\n"
      "  foveate train super-resolution -o out/x2.safetensors --chart out/x2.html\n"
      "  foveate train super-resolution --aggregates false\n"
      "  foveate upscale photo.png --model out/x2.safetensors -o large.png");
  command->callback([options] { train_super_resolution(*options); });
}

}  // namespace foveate::app
