#include "foveate/models/vision/uplift.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
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
  const auto has_widths = [](const auto& groups) { return std::ranges::none_of(groups, &std::vector<int64_t>::empty); };
  require(
      c.decoder.size() >= 1 && c.decoder.size() <= 5 && c.encoder.size() >= c.decoder.size() && has_widths(c.encoder) &&
          has_widths(c.decoder),
      "uplift: the decoder must have 1 to 5 groups, the encoder as many or more, and every group a width, got {} and "
      "{} groups",
      c.decoder.size(), c.encoder.size());
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
          .decoder = {{512}, {512, 512}},
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
    if (i > 0 && c.encoder_step == EncoderStep::conv) {
      const auto down = add_folder(*add_folder(*encoder, fmt::format("down_{}", i)), "down");
      const auto options = Conv2dOptions(width, width, 3).stride(2).padding(1);
      down_.emplace_back(down->register_module("0", torch::nn::Conv2d(options)),
                         down->register_module("1", torch::nn::BatchNorm2d(width)));
    }
    encoder_.push_back(add_convs(*encoder, fmt::format("block_{}", i), width, c.encoder[i], 1, c.norm));
    width = c.encoder[i].back();
  }
  const int64_t coarse = width;
  width = c.channels;
  for (size_t i = 0; i < c.decoder.size(); ++i) {
    if (i > 0) {
      const auto options = torch::nn::ConvTranspose2dOptions(width, width, 2).stride(2);
      up_.push_back(
          add_folder(*decoder, fmt::format("up_{}", i))->register_module("up", torch::nn::ConvTranspose2d(options)));
    }
    width += c.encoder[c.encoder.size() - 1 - i].back() + c.noise;
    decoder_.push_back(add_convs(*decoder, fmt::format("block_{}", i), width, c.decoder[i], c.convs, c.norm));
    width = c.decoder[i].back();
  }
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

Tensor UpliftImpl::stepped(size_t group, const Tensor& x) {
  if (group == 0 || config_.encoder_step == EncoderStep::none) return x;
  require(x.size(2) >= 2 && x.size(3) >= 2,
          "uplift: the encoder's maps must be 2 x 2 or more where a step halves them, got {} x {} before group {}",
          x.size(2), x.size(3), group);
  Tensor y;
  if (config_.encoder_step == EncoderStep::max) {
    y = at::max_pool2d(x, {2, 2}, {2, 2});
  } else {
    auto& [conv, norm] = down_[group - 1];
    y = at::relu(norm(conv(x)));
  }
  return config_.adds_smaller ? y + at::upsample_bilinear2d(x, {y.size(2), y.size(3)}, /*align_corners=*/true) : y;
}

std::vector<Tensor> UpliftImpl::encode(const Tensor& image) {
  std::vector<Tensor> all;
  Tensor x = enlarged(image).contiguous(at::MemoryFormat::ChannelsLast);
  for (size_t i = 0; i < encoder_.size(); ++i) all.push_back(x = run(encoder_[i], stepped(i, x)));
  return all;
}

// The last group is read no finer than the largest map that asks for it: its last convolution makes those pixels alone.
std::vector<Tensor> UpliftImpl::guides(const Tensor& image, const Tensor& features, int64_t iterations) {
  const size_t last = encoder_.size() - 1;
  std::vector<Tensor> all(encoder_.size());
  Tensor x = enlarged(image).contiguous(at::MemoryFormat::ChannelsLast);
  for (size_t i = 0; i < last; ++i) all[last - i] = x = run(encoder_[i], stepped(i, x));
  x = stepped(last, x);
  int64_t finest = 1;
  for (int64_t i = refined_ ? 0 : 1; i < iterations && finest <= x.size(2); ++i) finest *= config_.factor();
  const int64_t height = features.size(2) * finest, width = features.size(3) * finest, step = x.size(2) / height;
  const bool is_even = step >= 1 && x.size(2) == step * height && x.size(3) == step * width;
  const UpliftConvs& group = encoder_.back();
  for (size_t i = 0; i < group.size(); ++i)
    x = group[i]->forward(x, is_even && !is_training() && i + 1 == group.size() ? step : 1);
  all[0] = x;
  return all;
}

