// Runs a vision model for the Python tests: vision_tool MODEL WEIGHTS INPUTS OUTPUT, safetensors all three.
// MODEL: a name of halonet_config, "uplift", "uplift-vae", "uplift-apart", "uplift-conv-steps", "uplift-max-steps",
// "catanet", "catanet-options", or
// "catanet-training", which writes the buffers beside the result.
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "foveate/models/vision/catanet.h"
#include "foveate/models/vision/halonet.h"
#include "foveate/models/vision/state_dict.h"
#include "foveate/models/vision/uplift.h"
#include "foveate/ops/level.h"

namespace {

using namespace foveate;
using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

models::UpliftConfig uplift_named(const std::string& name) {
  if (name == "uplift") return models::uplift_for_vit();
  if (name == "uplift-conv-steps" || name == "uplift-max-steps") {
    models::UpliftConfig stepped = models::uplift_for_vit(6, 16);
    stepped.encoder = {{4}, {8}, {12}}, stepped.decoder = {{20}, {16, 18}, {20}};
    stepped.encoder_step = models::EncoderStep::conv, stepped.adds_smaller = true;
    if (name == "uplift-conv-steps") return stepped;
    stepped.patch = 9, stepped.encoder[1] = {8, 10}, stepped.decoder.resize(1), stepped.offsets = 9;
    stepped.encoder_step = models::EncoderStep::max, stepped.adds_smaller = false;
    return stepped;
  }
  models::UpliftConfig config = models::uplift_for_vae();
  config.encoder = {{8, 8}, {12}}, config.decoder = {{8}, {24, 20}}, config.refiner = {8, 8};
  if (name == "uplift-apart") config.shares_encoder = false, config.offsets.reset();
  return config;
}

models::CataNetConfig catanet_named(const std::string& name) {
  if (name == "catanet") return {};
  models::CataNetConfig config{.upscale = 3, .dim = 8, .qk_dim = 4, .mlp_dim = 12, .heads = 2};
  config.patches = {5, 7}, config.centres = {3, 4}, config.groups = {16, 8};
  if (name == "catanet-options") {
    config.window = attention::GroupWindow::both, config.merge = attention::CentreMerge::joint;
    config.halves_overlaps = config.refines_always = true;
  }
  return config;
}

template <class Net, class Run>
Tensors run(Net net, const std::string& weights, bool trains, const Run& forward) {
  models::load_state_dict(*net, weights);
  net->train(trains);
  Tensors all = {{"out", forward(net).contiguous()}};
  if (trains)
    for (const auto& buffer : net->named_buffers()) all.emplace_back(buffer.key(), buffer.value());
  return all;
}

Tensors run(const std::string& model, const std::string& weights, const io::Safetensors& inputs) {
  const at::Tensor image = models::restore(inputs.tensor("image"));
  const bool trains = model.ends_with("-training");
  const auto of_image = [&](auto& net) { return net->forward(image); };
  if (model.starts_with("catanet")) return run(models::CataNet(catanet_named(model)), weights, trains, of_image);
  if (!model.starts_with("uplift"))
    return run(models::HaloNet(models::halonet_config(model)), weights, trains, of_image);
  const at::Tensor features = models::restore(inputs.tensor("features"));
  return run(models::Uplift(uplift_named(model)), weights, trains, [&](auto& net) {
    return net->forward(image, features, {.iterations = 2, .size = std::pair<int64_t, int64_t>{9, 17}});
  });
}

}  // namespace

int main(int count, char** arguments) try {
  require(count == 5, "vision_tool: MODEL WEIGHTS INPUTS OUTPUT, got {} arguments", count - 1);
  ops::avoid_faulty_products();
  const at::NoGradGuard no_gradients;
  const Tensors all = run(arguments[1], arguments[2], io::Safetensors::open(arguments[3]));
  std::vector<io::StoredTensor> stored;
  for (const auto& [name, tensor] : all) stored.push_back(models::store(name, tensor));
  io::write_safetensors(arguments[4], stored);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
