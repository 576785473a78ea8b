// Small vision models that learn classes of small images from nothing.
#pragma once

#include <array>
#include <map>
#include <string>

#include "foveate/models/vision/halonet.h"
#include "foveate/models/vision/nat.h"
#include "foveate/train/image_tasks.h"

namespace foveate::train {

// Up to three levels, each with twice the channels of the one before: tokens of 2 x 2, 4 x 4 and 8 x 8 pixels.  In nat
// and dinat a convolution makes them (two where there is no first level), in the others three (and maxima).
struct ClassifierModel {
  static constexpr std::string_view name = "classifier";

  // DiNAT is NAT with the largest dilation that fits in every second layer.  The convolutional network is the HaloNet
  // with convolutions of 3 x 3 in the place of attention, their channels such that both have as many parameters; the
  // hybrid has them at its highest resolution, as Vaswani et al. have in their fastest networks (2103.12731, 4.4).
  enum class Kind { nat, dinat, halonet, hybrid, convnet };
  friend constexpr auto enum_names(Kind) {
    return std::array<std::string_view, 5>{"nat", "dinat", "halonet", "hybrid", "convnet"};
  }

  Kind kind = Kind::dinat;
  int64_t batch = 64, embed = 48, kernel = 3, first_layers = 0, second_layers = 2, third_layers = 4;
  double drop_path = 0;

  static constexpr double kMost = 1 << 16;

  static void fields(auto& self, auto&& visit) {
    visit("kind", self.kind, any(), "what the layers are");
    visit("batch", self.batch, between(1, kMost), "images of a step");
    visit("embed", self.embed, between(16, kMost),
          "channels of the first level that has layers, a multiple of the 16 of a head");
    visit("kernel", self.kernel, between(3, 255),
          "odd; tokens of a window's side; in a halonet of the least, around the last of a block");
    visit("first_layers", self.first_layers, between(0, 4096), "layers with tokens of 2 x 2 pixels");
    visit("second_layers", self.second_layers, between(1, 4096), "layers with tokens of 4 x 4 pixels");
    visit("third_layers", self.third_layers, between(0, 4096), "layers with tokens of 8 x 8 pixels");
    visit("drop_path", self.drop_path, between(0, 0.99),
          "share of images that lose a branch of the last layer, in nat and dinat");
  }

  bool is_nat() const { return kind == Kind::nat || kind == Kind::dinat; }
  // Throw Error: embed that is no multiple of 16, a kernel that is even or longer than the last level's maps, a
  // hybrid of one level.
  models::NatConfig nat(int64_t height, int64_t width, int64_t classes) const;
  models::HaloNetConfig halonet(int64_t height, int64_t width, int64_t classes) const;
};

class ImageClassifier {
 public:
  // For images of the shape and the classes of `set`.  Throws Error: as ClassifierModel's.
  ImageClassifier(const ClassifierModel& model, const ImageSet& set, uint64_t seed);

  // Names of NAT's or of timm's checkpoints; position biases and whatever has one axis do not decay.
  ParameterMap parameters() const;
  TensorMap buffers() const;
  std::map<std::string, std::string> subject() const;  // what identifies the run beside the trainer's options
  StepLoss loss(const ImageSet& set, const Augment& augment, int64_t step, uint64_t seed) const;
  double top1(const ImageSet& set) const;
  double macs() const;  // of one image
  torch::nn::Module& module() const;
  const models::Nat& net() const { return nat_; }  // of nat and dinat; else empty

 private:
  ImageModel with(Random* random) const;

  ClassifierModel model_;
  int64_t height_, width_, classes_;
  models::Nat nat_{nullptr};
  models::HaloNet halonet_{nullptr};
};

}  // namespace foveate::train
