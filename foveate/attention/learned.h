// Learned parts of a mechanism: named tensors of one layer, which an adapter file or whoever trains them gives.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::attention {

// By name; weights are [out, in], as torch has them.
using Learned = std::map<std::string, at::Tensor, std::less<>>;

// What sizes of a model's layer learned parts depend on.
struct LayerShape {
  int64_t width, heads, kv_heads, head_dim, value_dim;
};

// How a part begins: all zeros, all ones, every number `scale`, normal with standard deviation `scale` around
// `mean`, uniform in [-scale, scale], or `listed` one after the other.
struct Init {
  enum class Kind { zeros, ones, constant, normal, uniform, listed };
  Kind kind = Kind::zeros;
  double scale = 0, mean = 0;
  std::vector<double> listed = {};
};

struct LearnedPart {
  std::string name;
  std::vector<int64_t> sizes;
  Init init = {};
};

// Parts as they begin, fp32; the same numbers for the same seed.
Learned make_learned(const std::vector<LearnedPart>& parts, uint64_t seed);

// Throws Error, which names `owner`: a part missing, of other sizes, or that is none of these.
void check_learned(const Learned& learned, const std::vector<LearnedPart>& parts, std::string_view owner);

}  // namespace foveate::attention
