// Rows of quantised matrices taken apart, as files give them (io/codes.h) and kernels pack them (kernels/packed.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace foveate {

// element = scale * (lowest + code) + minimum, each exact in fp32 but for the sum, where scale and minimum belong to
// `group` neighbours of a row:
//   block == group   fp16 scale and minimum for each group
//   block > group    fp16 scale and minimum for each block, times an integer scale and minimum for each group
struct QuantFormat {
  int bits = 0;    // of a code, which is in [0, 2^bits)
  int lowest = 0;  // what code 0 stands for
  int group = 0, block = 0;
  bool has_minimum = false;

  constexpr bool has_group_scales() const { return block > group; }
  bool operator==(const QuantFormat&) const = default;
};

struct QuantRow {
  std::vector<uint8_t> codes;                      // [elements]
  std::vector<uint16_t> scales, minima;            // [elements / block] fp16; minima: where the format has them
  std::vector<int8_t> group_scales, group_minima;  // [elements / group], where the format has group scales

  QuantRow(const QuantFormat& format, int64_t elements)
      : codes(size_t(elements)), scales(size_t(elements / format.block)) {
    if (format.has_minimum) minima.resize(scales.size());
    if (!format.has_group_scales()) return;
    group_scales.resize(size_t(elements / format.group));
    if (format.has_minimum) group_minima.resize(group_scales.size());
  }
  // Whether it is a row of this format.
  bool fits(const QuantFormat& format) const {
    const size_t blocks = codes.size() / size_t(format.block);
    const size_t groups = format.has_group_scales() ? codes.size() / size_t(format.group) : 0;
    return scales.size() == blocks && minima.size() == (format.has_minimum ? blocks : 0) &&
           group_scales.size() == groups && group_minima.size() == (format.has_minimum ? groups : 0);
  }
};

}  // namespace foveate
