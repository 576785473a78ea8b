// A small neighborhood attention transformer that learns classes of small images from nothing.
#pragma once

#include <map>
#include <string>

#include "foveate/models/vision/nat.h"
#include "foveate/train/image_tasks.h"

namespace foveate::train {

// Two levels: tokens of 2 x 2 pixels, and of 4 x 4 with twice the channels.
struct ClassifierModel {
  static constexpr std::string_view name = "classifier";

  int64_t batch = 128, embed = 48, kernel = 5, first_layers = 2, second_layers = 4;
  bool dilated = true;
  double drop_path = 0.1;

  static constexpr double kMost = 1 << 16;

  static void fields(auto& self, auto&& visit) {
    visit("batch", self.batch, between(1, kMost), "images of a step");
    visit("embed", self.embed, between(16, kMost), "channels of the first level, a multiple of the 16 of a head");
    visit("kernel", self.kernel, between(3, 255), "odd; pixels of a window's side, in tokens");
    visit("first_layers", self.first_layers, between(1, 4096), "layers on tokens of 2 x 2 pixels");
    visit("second_layers", self.second_layers, between(1, 4096), "layers on tokens of 4 x 4 pixels");
    visit("dilated", self.dilated, any(),
          "whether every second layer has the largest dilation that fits (DiNAT, else NAT)");
    visit("drop_path", self.drop_path, between(0, 0.99), "share of images that lose a branch of the last layer");
  }
  // Throws Error: embed that is no multiple of 16, a kernel that is even or longer than the second level's maps.
  models::NatConfig config(int64_t height, int64_t width, int64_t classes) const;
};

class ImageClassifier {
 public:
  // For images of the shape and the classes of `set`.  Throws Error: as config().
  ImageClassifier(const ClassifierModel& model, const ImageSet& set, uint64_t seed);

  // Names of NAT's checkpoints; position biases and whatever has one axis do not decay.
  ParameterMap parameters() const;
  std::map<std::string, std::string> subject() const;  // what identifies the run beside the trainer's options
  StepLoss loss(const ImageSet& set, const Augment& augment, int64_t step, uint64_t seed) const;
  double top1(const ImageSet& set) const;
  double macs() const;  // of one image
  const models::Nat& net() const { return net_; }

 private:
  ImageModel with(Random* random) const;

  ClassifierModel model_;
  int64_t height_, width_;
  models::Nat net_;
};

}  // namespace foveate::train
