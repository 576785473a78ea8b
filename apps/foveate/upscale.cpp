// foveate upscale: an image made larger by a CATANet.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <unistd.h>

#include "commands.h"
#include "common.h"
#include "foveate/eval/image_tensor.h"
#include "foveate/models/vision/catanet_weights.h"
#include "foveate/models/vision/enlarge.h"
#include "foveate/ops/resize.h"
#include "options.h"

namespace foveate::app {
namespace {

struct Options {
  std::string image, model, out, side_by_side;
  models::Tiling tiling;
  bool ensembles = false, refines_centres = false;
  int threads = 0;
};

// Throws Error: what nobody wants to learn after minutes of work.
void check(const Options& options) {
  io::image_format(options.out);
  check_output(options.out);
  if (options.side_by_side.empty()) return;
  io::image_format(options.side_by_side);
  check_output(options.side_by_side);
}

models::CataNet load(const Options& options) {
  models::CataNetConfig config = models::catanet_config(options.model);
  config.refines_always = options.refines_centres;
  models::CataNet net(config);
  models::load_catanet(*net, options.model);
  net->eval();
  return net;
}

void check_sizes(const Options& options, const io::Image& image, const models::CataNetConfig& config) {
  const int64_t side = config.smallest_side(), tile = options.tiling.tile;
  require(config.channels == 3, "{}: the model must be of images of 3 channels, got {}", options.model,
          config.channels);
  require(image.width >= side && image.height >= side,
          "{}: must have {} x {} pixels or more, the model's largest patch, got {} x {}", options.image, side, side,
          image.width, image.height);
  require(tile == 0 || tile >= side, "upscale: --tile must be >= {}, the model's largest patch, got {}", side, tile);
  require(image.height * config.upscale <= io::kMostPixels / (image.width * config.upscale),
          "{}: must have at most {} pixels when enlarged, got {} x {}", options.image, io::kMostPixels,
          image.width * config.upscale, image.height * config.upscale);
}

bool is_grey(const at::Tensor& image) { return image.eq(image.narrow(1, 0, 1)).all().item<bool>(); }

at::Tensor enlarge(models::CataNet& net, const at::Tensor& image, const Options& options) {
  watch_interrupts();
  ProgressLine line;
  const auto observe = [&](int64_t done, int64_t all) {
    if (::isatty(STDERR_FILENO))
      line.show("upscale", fmt::format("tile {} of {}", done, all), double(done) / double(all));
    throw_if_interrupted();
  };
  models::ImageModel model = [&](const at::Tensor& x) { return net->forward(x); };
  if (options.ensembles) model = models::self_ensemble(std::move(model));
  const at::Tensor large = enlarge_in_tiles(model, image, net->config().upscale, options.tiling, observe);
  line.finish();
  return is_grey(image) ? large.mean(1, true) : large;
}

void upscale(const Options& options) {
  check(options);
  use_threads(options.threads);
  const at::NoGradGuard no_gradients;
  const bool keeps_alpha = io::image_format(options.out) == io::ImageFormat::png;
  const io::Image image =
      io::read_image(options.image, keeps_alpha ? io::Transparency::kept : io::Transparency::on_white);
  models::CataNet net = load(options);
  check_sizes(options, image, net->config());
  const Timer timer;
  const at::Tensor small = eval::to_tensor(image), large = enlarge(net, small, options);
  const auto bicubic = [&](const at::Tensor& x) { return ops::resize_bicubic(x, large.size(2), large.size(3)); };
  io::Image result = eval::to_image(large);
  if (!image.alpha.empty()) {
    const io::Image alpha{image.width, image.height, 1, image.alpha};
    result.alpha = eval::to_image(bicubic(eval::to_tensor(alpha))).pixels;
  }
  io::write_image(options.out, result);
  if (!options.side_by_side.empty())
    io::write_image(options.side_by_side, eval::to_image(at::cat({bicubic(small), large.expand({1, 3, -1, -1})}, 3)));
  fmt::print("{}: {} x {} -> {} x {} in {:.1f} s\n", options.out, image.width, image.height, result.width,
             result.height, timer.seconds());
}

}  // namespace

void add_upscale(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("upscale", "a larger image, by a CATANet");
  command->add_option("image", options->image, "PNG or JPEG file; 16 bits are read as 8")->required();
  command->add_option("--model", options->model, "weights of a CATANet: .safetensors as trained here, or .pth")
      ->required();
  command
      ->add_option(
          "-o,--out", options->out,
          "image; its name says whether PNG or JPEG.  Transparency is enlarged by bicubic means for PNG and laid "
          "on white for JPEG")
      ->required();
  add_fields(*command, options->tiling);
  command->add_flag("--self-ensemble", options->ensembles,
                    "mean over eight mirrored and turned images: eight times the work");
  command->add_flag("--refine-centres", options->refines_centres,
                    "centres of alike pixels are fitted to each tile, from the trained ones");
  command->add_option("--side-by-side", options->side_by_side, "image with the bicubic result on the left of this one");
  add_threads(*command, options->threads);
  add_explain_option(*command);
  command->footer(
      "Examples:\n"
      "  foveate train super-resolution -o out/x2.safetensors\n"
      "  foveate upscale photo.png --model out/x2.safetensors -o large.png --side-by-side compare.png");
  command->callback([options] { upscale(*options); });
}

}  // namespace foveate::app
