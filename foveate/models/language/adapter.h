// Learned parts of mechanisms in the layers of a model: made, given to them, in files.
// A file is safetensors: layers.LAYER.MECHANISM.PART, and in its metadata the model it is of.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "foveate/attention/registry.h"
#include "foveate/models/language/decoder.h"

namespace foveate::models {

attention::LayerShape layer_shape(const DecoderConfig& config);

class Adapter {
 public:
  // Throws Error: a file that is damaged, is no adapter, or is of another model.
  static Adapter load(std::span<const std::string> paths, const Decoder& decoder);
  // Writes the learned parts that the mechanisms (one per layer) have.  Throws Error: a path that is not writable.
  static void save(const std::string& path, const Decoder& decoder,
                   const std::vector<attention::Mechanism>& mechanisms);

  // The mechanisms, one per layer, with their parts; those without learned parts as they are.  Throws Error: a part
  // that is missing or does not fit.
  std::vector<attention::Mechanism> equip(std::vector<attention::Mechanism> mechanisms, const Decoder& decoder) const;

 private:
  // by layer and mechanism
  std::map<std::pair<int64_t, std::string>, attention::Learned> parts_;
};

// Tells learned parts of layers apart: "none" where no mechanism has such.
std::string adapter_fingerprint(const std::vector<attention::Mechanism>& mechanisms);

// With parts as training begins; the same numbers for the same seed.
std::vector<attention::Mechanism> equip_anew(std::vector<attention::Mechanism> mechanisms, const Decoder& decoder,
                                             uint64_t seed);

}  // namespace foveate::models
