#include "foveate/io/dequantize.h"

#include <bit>
#include <cstring>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

// Blocks as they lie in the file.  d: scale, m: minimum, fp16 both.
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
  static constexpr GgmlType kType = GgmlType::q4_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  uint8_t q[16];
};
struct Q4_1 {
  static constexpr GgmlType kType = GgmlType::q4_1;
  static constexpr int64_t kElements = 32;
  uint16_t d, m;
  uint8_t q[16];
};
struct Q5_0 {
  static constexpr GgmlType kType = GgmlType::q5_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  uint8_t high[4], q[16];
};
struct Q5_1 {
  static constexpr GgmlType kType = GgmlType::q5_1;
  static constexpr int64_t kElements = 32;
  uint16_t d, m;
  uint8_t high[4], q[16];
};
struct Q8_0 {
  static constexpr GgmlType kType = GgmlType::q8_0;
  static constexpr int64_t kElements = 32;
  uint16_t d;
  int8_t q[32];
};
struct Q2_K {
  static constexpr GgmlType kType = GgmlType::q2_k;
  static constexpr int64_t kElements = 256;
  uint8_t scales[16], q[64];
  uint16_t d, m;
};
struct Q3_K {
  static constexpr GgmlType kType = GgmlType::q3_k;
  static constexpr int64_t kElements = 256;
  uint8_t high[32], q[64], scales[12];
  uint16_t d;
};
struct Q4_K {
  static constexpr GgmlType kType = GgmlType::q4_k;
  static constexpr int64_t kElements = 256;
  uint16_t d, m;
  uint8_t scales[12], q[128];
};
struct Q5_K {
  static constexpr GgmlType kType = GgmlType::q5_k;
  static constexpr int64_t kElements = 256;
  uint16_t d, m;
  uint8_t scales[12], high[32], q[128];
};
struct Q6_K {
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

uint32_t fifth_bits(const uint8_t (&high)[4]) {
  uint32_t bits;
  std::memcpy(&bits, high, sizeof bits);
  return bits;
}

// Six-bit scale and minimum of sub-block j of 8.
void unpack_scale(const uint8_t (&b)[12], int j, uint8_t& scale, uint8_t& minimum) {
  if (j < 4) {
    scale = b[j] & 63, minimum = b[j + 4] & 63;
  } else {
    scale = uint8_t((b[j + 4] & 15) | ((b[j - 4] >> 6) << 4));
    minimum = uint8_t((b[j + 4] >> 4) | ((b[j] >> 6) << 4));
  }
}

void unpack(const F32& b, float* out) { *out = b.value; }
void unpack(const F16& b, float* out) { *out = half_to_float(b.bits); }
void unpack(const BF16& b, float* out) { *out = std::bit_cast<float>(uint32_t(b.bits) << 16); }

void unpack(const Q4_0& b, float* out) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 16; ++i) out[i] = float((b.q[i] & 15) - 8) * d, out[i + 16] = float((b.q[i] >> 4) - 8) * d;
}

void unpack(const Q4_1& b, float* out) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int i = 0; i < 16; ++i) out[i] = float(b.q[i] & 15) * d + m, out[i + 16] = float(b.q[i] >> 4) * d + m;
}

void unpack(const Q5_0& b, float* out) {
  const float d = half_to_float(b.d);
  const uint32_t high = fifth_bits(b.high);
  for (int i = 0; i < 16; ++i) {
    out[i] = float(int((b.q[i] & 15) | (high >> i & 1) << 4) - 16) * d;
    out[i + 16] = float(int((b.q[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16) * d;
  }
}

void unpack(const Q5_1& b, float* out) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  const uint32_t high = fifth_bits(b.high);
  for (int i = 0; i < 16; ++i) {
    out[i] = float((b.q[i] & 15) | (high >> i & 1) << 4) * d + m;
    out[i + 16] = float((b.q[i] >> 4) | (high >> (i + 16) & 1) << 4) * d + m;
  }
}

void unpack(const Q8_0& b, float* out) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 32; ++i) out[i] = float(b.q[i]) * d;
}

