// Runs a vision model for the Python tests: vision_tool MODEL WEIGHTS INPUTS OUTPUT, safetensors all three.
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <string>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "foveate/models/vision/halonet.h"
#include "foveate/models/vision/state_dict.h"
#include "foveate/ops/level.h"

namespace {

using namespace foveate;

at::Tensor run(const std::string& model, const std::string& weights, const io::Safetensors& inputs) {
  const auto input = [&](const char* name) { return models::restore(inputs.tensor(name)); };
  models::HaloNet net(models::halonet_config(model));
  models::load_state_dict(*net, weights);
  net->eval();
  return net->forward(input("image"));
}

}  // namespace

int main(int count, char** arguments) try {
  require(count == 5, "vision_tool: MODEL WEIGHTS INPUTS OUTPUT, got {} arguments", count - 1);
  ops::avoid_faulty_products();
  const at::NoGradGuard no_gradients;
  const at::Tensor out = run(arguments[1], arguments[2], io::Safetensors::open(arguments[3])).contiguous();
  const std::vector<io::StoredTensor> stored = {models::store("out", out)};
  io::write_safetensors(arguments[4], stored);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
