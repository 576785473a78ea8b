#include "foveate/io/dequantize.h"

#include <bit>
#include <cstring>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

// Blocks as they lie in the file.  d: scale, m: minimum, fp16 both.
struct Q4_0 {
  uint16_t d;
  uint8_t q[16];
};
struct Q4_1 {
  uint16_t d, m;
  uint8_t q[16];
};
struct Q5_0 {
  uint16_t d;
  uint8_t high[4], q[16];
};
struct Q5_1 {
  uint16_t d, m;
  uint8_t high[4], q[16];
};
struct Q8_0 {
  uint16_t d;
  int8_t q[32];
};
struct Q4_K {
  uint16_t d, m;
  uint8_t scales[12], q[128];
};
struct Q5_K {
  uint16_t d, m;
  uint8_t scales[12], high[32], q[128];
};
struct Q6_K {
  uint8_t low[128], high[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24 &&
              sizeof(Q8_0) == 34);
static_assert(sizeof(Q4_K) == 144 && sizeof(Q5_K) == 176 && sizeof(Q6_K) == 210);

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

template <class Block>
void unpack_all(std::span<const std::byte> bytes, std::span<float> out, int64_t elements) {
  for (size_t i = 0; i * sizeof(Block) < bytes.size(); ++i) {
    Block block;
    std::memcpy(&block, bytes.data() + i * sizeof(Block), sizeof(Block));
    unpack(block, out.data() + int64_t(i) * elements);
  }
}

template <class Convert>
void convert_halves(std::span<const std::byte> bytes, std::span<float> out, Convert&& convert) {
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    out[i] = convert(half);
  }
}

}  // namespace

int64_t block_elements(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
    case GgmlType::f16:
    case GgmlType::bf16:
      return 1;
    case GgmlType::q4_0:
    case GgmlType::q4_1:
    case GgmlType::q5_0:
    case GgmlType::q5_1:
    case GgmlType::q8_0:
      return 32;
    case GgmlType::q4_k:
    case GgmlType::q5_k:
    case GgmlType::q6_k:
      return 256;
  }
  return 0;
}

int64_t block_bytes(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
      return 4;
    case GgmlType::f16:
    case GgmlType::bf16:
      return 2;
    case GgmlType::q4_0:
      return sizeof(Q4_0);
    case GgmlType::q4_1:
      return sizeof(Q4_1);
    case GgmlType::q5_0:
      return sizeof(Q5_0);
    case GgmlType::q5_1:
      return sizeof(Q5_1);
    case GgmlType::q8_0:
      return sizeof(Q8_0);
    case GgmlType::q4_k:
      return sizeof(Q4_K);
    case GgmlType::q5_k:
      return sizeof(Q5_K);
    case GgmlType::q6_k:
      return sizeof(Q6_K);
  }
  return 0;
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
  switch (type) {
    case GgmlType::f32:
      if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case GgmlType::f16:
      return convert_halves(bytes, out, half_to_float);
    case GgmlType::bf16:
      return convert_halves(bytes, out, [](uint16_t half) { return std::bit_cast<float>(uint32_t(half) << 16); });
    case GgmlType::q4_0:
      return unpack_all<Q4_0>(bytes, out, elements);
    case GgmlType::q4_1:
      return unpack_all<Q4_1>(bytes, out, elements);
    case GgmlType::q5_0:
      return unpack_all<Q5_0>(bytes, out, elements);
    case GgmlType::q5_1:
      return unpack_all<Q5_1>(bytes, out, elements);
    case GgmlType::q8_0:
      return unpack_all<Q8_0>(bytes, out, elements);
    case GgmlType::q4_k:
      return unpack_all<Q4_K>(bytes, out, elements);
    case GgmlType::q5_k:
      return unpack_all<Q5_K>(bytes, out, elements);
    case GgmlType::q6_k:
      return unpack_all<Q6_K>(bytes, out, elements);
  }
}

}  // namespace foveate::io