void unpack(const Q2_K& b, float* out) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int j = 0; j < 16; ++j) {  // 32 bytes hold eight sub-blocks of 16: the bit pairs of one place in two of them
    const float step = d * float(b.scales[j] & 15), base = m * float(b.scales[j] >> 4);
    const uint8_t* q = b.q + j / 8 * 32 + j % 2 * 16;
    for (int i = 0; i < 16; ++i) *out++ = step * float(q[i] >> j % 8 / 2 * 2 & 3) - base;
  }
}

void unpack(const Q3_K& b, float* out) {
  const float d = half_to_float(b.d);
  for (int j = 0; j < 16; ++j) {  // as Q2_K, the third bit from one bit plane
    const int low = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4, top = b.scales[8 + j % 4] >> j / 4 * 2 & 3;
    const float step = d * float((low | top << 4) - 32);
    const uint8_t *q = b.q + j / 8 * 32 + j % 2 * 16, *high = b.high + j % 2 * 16;
    for (int i = 0; i < 16; ++i) *out++ = step * float((q[i] >> j % 8 / 2 * 2 & 3) - (high[i] >> j / 2 & 1 ? 0 : 4));
  }
}

void unpack(const Q4_K& b, float* out) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int j = 0; j < 8; ++j) {  // each 32 bytes hold two sub-blocks: low nibbles, then high ones
    uint8_t scale, minimum;
    unpack_scale(b.scales, j, scale, minimum);
    const float step = d * scale, base = m * minimum;
    const uint8_t* q = b.q + j / 2 * 32;
    for (int i = 0; i < 32; ++i) *out++ = step * float(j % 2 ? q[i] >> 4 : q[i] & 15) - base;
  }
}

void unpack(const Q5_K& b, float* out) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int j = 0; j < 8; ++j) {
    uint8_t scale, minimum;
    unpack_scale(b.scales, j, scale, minimum);
    const float step = d * scale, base = m * minimum;
    const uint8_t* q = b.q + j / 2 * 32;
    for (int i = 0; i < 32; ++i)
      *out++ = step * float((j % 2 ? q[i] >> 4 : q[i] & 15) + ((b.high[i] >> j & 1) << 4)) - base;
  }
}

void unpack(const Q6_K& b, float* out) {
  const float d = half_to_float(b.d);
  for (int half = 0; half < 2; ++half) {
    const uint8_t *low = b.low + half * 64, *high = b.high + half * 32;
    const int8_t* scales = b.scales + half * 8;
    for (int i = 0; i < 128; ++i) {
      const int quarter = i / 32, l = i % 32;
      const uint8_t byte = low[l + (quarter % 2) * 32];
      const int q = (quarter < 2 ? byte & 15 : byte >> 4) | ((high[l] >> (2 * quarter) & 3) << 4);
      *out++ = d * float(scales[i / 16]) * float(q - 32);
    }
  }
}

// Calls use.operator()<Block>() with the type's block, if it is supported.
template <class Use>
void with_block(GgmlType type, const Use& use) {
  const auto try_all = [&]<class... Blocks>() {
    ((type == Blocks::kType ? use.template operator()<Blocks>() : void()), ...);
  };
  try_all.template operator()<F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K>();
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

void dequantize(GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
  const int64_t elements = block_elements(type);
  require(elements > 0, "dequantize: type must be supported, got {}", type_name(uint32_t(type)));
  const int64_t count = int64_t(out.size()), block = block_bytes(type);
  require(count % elements == 0 && count / elements * block == int64_t(bytes.size()),
          "dequantize: bytes must be {} per {} elements of {}, got {} for {}", block, elements,
          type_name(uint32_t(type)), bytes.size(), count);
  with_block(type, [&]<class Block>() {
    for (int64_t i = 0; i < count / elements; ++i) {
      Block one;
      std::memcpy(&one, bytes.data() + i * block, sizeof(Block));
      unpack(one, out.data() + i * elements);
    }
  });
}

}  // namespace foveate::io
