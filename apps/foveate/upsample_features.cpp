// foveate upsample-features: an image's features as fine as UPLiFT makes them.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/upsample_nearest2d.h>

#include <algorithm>
#include <array>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/eval/feature_colours.h"
#include "foveate/eval/image_tensor.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "foveate/train/upsampler.h"
#include "options.h"

namespace foveate::app {
namespace {

struct Options {
  std::string image, backbone, model, out, picture;
  int64_t doublings = 2;
  int threads = 0;
};

// [1, 3, H, W], -1 .. 1, without what is left of cells at the bottom and the right.
at::Tensor read_cells(const std::string& path, int64_t patch) {
  const at::Tensor image = eval::to_tensor(io::read_image(path));
  const int64_t height = image.size(2) / patch * patch, width = image.size(3) / patch * patch;
  require(height > 0 && width > 0, "{}: the image must be {} x {} pixels or more, a cell of the backbone, got {} x {}",
          path, patch, patch, image.size(2), image.size(3));
  return image.slice(2, 0, height).slice(3, 0, width) * 2 - 1;
}

// Bilinear features and ours in the same colours, side by side, as large as the image at least.
void write_picture(const std::string& path, const at::Tensor& bilinear, const at::Tensor& fine, int64_t height) {
  const auto pictures = eval::colour_features(std::array{bilinear[0], fine[0]});
  const at::Tensor both = at::cat({pictures[0], pictures[1]}, 2).unsqueeze(0);
  const int64_t times = std::max<int64_t>(1, height / both.size(2));
  io::write_image(path, eval::to_image(at::upsample_nearest2d(both, {times * both.size(2), times * both.size(3)})));
}

void upsample_features(const Options& options) {
  check_output(options.out);
  if (!options.picture.empty()) io::image_format(options.picture), check_output(options.picture);
  use_threads(options.threads);
  const at::NoGradGuard no_grad;
  const train::Backbone backbone = train::load_backbone(options.backbone);
  models::Uplift net = train::load_upsampler(options.model, backbone);
  net->fold_batch_norms();
  const at::Tensor image = read_cells(options.image, backbone.patch), coarse = backbone.features(image);
  const at::Tensor fine = net->forward(image, coarse, {.iterations = options.doublings}).contiguous();
  const at::Tensor map = fine[0];
  const std::array stored = {models::store("features", map)};
  io::write_safetensors(options.out, stored);
  if (!options.picture.empty())
    write_picture(options.picture, train::upsample_bilinear(coarse, options.doublings), fine, image.size(2));
  fmt::print("features [{}] of {} x {} pixels\n", fmt::join(map.sizes(), ", "), image.size(2), image.size(3));
}

}  // namespace

void add_upsample_features(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("upsample-features", "an image's features, made finer by UPLiFT");
  command->add_option("image", options->image, "PNG or JPEG; cut at the bottom and the right to whole cells")
      ->required();
  command->add_option("--backbone", options->backbone, "weights of foveate train image-classifier")->required();
  command->add_option("--model", options->model, "weights of foveate train upsampler, trained with this backbone")
      ->required();
  command->add_option("-o,--out", options->out, "safetensors with the tensor `features` [C, H, W]")->required();
  command->add_option("--doublings", options->doublings, "how often rows and columns are doubled")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  command->add_option("--image-out", options->picture,
                      "PNG or JPEG: bilinear features and these side by side, coloured by three principal components");
  add_threads(*command, options->threads);
  add_explain_option(*command);
  command->footer(
      "Examples:\n"
      "  foveate upsample-features cat.png --backbone out/nat.safetensors --model out/uplift.safetensors \\\n"
      "      -o out/cat.safetensors --image-out out/cat.png");
  command->callback([options] { upsample_features(*options); });
}

}  // namespace foveate::app
