// foveate train image-classifier: a small vision model learns classes of images.

#include <nlohmann/json.hpp>
#include <set>

#include "foveate/models/vision/state_dict.h"
#include "foveate/train/image_classifier.h"
#include "train.h"
#include "window_views.h"

namespace foveate::app {
namespace {

struct Options {
  TrainCommand command;
  train::ClassifierModel model;
  train::Augment augment;
  std::string data = "fashion-mnist", out;
  int threads = 0;
};

// What one layer of each kind sees.
std::string windows_of(const train::ClassifierModel& model, int64_t height, int64_t width, int64_t classes) {
  std::string html;
  std::set<std::string> drawn;
  const auto draw = [&](const report::WindowView& view) {
    if (view.places() <= report::kMostWindowPlaces && drawn.insert(view.title).second) html += window_view(view);
  };
  if (model.is_nat()) {
    const models::NatConfig config = model.nat(height, width, classes);
    height = (height + config.patch - 1) / config.patch, width = (width + config.patch - 1) / config.patch;
    for (size_t level = 0; level < config.depths.size(); ++level) {
      for (const int64_t dilation : config.dilations[level]) {
        NeighborhoodAxis row{.length = height, .kernel = config.kernel, .dilation = dilation}, column = row;
        column.length = width;
        draw(view_windows(fmt::format("level {}: {} x {} tokens, windows of {} x {}, dilation {}", level + 1, height,
                                      width, config.kernel, config.kernel, dilation),
                          Neighborhood{{row, column}}));
      }
      height = (height + 1) / 2, width = (width + 1) / 2;
    }
  } else {
    const models::HaloNetConfig config = model.halonet(height, width, classes);
    if (config.stem_end != models::StemEnd::none) height = (height + 1) / 2, width = (width + 1) / 2;
    for (const auto& stage : config.stages) {
      height = (height + 1) / 2, width = (width + 1) / 2;
      const models::HaloBlock& block = stage.back();
      if (!block.attention) continue;
      const attention::Halo& halo = block.attention->halo;
      draw(view_windows(
          fmt::format("{} x {} tokens, blocks of {} with a halo of {}", height, width, halo.block, halo.halo), halo,
          height, width));
    }
  }
  if (html.empty()) return html;
  return "<h2>Who sees whom</h2>\n<p>Point at a token: it sees what is marked.</p>\n" + html;
}

void train_image_classifier(Options options) {
  check_checkpoint(options.command);
  check_output(options.out);
  use_threads(options.threads);
  const train::TrainOptions& o = options.command.train;
  const train::ImageSet set = train::read_mnist(options.data, train::ImagePart::train);
  const train::ImageSet test = train::read_mnist(options.data, train::ImagePart::test);
  const train::ImageClassifier classifier(options.model, set, uint64_t(o.seed));
  auto subject = classifier.subject();
  subject["data"] = options.data;
  subject["augment"] = to_full_spec(options.augment).text();
  options.command.unit = "images";
  if (!options.command.chart.empty())
    options.command.chart_end = windows_of(options.model, set.images.size(2), set.images.size(3), set.classes);
  train::Trainer trainer(
      classifier.parameters(),
      [&](int64_t step, uint64_t seed) { return classifier.loss(set, options.augment, step, seed); }, o, subject,
      classifier.buffers());
  resume(trainer, options.command);
  run_training(trainer, options.command);
  if (!options.out.empty()) models::save_state_dict(classifier.module(), options.out, classifier.subject());
  const double top1 = classifier.top1(test);
  const int64_t parameters = models::count_parameters(classifier.module());
  if (options.command.is_json)
    fmt::print("{}\n", nlohmann::ordered_json{{"scored", "test"},
                                              {"top1", top1},
                                              {"images", test.size()},
                                              {"parameters", parameters},
                                              {"macs", classifier.macs()}}
                           .dump());
  else
    fmt::print("test  top-1 {:.2f}% of {} images  ({:.3f}M parameters, {:.1f}M multiply-adds an image)\n", 100 * top1,
               test.size(), double(parameters) / 1e6, classifier.macs() / 1e6);
}

}  // namespace

void add_train_image_classifier(CLI::App& train) {
  auto options = std::make_shared<Options>();
  train::TrainOptions& o = options->command.train;
  options->augment = {.pad = 1, .flip = 0.5, .jitter = 0, .erase = 0, .mixup = 0, .cutmix = 0};  // for a few epochs
  o.steps = 8000, o.warmup = 200, o.lr = 2e-3, o.weight_decay = 0.05, o.clip = 5, o.beta2 = 0.999;
  CLI::App* command =
      train.add_subcommand("image-classifier", "a small NAT, DiNAT or HaloNet learns classes of images");
  command->add_option("--data", options->data, "fetched set, or folder with MNIST's files")->capture_default_str();
  add_fields(*command, options->model);
  add_fields(*command, options->augment);
  add_run_options(*command, options->command);
  command->add_option("-o,--out", options->out,
                      "weights (safetensors, names of NAT's or timm's checkpoints), written at the end");
  add_threads(*command, options->threads);
  command->footer(
      "The last line scores the test images, which no step reads.\n"
      "Examples:\n"
      "  tools/fetch.py fashion-mnist\n"
      "  foveate train image-classifier --kind dinat -o out/dinat.safetensors --chart out/dinat.html\n"
      "  foveate train image-classifier --kind hybrid --batch 32 --steps 14000\n"
      "  foveate train image-classifier --checkpoint out/dinat.ckpt --save-every 500 --resume");
  command->callback([options] { train_image_classifier(*options); });
}

}  // namespace foveate::app
