#include "foveate/eval/find_patterns.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "foveate/attention/dense.h"
#include "foveate/base/error.h"
#include "foveate/models/language/session.h"

namespace foveate::eval {
namespace {

using attention::Attended;
using attention::Inputs;

// One dense reading of the tokens, layer by layer.
void read_densely(const models::Decoder& decoder, std::span<const int32_t> tokens, const LayerDone& done,
                  const std::function<void(const Inputs&, const Attended&)>& layer) {
  const at::NoGradGuard no_grad;
  models::SessionOptions options;
  options.observe = [&](const Inputs& in, const Attended& attended) {
    layer(in, attended);
    if (done) done(double(in.layer + 1) / double(decoder.layers()));
  };
  const std::vector<attention::Mechanism> dense(size_t(decoder.layers()), attention::Dense{});
  models::Session(decoder, dense, options).prefill(tokens);
}

}  // namespace

std::vector<attention::LayerPatterns> find_line_patterns(const models::Decoder& decoder,
                                                         std::span<const int32_t> tokens,
                                                         const attention::HeadSearch& search, const LayerDone& done) {
  std::vector<attention::LayerPatterns> layers;
  read_densely(decoder, tokens, done,
               [&](const Inputs& in, const Attended&) { layers.push_back(attention::search_heads(search, in)); });
  return layers;
}

std::vector<std::vector<double>> find_gates(const models::Decoder& decoder, std::span<const int32_t> tokens,
                                            const attention::Window& streaming, const LayerDone& done) {
  streaming.validate();
  std::vector<std::vector<double>> layers;
  read_densely(decoder, tokens, done, [&](const Inputs& in, const Attended& dense) {
    const at::Tensor kept = (*streaming.attend(in).lse - *dense.lse).exp();  // [1, Hq, rows]
    const at::Tensor lost = (1 - kept.mean({0, 2}, false, at::kDouble).view({in.k.size(1), -1}).mean(1)).clamp_min(0);
    layers.emplace_back(lost.const_data_ptr<double>(), lost.const_data_ptr<double>() + lost.numel());
  });
  return layers;
}

std::string gates_as_lines(const std::vector<std::vector<double>>& gates) {
  std::string text;
  for (const std::vector<double>& layer : gates) text += fmt::format("{:.6f}\n", fmt::join(layer, "\t"));
  return text;
}

}  // namespace foveate::eval
