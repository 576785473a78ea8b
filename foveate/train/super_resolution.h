// A small CATANet that learns to enlarge photographs from nothing.
#pragma once

#include <map>
#include <string>

#include "foveate/models/vision/catanet.h"
#include "foveate/train/image_tasks.h"

namespace foveate::train {

// CATANet's published shape (2503.06896) by the side of the patches that it learns from: patches of attention as parts
// of it, and in every block as many centres times tokens of a group as it has pixels.
struct SuperResolutionModel {
  static constexpr std::string_view name = "super-resolution";

  int64_t scale = 2, dim = 32, heads = 4, blocks = 4, patch = 8, centres = 8;
  bool aggregates = true;
  double decay = 0.99;

  static void fields(auto& self, auto&& visit) {
    visit("scale", self.scale, between(2, 4), "how many times wider and higher images become");
    visit("dim", self.dim, between(4, 1024), "channels, a multiple of the heads");
    visit("heads", self.heads, between(1, 256), "of all attention");
    visit("blocks", self.blocks, between(1, 64), "each attends among alike tokens, then in patches");
    visit("patch", self.patch, between(4, 256),
          "pixels of a side of the first block's patches of attention; 5/4, 6/4 and 7/4 of it in the next three");
    visit("centres", self.centres, between(1, 4096), "of the first block; 2, 4 and 8 times as many in the next three");
    visit("aggregates", self.aggregates, any(), "whether blocks attend among alike tokens, else in patches alone");
    visit("decay", self.decay, between(0, 1), "share of the centres kept that a step keeps; published: 0.999");
  }
  // For patches of `size` pixels a side.  Throws Error: options, a dim that is no multiple of the heads, sides shorter
  // than the largest patch of attention, more centres than pixels.
  models::CataNetConfig config(int64_t size) const;
};

class SuperResolution {
 public:
  // Begins as bilinear enlarging: the last convolution is zero.  Throws Error: as SuperResolutionModel::config.
  SuperResolution(const SuperResolutionModel& model, const PatchOptions& patches, uint64_t seed);

  // Released names; whatever has one axis does not decay.
  ParameterMap parameters() const;
  TensorMap buffers() const;                           // the centres, which every step moves
  std::map<std::string, std::string> subject() const;  // what identifies the run beside the trainer's options
  StepLoss loss(const std::vector<PhotoPair>& photos, int64_t step, uint64_t seed) const;
  EnlargingScore score(const std::vector<PhotoPair>& photos) const;
  double macs() const;  // of an image that becomes 1280 x 720 pixels
  const models::CataNet& net() const { return net_; }

 private:
  ImageModel model(bool trains) const;

  SuperResolutionModel options_;
  PatchOptions patches_;
  models::CataNet net_;
};

}  // namespace foveate::train
