#include "foveate/models/vision/uplift.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/models/vision/initialise.h"
#include "foveate/models/vision/modules.h"

namespace foveate::models {
namespace {

using at::Tensor;
using torch::nn::Conv2dOptions;

std::string text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", ")); }

// y += x as far as both have channels.
Tensor add_channels(const Tensor& y, const Tensor& x) {
  const int64_t shared = std::min(x.size(1), y.size(1));
  y.narrow(1, 0, shared).add_(x.narrow(1, 0, shared));
  return y;
}

Tensor every(const Tensor& x, int64_t step) { return step == 1 ? x : x.slice(2, 0, {}, step).slice(3, 0, {}, step); }

Tensor nearest(const Tensor& x, int64_t height, int64_t width) {
  return x.size(2) == height && x.size(3) == width ? x : at::upsample_nearest2d(x, {height, width});
}

UpliftConvs add_convs(torch::nn::Module& parent, const std::string& name, int64_t from,
                      const std::vector<int64_t>& widths, int64_t convs, ConvNorm norm) {
  const auto blocks = add_folder(*add_folder(parent, name), "blocks");
  UpliftConvs all;
  for (const int64_t width : widths) {
    all.push_back(blocks->register_module(std::to_string(all.size()),
                                          std::make_shared<UpliftConvImpl>(from, width, convs, norm)));
    from = width;
  }
  return all;
}

Tensor run(const UpliftConvs& convs, Tensor x) {
  for (const auto& conv : convs) x = conv->forward(x);
  return x;
}

const UpliftConfig& checked(const UpliftConfig& c) {
  require(c.encoder.size() >= 2 && std::ranges::none_of(c.encoder, &std::vector<int64_t>::empty) && !c.before.empty() &&
              !c.behind.empty(),
          "uplift: the encoder must have two groups or more, and every group a width, got {} groups", c.encoder.size());
  require(c.channels >= 1 && c.patch >= 1 && c.noise >= 0 && c.convs >= 1,
          "uplift: channels, patch and convs must be >= 1 and noise >= 0, got {}, {}, {} and {}", c.channels, c.patch,
          c.convs, c.noise);
  return c;
}

}  // namespace

UpliftConfig uplift_for_vit(int64_t channels, int64_t patch) { return {.channels = channels, .patch = patch}; }

UpliftConfig uplift_for_vae() {
  return {.channels = 4,
          .patch = 8,
          .norm = ConvNorm::layer,
          .encoder = {{64, 64}, {128, 128}, {256, 256}, {512, 512}, {512, 512}},
          .before = {512},
          .behind = {512, 512},
          .convs = 1,
          .noise = 4,
          .refiner = std::vector<int64_t>(12, 512)};
}

UpliftConvImpl::UpliftConvImpl(int64_t from, int64_t to, int64_t convs, ConvNorm norm) : from_(from), to_(to) {
  const auto parts = add_folder(*this, "conv");
  for (int64_t i = 0; i < convs; ++i) {  // each convolution is followed by its norm and a ReLU without parameters
    const std::string place = std::to_string(3 * i), next = std::to_string(3 * i + 1);
    const auto options = Conv2dOptions(i == 0 ? from : to, to, 3).padding(1).bias(false);
    convs_.push_back(parts->register_module(place, torch::nn::Conv2d(options)));
    if (norm == ConvNorm::batch) {
      batch_norms_.push_back(parts->register_module(next, torch::nn::BatchNorm2d(to)));
    } else {
      const auto layer = add_folder(*parts, next);
      scales_.push_back(layer->register_parameter("weight", at::ones({to})));
      shifts_.push_back(layer->register_parameter("bias", at::zeros({to})));
    }
  }
  last_ = parts->register_module(std::to_string(3 * convs), torch::nn::Conv2d(Conv2dOptions(to, to, 1)));
}

Tensor UpliftConvImpl::normed(size_t i, const Tensor& x, int64_t step) {
  const auto convolve = [&](const Tensor& weight, const std::optional<Tensor>& bias) {
    return at::conv2d(x, weight, bias, {step, step}, c10::IntArrayRef{1, 1});
  };
  if (!folded_.empty() && !is_training()) return convolve(folded_[i], folded_shifts_[i]);
  const Tensor y = convolve(convs_[i]->weight, {});
  if (scales_.empty()) return batch_norms_[i](y);
  return at::layer_norm(y.permute({0, 2, 3, 1}), {to_}, scales_[i], shifts_[i], 1e-6).permute({0, 3, 1, 2});
}

Tensor UpliftConvImpl::forward(const Tensor& x, int64_t step) {
  Tensor y = x;
  for (size_t i = 0; i < convs_.size(); ++i) y = at::relu(normed(i, y, step));
  return add_channels(last_(y), every(x, step));
}

