#include "foveate/io/dequantize.h"

#include <bit>
#include <cstring>

#include "foveate/base/error.h"
#include "foveate/io/blocks.h"

namespace foveate::io {
namespace {

void unpack(const F32& b, float* out) { *out = b.value; }
void unpack(const F16& b, float* out) { *out = half_to_float(b.bits); }
void unpack(const BF16& b, float* out) { *out = std::bit_cast<float>(uint32_t(b.bits) << 16); }

// Products of scales and codes are exact in fp32: 11 bits of an fp16 scale, at most 8 of a code where there is no
// integer scale, else 13 of the two together (6-bit scale and up to 6-bit code, or Q6_K's 8-bit scale and 6-bit code,
// which are signed: 7 and 5 bits and powers of two).
template <class Block>
requires is_quantised<Block>
void unpack(const Block& b, float* out) {
  constexpr QuantFormat kFormat = Block::kFormat;
  uint8_t all[Block::kElements];
  codes(b, all);
  const float d = half_to_float(b.d);
  for (int first = 0; first < Block::kElements; first += kFormat.group) {
    float step = d, base = 0;
    if constexpr (kFormat.has_minimum) base = half_to_float(b.m);
    if constexpr (kFormat.has_group_scales()) {
      const GroupScale of_group = scales(b, first / kFormat.group);
      step = d * float(of_group.scale), base = -(base * float(of_group.minimum));
    }
    for (int i = first; i < first + kFormat.group; ++i) {
      const float product = step * float(all[i] + kFormat.lowest);
      out[i] = kFormat.has_minimum ? product + base : product;
    }
  }
}

template <class Block>
void take_block_apart(const Block& b, int64_t index, QuantRow& row) {
  constexpr QuantFormat kFormat = Block::kFormat;
  codes(b, row.codes.data() + index * Block::kElements);
  row.scales[size_t(index)] = b.d;
  if constexpr (kFormat.has_group_scales()) {
    constexpr int kGroups = kFormat.block / kFormat.group;
    for (int j = 0; j < kGroups; ++j) {
      const GroupScale of_group = scales(b, j);
      row.group_scales[size_t(index * kGroups + j)] = of_group.scale;
      if constexpr (kFormat.has_minimum) row.group_minima[size_t(index * kGroups + j)] = of_group.minimum;
    }
  }
  // the files of group scales subtract their minima
  if constexpr (kFormat.has_minimum)
    row.minima[size_t(index)] = kFormat.has_group_scales() ? uint16_t(b.m ^ 0x8000) : b.m;
}

// Checks that `bytes` are the blocks of `count` elements, and calls use(block, index) for each.
template <class Block, class Use>
void for_blocks(std::span<const std::byte> bytes, int64_t count, const Use& use) {
  require(count % Block::kElements == 0 && count / Block::kElements * int64_t(sizeof(Block)) == int64_t(bytes.size()),
          "dequantize: bytes must be {} per {} elements of {}, got {} for {}", sizeof(Block), Block::kElements,
          type_name(uint32_t(Block::kType)), bytes.size(), count);
  for (int64_t i = 0; i < count / Block::kElements; ++i) {
    Block one;
    std::memcpy(&one, bytes.data() + i * int64_t(sizeof(Block)), sizeof(Block));
    use(one, i);
  }
}

}  // namespace

int64_t block_elements(GgmlType type) {
  int64_t elements = 0;
  with_block(type, [&]<class Block>() { elements = Block::kElements; });
  return elements;
}

int64_t block_bytes(GgmlType type) {
  int64_t bytes = 0;
  with_block(type, [&]<class Block>() { bytes = sizeof(Block); });
  return bytes;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float value = float(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

std::optional<QuantFormat> quant_format(GgmlType type) {
  std::optional<QuantFormat> format;
  with_block(type, [&]<class Block>() {
    if constexpr (is_quantised<Block>) format = Block::kFormat;
  });
  return format;
}

void dequantize(GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
  require(block_elements(type) > 0, "dequantize: type must be supported, got {}", type_name(uint32_t(type)));
  with_block(type, [&]<class Block>() {
    for_blocks<Block>(bytes, int64_t(out.size()),
                      [&](const Block& b, int64_t i) { unpack(b, out.data() + i * Block::kElements); });
  });
}

void take_apart(GgmlType type, std::span<const std::byte> bytes, QuantRow& row) {
  const std::optional<QuantFormat> format = quant_format(type);
  require(format.has_value(), "take_apart: type must be quantised, got {}", type_name(uint32_t(type)));
  require(row.fits(*format), "take_apart: row must be one of the format of {}", type_name(uint32_t(type)));
  with_block(type, [&]<class Block>() {
    if constexpr (is_quantised<Block>)
      for_blocks<Block>(bytes, std::ssize(row.codes), [&](const Block& b, int64_t i) { take_block_apart(b, i, row); });
  });
}

}  // namespace foveate::io
