#include "foveate/models/vision/initialise.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

namespace foveate::models {
namespace {

template <class Draw>
void fill_each(const at::Tensor& t, const Draw& draw) {
  float* data = t.data_ptr<float>();
  for (int64_t i = 0; i < t.numel(); ++i) data[i] = float(draw());
}

}  // namespace

void initialise(torch::nn::Module& module, uint64_t seed, const Fill& fill) {
  const at::NoGradGuard no_gradients;
  uint64_t stream = 0;
  for (const auto& item : module.named_parameters()) {
    Random random(seed, stream++);
    fill(item.key(), item.value(), random);
  }
}

void fill_normal(const at::Tensor& t, double deviation, Random& random) {
  fill_each(t, [&] { return deviation * random.normal(); });
}

void fill_truncated_normal(const at::Tensor& t, double deviation, Random& random) {
  fill_each(t, [&] {
    for (;;)
      if (const double x = deviation * random.normal(); std::abs(x) <= 2) return x;
  });
}

void fill_uniform(const at::Tensor& t, double bound, Random& random) {
  fill_each(t, [&] { return bound * (2 * random.uniform() - 1); });
}

int64_t fan_in(const at::Tensor& weight) { return weight.numel() / weight.size(0); }

}  // namespace foveate::models