void UpliftConvImpl::fold() {
  const at::NoGradGuard no_gradients;
  folded_.clear(), folded_shifts_.clear();
  for (size_t i = 0; i < batch_norms_.size(); ++i) {
    const auto& norm = batch_norms_[i];
    const Tensor factor = norm->weight / (norm->running_var + norm->options.eps()).sqrt();
    folded_.push_back(convs_[i]->weight * factor.view({-1, 1, 1, 1}));
    folded_shifts_.push_back(norm->bias - norm->running_mean * factor);
  }
}

UpliftImpl::UpliftImpl(const UpliftConfig& config, uint64_t seed) : config_(checked(config)) {
  const UpliftConfig& c = config_;
  const auto encoder = add_folder(*this, "encoder"), decoder = add_folder(*this, "decoder");
  int64_t width = 3;
  for (size_t i = 0; i < c.encoder.size(); ++i) {
    encoder_.push_back(add_convs(*encoder, fmt::format("block_{}", i), width, c.encoder[i], 1, c.norm));
    width = c.encoder[i].back();
  }
  const int64_t coarse = width, fine = c.encoder[c.encoder.size() - 2].back();
  before_ = add_convs(*decoder, "block_0", c.channels + coarse + c.noise, c.before, c.convs, c.norm);
  width = c.before.back();
  up_ = add_folder(*decoder, "up_1")
            ->register_module("up",
                              torch::nn::ConvTranspose2d(torch::nn::ConvTranspose2dOptions(width, width, 2).stride(2)));
  behind_ = add_convs(*decoder, "block_1", width + fine + c.noise, c.behind, c.convs, c.norm);
  width = c.behind.back();
  if (c.offsets) {
    offsets_ = attention::attender_offsets(*c.offsets);
    attender_ =
        add_folder(*this, "attender")->register_module("conv1", torch::nn::Conv2d(Conv2dOptions(width, *c.offsets, 1)));
  } else {
    out_ = decoder->register_module("outc", torch::nn::Conv2d(Conv2dOptions(width, c.channels, 1)));
  }
  if (!c.refiner.empty()) {
    refiner_ = add_convs(*this, "refiner", c.channels + coarse + c.noise, c.refiner, 1, c.norm);
    refined_ = register_module("ref_outc", torch::nn::Conv2d(Conv2dOptions(c.refiner.back(), c.channels, 1)));
  }
  double bound = 0;  // of a weight, and of the bias behind it
  initialise(*this, seed, [&bound](std::string_view name, const Tensor& t, Random& random) {
    if (t.dim() == 4) {
      bound = 1 / std::sqrt(double(fan_in(t)));
      return fill_uniform(t, bound, random);
    }
    if (name.ends_with("bias") && bound > 0) fill_uniform(t, bound, random);
    bound = 0;  // norms stay 1 and 0
  });
}

void UpliftImpl::fold_batch_norms() {
  for (const auto& module : modules(/*include_self=*/false))
    if (auto* conv = module->as<UpliftConvImpl>()) conv->fold();
}

Tensor UpliftImpl::enlarged(const Tensor& image) const {
  if (config_.patch != 14) return image;
  return at::upsample_bilinear2d(image, {image.size(2) * 16 / 14, image.size(3) * 16 / 14}, /*align_corners=*/false);
}

std::vector<Tensor> UpliftImpl::encode(const Tensor& image) {
  std::vector<Tensor> all;
  Tensor x = enlarged(image).contiguous(at::MemoryFormat::ChannelsLast);
  for (const UpliftConvs& group : encoder_) all.push_back(x = run(group, x));
  return all;
}

// The last group is read no finer than the largest map that asks for it: its last convolution makes those pixels alone.
UpliftImpl::Guides UpliftImpl::guides(const Tensor& image, const Tensor& features, int64_t doublings) {
  Tensor x = enlarged(image).contiguous(at::MemoryFormat::ChannelsLast);
  for (size_t i = 0; i + 1 < encoder_.size(); ++i) x = run(encoder_[i], x);
  const int64_t finest = int64_t{1} << (refined_ ? doublings : doublings - 1);
  const int64_t height = features.size(2) * finest, width = features.size(3) * finest, step = x.size(2) / height;
  const bool is_even = step >= 1 && x.size(2) == step * height && x.size(3) == step * width;
  Tensor last = x;
  const UpliftConvs& group = encoder_.back();
  for (size_t i = 0; i < group.size(); ++i)
    last = group[i]->forward(last, is_even && !is_training() && i + 1 == group.size() ? step : 1);
  return {last, x};
}