Tensor UpliftImpl::finer(const Tensor& x, const std::vector<Tensor>& guides, const Noise& noise) {
  const auto joined = [&](const Tensor& y, const Tensor& guide) {
    std::vector<Tensor> parts = {y, nearest(guide, y.size(2), y.size(3))};
    if (config_.noise > 0) parts.push_back(noise(y));
    return at::cat(parts, 1);
  };
  Tensor y = run(decoder_[0], joined(x, guides[0]));
  for (size_t i = 1; i < decoder_.size(); ++i) {
    const Tensor larger = at::upsample_bilinear2d(y, {2 * y.size(2), 2 * y.size(3)}, /*align_corners=*/true);
    y = run(decoder_[i], joined(add_channels(up_[i - 1](y), larger), guides[i]));
  }
  if (out_)
    y = add_channels(out_(y), y);
  else
    y = attention::local_attender(add_channels(attender_(y), y), x, offsets_, config_.weights);
  return refined_ ? refined_(run(refiner_, joined(y, guides[0]))) : y;
}

std::vector<Tensor> UpliftImpl::steps(const Tensor& image, const Tensor& features, const UpliftCall& call) {
  const UpliftConfig& c = config_;
  require(call.iterations >= 1, "uplift: iterations must be >= 1, got {}", call.iterations);
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
  std::vector<Tensor> shared;
  if (c.shares_encoder) shared = guides(image, features, call.iterations);
  for (int64_t i = 0, grown = 1; i < call.iterations; ++i, grown *= c.factor()) {
    if (!c.shares_encoder) {
      const std::array<int64_t, 2> size{image.size(2) * grown, image.size(3) * grown};
      shared = guides(grown == 1 ? image : at::upsample_bilinear2d(image, size, /*align_corners=*/false), x, 1);
    }
    all.push_back(x = finer(x, shared, noise));
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

UpliftCost count_macs(const UpliftConfig& c, int64_t height, int64_t width, int64_t iterations) {
  UpliftCost cost;
  const int64_t side = c.patch == 14 ? 16 : c.patch;
  int64_t rows = height * side, columns = width * side, from = 3;
  for (size_t i = 0; i < c.encoder.size(); ++i) {
    if (i > 0 && c.encoder_step != EncoderStep::none) {
      const int64_t odd = c.encoder_step == EncoderStep::conv ? 1 : 0;
      rows = (rows + odd) / 2, columns = (columns + odd) / 2;
      cost.encoder += odd * 9.0 * double(from * from) * double(rows * columns);
    }
    cost.encoder += convs_cost(from, c.encoder[i], 1) * double(rows * columns);
    from = c.encoder[i].back();
  }
  double pixels = double(height * width);
  for (int64_t i = 0; i < iterations; ++i) {
    double decoder = 0;
    int64_t inner = c.channels;
    for (size_t group = 0; group < c.decoder.size(); ++group) {
      if (group > 0) pixels *= 4, decoder += pixels * double(inner * inner);
      inner += c.encoder[c.encoder.size() - 1 - group].back() + c.noise;
      decoder += pixels * convs_cost(inner, c.decoder[group], c.convs);
      inner = c.decoder[group].back();
    }
    cost.decoder.push_back(decoder);
    const int64_t out = c.offsets.value_or(c.channels);
    cost.attender.push_back(pixels * double(inner * out + (c.offsets ? *c.offsets * c.channels : 0)));
    if (!c.refiner.empty())
      cost.refiner.push_back(
          pixels * (convs_cost(c.channels + from + c.noise, c.refiner, 1) + double(c.refiner.back() * c.channels)));
  }
  return cost;
}

}  // namespace foveate::models
