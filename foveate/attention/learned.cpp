#include "foveate/attention/learned.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::attention {

Learned make_learned(const std::vector<LearnedPart>& parts, uint64_t seed) {
  Learned learned;
  uint64_t stream = 0;  // of its own for each part
  for (const LearnedPart& part : parts) {
    Random random(seed, stream++);
    const at::Tensor numbers = at::empty(part.sizes, at::kFloat);
    size_t next = 0;
    const auto draw = [&]() -> double {
      switch (part.init.kind) {
        case Init::Kind::zeros:
          return 0;
        case Init::Kind::ones:
          return 1;
        case Init::Kind::constant:
          return part.init.scale;
        case Init::Kind::normal:
          return part.init.mean + part.init.scale * random.normal();
        case Init::Kind::uniform:
          return part.init.scale * (2 * random.uniform() - 1);
        case Init::Kind::listed:
          return part.init.listed.at(next++);
      }
      fail("learned parts: unknown kind of start");
    };
    float* first = numbers.mutable_data_ptr<float>();
    std::generate(first, first + numbers.numel(), [&] { return float(draw()); });
    learned.emplace(part.name, numbers);
  }
  return learned;
}

void check_learned(const Learned& learned, const std::vector<LearnedPart>& parts, std::string_view owner) {
  for (const LearnedPart& part : parts) {
    const auto found = learned.find(part.name);
    require(found != learned.end(), "{}: the adapter must have {}, got none", owner, part.name);
    require(found->second.sizes() == at::IntArrayRef(part.sizes), "{}: {} must be [{}], got [{}]", owner, part.name,
            fmt::join(part.sizes, ", "), fmt::join(found->second.sizes().begin(), found->second.sizes().end(), ", "));
  }
  for (const auto& [name, tensor] : learned)
    require(std::ranges::any_of(parts, [&](const LearnedPart& part) { return part.name == name; }),
            "{}: has no learned part {}, got one", owner, name);
}

}  // namespace foveate::attention