Tensor UpliftImpl::doubled(const Tensor& x, const Guides& guides, const Noise& noise) {
  const auto joined = [&](const Tensor& y, const Tensor& guide) {
    std::vector<Tensor> parts = {y, nearest(guide, y.size(2), y.size(3))};
    if (config_.noise > 0) parts.push_back(noise(y));
    return at::cat(parts, 1);
  };
  Tensor y = run(before_, joined(x, guides.coarse));
  y = add_channels(up_(y), at::upsample_bilinear2d(y, {2 * y.size(2), 2 * y.size(3)}, /*align_corners=*/true));
  const Tensor guide = run(behind_, joined(y, guides.fine));
  if (out_) {
    y = add_channels(out_(guide), guide);
  } else {
    y = attention::local_attender(add_channels(attender_(guide), guide), x, offsets_, config_.weights);
  }
  if (refined_) y = refined_(run(refiner_, joined(y, guides.coarse)));
  return y;
}

std::vector<Tensor> UpliftImpl::steps(const Tensor& image, const Tensor& features, const UpliftCall& call) {
  const UpliftConfig& c = config_;
  require(call.doublings >= 1, "uplift: doublings must be >= 1, got {}", call.doublings);
  require(features.dim() == 4 && features.size(1) == c.channels, "uplift: features must be [B, {}, H, W], got {}",
          c.channels, text(features));
  const int64_t height = features.size(2), width = features.size(3);
  require(image.dim() == 4 && image.size(0) == features.size(0) && image.size(1) == 3 &&
              image.size(2) == height * c.patch && image.size(3) == width * c.patch,
          "uplift: the image must be [{}, 3, {}, {}] ({} pixels a token), got {}", features.size(0), height * c.patch,
          width * c.patch, c.patch, text(image));
  uint64_t stream = 0;
  const auto noise = [&](const Tensor& y) {
    const Tensor numbers = at::zeros({y.size(0), c.noise, y.size(2), y.size(3)}, at::kFloat);
    if (call.noise_seed) {
      Random random(*call.noise_seed, stream++);
      fill_normal(numbers, c.noise_scale, random);
    }
    return numbers.to(y.scalar_type());
  };
  std::vector<Tensor> all;
  Tensor x = features.contiguous(at::MemoryFormat::ChannelsLast);
  Guides shared;
  if (c.shares_encoder) shared = guides(image, features, call.doublings);
  for (int64_t i = 0; i < call.doublings; ++i) {
    if (!c.shares_encoder) {
      const Tensor larger =
          i == 0 ? image : at::upsample_bilinear2d(image, {image.size(2) << i, image.size(3) << i}, false);
      shared = guides(larger, x, 1);
    }
    all.push_back(x = doubled(x, shared, noise));
  }
  return all;
}

Tensor UpliftImpl::forward(const Tensor& image, const Tensor& features, const UpliftCall& call) {
  const Tensor last = steps(image, features, call).back();
  if (!call.size) return last;
  return at::_upsample_bilinear2d_aa(last, {call.size->first, call.size->second}, /*align_corners=*/false);
}

namespace {

double convs_cost(int64_t from, const std::vector<int64_t>& widths, int64_t convs) {  // of a pixel
  double macs = 0;
  for (const int64_t to : widths) {
    macs += 9.0 * double(from * to) + 9.0 * double((convs - 1) * to * to) + double(to * to);
    from = to;
  }
  return macs;
}

}  // namespace

UpliftCost count_macs(const UpliftConfig& c, int64_t height, int64_t width, int64_t doublings) {
  UpliftCost cost;
  const int64_t side = c.patch == 14 ? 16 : c.patch;
  int64_t from = 3;
  for (const auto& group : c.encoder) {
    cost.encoder += convs_cost(from, group, 1) * double(height * side) * double(width * side);
    from = group.back();
  }
  const int64_t fine = c.encoder[c.encoder.size() - 2].back();
  for (int64_t i = 0; i < doublings; ++i) {
    const double cells = double(height << i) * double(width << i), pixels = 4 * cells;
    const int64_t inner = c.before.back(), guide = c.behind.back(), out = c.offsets.value_or(c.channels);
    cost.decoder.push_back(cells * convs_cost(c.channels + from + c.noise, c.before, c.convs) +
                           pixels * (double(inner * inner) + convs_cost(inner + fine + c.noise, c.behind, c.convs)));
    cost.attender.push_back(pixels * double(guide * out + (c.offsets ? *c.offsets * c.channels : 0)));
    if (!c.refiner.empty())
      cost.refiner.push_back(
          pixels * (convs_cost(c.channels + from + c.noise, c.refiner, 1) + double(c.refiner.back() * c.channels)));
  }
  return cost;
}

}  // namespace foveate::models
