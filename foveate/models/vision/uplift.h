// UPLiFT: features of a frozen backbone made as fine as its image, iteration by iteration with one small network that
// doubles them (or more), guided by shallow features of the image (2601.17950).
#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "foveate/attention/local/attender.h"

namespace foveate::models {

enum class ConvNorm {
  batch,
  layer,  // over channels, epsilon 1e-6
};

// What makes the encoder's map half as large from one group to the next.
enum class EncoderStep {
  none,
  conv,  // 3 x 3 with stride 2, batch norm, ReLU
  max,   // of 2 x 2, an odd last row or column is left out
};

struct UpliftConfig {
  int64_t channels = 384;  // of the features
  int64_t patch = 14;      // pixels of a token; 14: the image is enlarged to 16 a token
  ConvNorm norm = ConvNorm::batch;
  std::vector<std::vector<int64_t>> encoder = {{16}, {32}, {64}, {128}, {128}};  // widths of groups
  EncoderStep encoder_step = EncoderStep::none;
  bool adds_smaller = false;  // to what a step gives: its input, smaller by bilinear means
  // Widths of groups, between which the map is doubled; 1 to 5, at most as many as the encoder's.  The i-th also reads
  // the encoder's i-th from behind.
  std::vector<std::vector<int64_t>> decoder = {{64}, {64}};
  int64_t convs = 2;                    // 3 x 3 convolutions of one of its blocks
  std::optional<int64_t> offsets = 17;  // of the attender; unset: a 1 x 1 convolution instead
  attention::AttenderWeights weights = attention::AttenderWeights::softmax;
  int64_t noise = 0;  // channels of noise beside the inputs of the decoder and the refiner
  double noise_scale = 1;
  std::vector<int64_t> refiner = {};  // widths of blocks behind the attender; empty: none
  bool shares_encoder = true;         // one pass over the image for all iterations, else one of the enlarged image each

  int64_t factor() const { return int64_t{1} << (decoder.size() - 1); }  // of rows and columns, in one iteration
};

UpliftConfig uplift_for_vit(int64_t channels = 384, int64_t patch = 14);
UpliftConfig uplift_for_vae();  // of Stable Diffusion 1.5

struct UpliftCall {
  int64_t iterations = 1;
  std::optional<uint64_t> noise_seed = {};               // unset: zeros
  std::optional<std::pair<int64_t, int64_t>> size = {};  // rows and columns of the last result, by bilinear means
};

// 3 x 3 convolutions without bias, each with its norm and ReLU, then 1 x 1 with bias, plus the input: its first
// channels, or zeros behind them.
class UpliftConvImpl : public torch::nn::Module {
 public:
  UpliftConvImpl(int64_t from, int64_t to, int64_t convs, ConvNorm norm);
  // step: every step-th pixel of the result alone, computed nowhere else; of blocks with one convolution.
  at::Tensor forward(const at::Tensor& x, int64_t step = 1);
  void fold();

 private:
  at::Tensor normed(size_t i, const at::Tensor& x, int64_t step);

  int64_t from_, to_;
  std::vector<torch::nn::Conv2d> convs_;
  std::vector<torch::nn::BatchNorm2d> batch_norms_;
  std::vector<at::Tensor> scales_, shifts_;         // of layer norms
  std::vector<at::Tensor> folded_, folded_shifts_;  // convolution and bias with the batch norm in them
  torch::nn::Conv2d last_{nullptr};
};

using UpliftConvs = std::vector<std::shared_ptr<UpliftConvImpl>>;

// Names of parameters are the released ones: encoder.block_0.blocks.0.conv.0.weight, decoder.up_1.up.weight,
// attender.conv1.weight.  Random parameters by the seed, distributed as torch's layers begin.
class UpliftImpl : public torch::nn::Module {
 public:
  explicit UpliftImpl(const UpliftConfig& config, uint64_t seed = 0);

  // image [B, 3, patch H, patch W], features [B, channels, H, W] -> [B, channels, F H, F W] where F is the config's
  // factor to the power of call.iterations, or of call.size.
  // Throws Error: shapes that do not fit, iterations < 1.
  at::Tensor forward(const at::Tensor& image, const at::Tensor& features, const UpliftCall& call = {});
  // The result of every iteration; call.size is not looked at.
  std::vector<at::Tensor> steps(const at::Tensor& image, const at::Tensor& features, const UpliftCall& call = {});
  // All groups' results, whole.
  std::vector<at::Tensor> encode(const at::Tensor& image);
  // Puts batch norms of blocks into the convolutions before them wherever training is off; parameters stay as they are,
  // and what is set later does not count until it is called again.
  void fold_batch_norms();

 private:
  at::Tensor enlarged(const at::Tensor& image) const;
  at::Tensor stepped(size_t group, const at::Tensor& x);  // the encoder's map as the group reads it
  // What the encoder's groups give, the last one first, wherever it is read.
  std::vector<at::Tensor> guides(const at::Tensor& image, const at::Tensor& features, int64_t iterations);
  using Noise = std::function<at::Tensor(const at::Tensor& beside)>;
  at::Tensor finer(const at::Tensor& x, const std::vector<at::Tensor>& guides, const Noise& noise);

  UpliftConfig config_;
  std::vector<UpliftConvs> encoder_, decoder_;
  std::vector<std::pair<torch::nn::Conv2d, torch::nn::BatchNorm2d>> down_;
  std::vector<torch::nn::ConvTranspose2d> up_;
  UpliftConvs refiner_;
  torch::nn::Conv2d attender_{nullptr}, out_{nullptr}, refined_{nullptr};
  std::vector<attention::Offset> offsets_;
};
TORCH_MODULE(Uplift);

// Multiply-adds of one image whose features have height x width cells.
struct UpliftCost {
  double encoder = 0;                              // at every pixel
  std::vector<double> decoder, attender, refiner;  // of each iteration
};
UpliftCost count_macs(const UpliftConfig& config, int64_t height, int64_t width, int64_t iterations);

}  // namespace foveate::models
