// Blocks of GGUF tensors as they lie in the file, and the integers in them.  Elements are in order:
//   codes(block, to)   all of them, not negative
//   scales(block, j)   integer scale and minimum of group j, of types that have them
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>

#include "foveate/base/quantised.h"
#include "foveate/io/gguf.h"

namespace foveate::io {

// d: scale, m: minimum, fp16 both.
struct F32 {
  static constexpr GgmlType kType = GgmlType::f32;
  static constexpr int64_t kElements = 1;
  float value;
};
struct F16 {
  static constexpr GgmlType kType = GgmlType::f16;
  static constexpr int64_t kElements = 1;
  uint16_t bits;
};
struct BF16 {
  static constexpr GgmlType kType = GgmlType::bf16;
  static constexpr int64_t kElements = 1;
  uint16_t bits;
};
struct Q4_0 {
  static constexpr QuantFormat kFormat = {4, -8, 32, 32, false};
  static constexpr GgmlType kType = GgmlType::q4_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  uint8_t q[16];
};
struct Q4_1 {
  static constexpr QuantFormat kFormat = {4, 0, 32, 32, true};
  static constexpr GgmlType kType = GgmlType::q4_1;
  static constexpr int64_t kElements = 32;
  uint16_t d, m;
  uint8_t q[16];
};
struct Q5_0 {
  static constexpr QuantFormat kFormat = {5, -16, 32, 32, false};
  static constexpr GgmlType kType = GgmlType::q5_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  uint8_t high[4], q[16];
};
struct Q5_1 {
  static constexpr QuantFormat kFormat = {5, 0, 32, 32, true};
  static constexpr GgmlType kType = GgmlType::q5_1;
  static constexpr int64_t kElements = 32;
  uint16_t d, m;
  uint8_t high[4], q[16];
};
struct Q8_0 {
  static constexpr QuantFormat kFormat = {8, -128, 32, 32, false};
  static constexpr GgmlType kType = GgmlType::q8_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  int8_t q[32];
};
struct Q2_K {
  static constexpr QuantFormat kFormat = {2, 0, 16, 256, true};
  static constexpr GgmlType kType = GgmlType::q2_k;
  static constexpr int64_t kElements = 256;
  uint8_t scales[16], q[64];
  uint16_t d, m;
};
struct Q3_K {
  static constexpr QuantFormat kFormat = {3, -4, 16, 256, false};
  static constexpr GgmlType kType = GgmlType::q3_k;
  static constexpr int64_t kElements = 256;
  uint8_t high[32], q[64], scales[12];
  uint16_t d;
};
struct Q4_K {
  static constexpr QuantFormat kFormat = {4, 0, 32, 256, true};
  static constexpr GgmlType kType = GgmlType::q4_k;
  static constexpr int64_t kElements = 256;
  uint16_t d, m;
  uint8_t scales[12], q[128];
};
struct Q5_K {
  static constexpr QuantFormat kFormat = {5, 0, 32, 256, true};
  static constexpr GgmlType kType = GgmlType::q5_k;
  static constexpr int64_t kElements = 256;
  uint16_t d, m;
  uint8_t scales[12], high[32], q[128];
};
struct Q6_K {
  static constexpr QuantFormat kFormat = {6, -32, 16, 256, false};
  static constexpr GgmlType kType = GgmlType::q6_k;
  static constexpr int64_t kElements = 256;
  uint8_t low[128], high[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24 &&
              sizeof(Q8_0) == 34);
static_assert(sizeof(Q2_K) == 84 && sizeof(Q3_K) == 110 && sizeof(Q4_K) == 144 && sizeof(Q5_K) == 176 &&
              sizeof(Q6_K) == 210);

// Calls use.operator()<Block>() with the type's block, if it is supported.
template <class Use>
void with_block(GgmlType type, const Use& use) {
  const auto try_all = [&]<class... Blocks>() {
    ((type == Blocks::kType ? use.template operator()<Blocks>() : void()), ...);
  };
  try_all.template operator()<F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K>();
}

template <class Block>
constexpr bool is_quantised = requires {
  Block::kFormat;
};

inline uint32_t fifth_bits(const uint8_t (&high)[4]) {
  uint32_t bits;
  std::memcpy(&bits, high, sizeof bits);
  return bits;
}

template <class Block>
requires(Block::kFormat.bits == 4 && Block::kElements == 32) void codes(const Block& b, uint8_t* to) {
  for (int i = 0; i < 16; ++i) to[i] = b.q[i] & 15, to[i + 16] = b.q[i] >> 4;
}

template <class Block>
requires(Block::kFormat.bits == 5 && Block::kElements == 32) void codes(const Block& b, uint8_t* to) {
  const uint32_t high = fifth_bits(b.high);
  for (int i = 0; i < 16; ++i) {
    to[i] = uint8_t((b.q[i] & 15) | (high >> i & 1) << 4);
    to[i + 16] = uint8_t((b.q[i] >> 4) | (high >> (i + 16) & 1) << 4);
  }
}

inline void codes(const Q8_0& b, uint8_t* to) {
  for (int i = 0; i < 32; ++i) to[i] = uint8_t(b.q[i] + 128);
}

inline void codes(const Q2_K& b, uint8_t* to) {
  for (int j = 0; j < 16; ++j) {  // 32 bytes hold eight sub-blocks of 16: the bit pairs of one place in two of them
    const uint8_t* q = b.q + j / 8 * 32 + j % 2 * 16;
    for (int i = 0; i < 16; ++i) *to++ = q[i] >> j % 8 / 2 * 2 & 3;
  }
}

inline void codes(const Q3_K& b, uint8_t* to) {
  for (int j = 0; j < 16; ++j) {  // as Q2_K, the third bit from one bit plane
    const uint8_t *q = b.q + j / 8 * 32 + j % 2 * 16, *high = b.high + j % 2 * 16;
    for (int i = 0; i < 16; ++i) *to++ = uint8_t((q[i] >> j % 8 / 2 * 2 & 3) | (high[i] >> j / 2 & 1) << 2);
  }
}

inline void codes(const Q4_K& b, uint8_t* to) {
  for (int j = 0; j < 8; ++j)  // each 32 bytes hold two sub-blocks: low nibbles, then high ones
    for (const uint8_t q : std::span(b.q + j / 2 * 32, 32)) *to++ = j % 2 ? q >> 4 : q & 15;
}

inline void codes(const Q5_K& b, uint8_t* to) {
  for (int j = 0; j < 8; ++j) {
    const uint8_t* q = b.q + j / 2 * 32;
    for (int i = 0; i < 32; ++i) *to++ = uint8_t((j % 2 ? q[i] >> 4 : q[i] & 15) | (b.high[i] >> j & 1) << 4);
  }
}

inline void codes(const Q6_K& b, uint8_t* to) {
  for (int j = 0; j < 8; ++j) {  // quarters of two halves
    const uint8_t *low = b.low + j / 4 * 64 + j % 2 * 32, *high = b.high + j / 4 * 32;
    for (int i = 0; i < 32; ++i)
      *to++ = uint8_t((j % 4 < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> j % 4 * 2 & 3) << 4);
  }
}

struct GroupScale {
  int8_t scale, minimum;
};

inline GroupScale scales(const Q2_K& b, int j) { return {int8_t(b.scales[j] & 15), int8_t(b.scales[j] >> 4)}; }

inline GroupScale scales(const Q3_K& b, int j) {
  const int low = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4, top = b.scales[8 + j % 4] >> j / 4 * 2 & 3;
  return {int8_t((low | top << 4) - 32), 0};
}

template <class Block>
requires std::same_as<Block, Q4_K> || std::same_as<Block, Q5_K> GroupScale scales(const Block& block,
                                                                                  int j) {  // six bits each
  const uint8_t* b = block.scales;
  if (j < 4) return {int8_t(b[j] & 63), int8_t(b[j + 4] & 63)};
  return {int8_t((b[j + 4] & 15) | b[j - 4] >> 6 << 4), int8_t(b[j + 4] >> 4 | b[j] >> 6 << 4)};
}

inline GroupScale scales(const Q6_K& b, int j) { return {b.scales[j], 0}; }

}  // namespace foveate::io
