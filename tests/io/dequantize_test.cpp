#include "foveate/io/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "foveate/base/random.h"
#include "tests/support/gguf_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::ByteWriter;

constexpr uint16_t kHalf = 0x3800, kOne = 0x3C00, kMinusTwo = 0xC000;  // 0.5, 1, -2 in fp16

std::vector<float> values_of(GgmlType type, const std::string& bytes) {
  std::vector<float> values(size_t(int64_t(bytes.size()) / block_bytes(type) * block_elements(type)));
  dequantize(type, as_bytes(bytes), values);
  return values;
}

// Nibble i of the 16 bytes is i in the low half and 15 - i in the high half.
std::string rising_and_falling() {
  std::string bytes;
  for (int i = 0; i < 16; ++i) bytes += char(i | (15 - i) << 4);
  return bytes;
}

TEST(HalfToFloat, gives_every_finite_value_exactly) {
  for (int bits = 0; bits < 0x7C00; ++bits) {
    const int exponent = bits >> 10, fraction = bits & 1023;
    const double expected = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(double(fraction), -24);
    ASSERT_EQ(half_to_float(uint16_t(bits)), expected) << bits;
    ASSERT_EQ(half_to_float(uint16_t(bits | 0x8000)), -expected) << bits;
  }
  EXPECT_TRUE(std::signbit(half_to_float(0x8000)));
}

TEST(HalfToFloat, keeps_infinities_and_nan) {
  EXPECT_EQ(half_to_float(0x7C00), INFINITY);
  EXPECT_EQ(half_to_float(0xFC00), -INFINITY);
  for (int fraction = 1; fraction < 1024; ++fraction) {
    EXPECT_TRUE(std::isnan(half_to_float(uint16_t(0x7C00 | fraction))));
    EXPECT_TRUE(std::isnan(half_to_float(uint16_t(0xFC00 | fraction))));
  }
}

TEST(Dequantize, f32_f16_and_bf16) {
  EXPECT_EQ(values_of(GgmlType::f32, ByteWriter().put(1.5f).put(-2.0f).data()), (std::vector<float>{1.5, -2}));
  EXPECT_EQ(values_of(GgmlType::f16, ByteWriter().put(kHalf).put(kMinusTwo).data()), (std::vector<float>{0.5, -2}));
  EXPECT_EQ(values_of(GgmlType::bf16, ByteWriter().put(uint16_t(0x3FC0)).put(uint16_t(0xC000)).data()),
            (std::vector<float>{1.5, -2}));
}

TEST(Dequantize, q4_0_and_q4_1_put_low_nibbles_first) {
  const std::vector<float> plain = values_of(GgmlType::q4_0, ByteWriter().put(kHalf).raw(rising_and_falling()).data());
  const std::vector<float> shifted =
      values_of(GgmlType::q4_1, ByteWriter().put(kHalf).put(kMinusTwo).raw(rising_and_falling()).data());
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(plain[i], 0.5f * float(i - 8));
    EXPECT_EQ(plain[i + 16], 0.5f * float(15 - i - 8));
    EXPECT_EQ(shifted[i], 0.5f * float(i) - 2);
    EXPECT_EQ(shifted[i + 16], 0.5f * float(15 - i) - 2);
  }
}

TEST(Dequantize, q5_0_and_q5_1_take_the_fifth_bit_by_element) {
  const uint32_t high = 1U << 3 | 1U << 20;
  const std::vector<float> plain =
      values_of(GgmlType::q5_0, ByteWriter().put(kHalf).put(high).raw(rising_and_falling()).data());
  const std::vector<float> shifted =
      values_of(GgmlType::q5_1, ByteWriter().put(kHalf).put(kMinusTwo).put(high).raw(rising_and_falling()).data());
  for (int i = 0; i < 32; ++i) {
    const int q = (i < 16 ? i : 31 - i) + (i == 3 || i == 20 ? 16 : 0);
    EXPECT_EQ(plain[i], 0.5f * float(q - 16)) << i;
    EXPECT_EQ(shifted[i], 0.5f * float(q) - 2) << i;
  }
}

TEST(Dequantize, q8_0_is_signed) {
  ByteWriter block;
  block.put(kMinusTwo);
  for (int i = 0; i < 32; ++i) block.put(int8_t(i - 16));
  const std::vector<float> values = values_of(GgmlType::q8_0, block.data());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(values[i], -2 * float(i - 16));
}

// The twelve bytes of eight scales and eight minima, six bits each.
std::string pack_scales(const std::vector<int>& scales, const std::vector<int>& minima) {
  std::string bytes(12, '\0');
  for (int j = 0; j < 4; ++j) {
    bytes[j] = char(scales[j] | scales[j + 4] >> 4 << 6);
    bytes[j + 4] = char(minima[j] | minima[j + 4] >> 4 << 6);
    bytes[j + 8] = char((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
  }
  return bytes;
}

const std::vector<int> kScales = {1, 63, 17, 32, 48, 5, 63, 16}, kMinima = {0, 7, 63, 31, 33, 62, 1, 20};

TEST(Dequantize, q2_k_and_q3_k_spread_bit_pairs_over_two_planes_of_32_bytes) {
  std::string q(64, '\0'), high(32, '\0'), packed(12, '\0'), scales(16, '\0');
  std::vector<int> number(256), steps(16);
  for (int i = 0; i < 256; ++i) {
    number[i] = i * 29 % 8;  // its low two bits for Q2_K
    const int half = i / 128, pair = i % 128 / 32, lane = i % 32;
    q[half * 32 + lane] |= char((number[i] & 3) << 2 * pair);
    high[lane] |= char(number[i] >> 2 << (half * 4 + pair));
  }
  for (int j = 0; j < 16; ++j) {
    steps[j] = j * 23 % 64;
    packed[j % 8] |= char((steps[j] & 15) << j / 8 * 4);
    packed[8 + j % 4] |= char(steps[j] >> 4 << j / 4 * 2);
    scales[j] = char(j | (15 - j) << 4);
  }
  const std::vector<float> two =
      values_of(GgmlType::q2_k, ByteWriter().raw(scales).raw(q).put(kHalf).put(kMinusTwo).data());
  const std::vector<float> three =
      values_of(GgmlType::q3_k, ByteWriter().raw(high).raw(q).raw(packed).put(kHalf).data());
  for (int i = 0; i < 256; ++i) {
    const int j = i / 16;
    EXPECT_EQ(two[i], 0.5f * float(j * (number[i] & 3)) + 2 * float(15 - j)) << i;
    EXPECT_EQ(three[i], 0.5f * float((steps[j] - 32) * (number[i] - 4))) << i;
  }
}

TEST(Dequantize, q4_k_has_a_scale_and_a_minimum_per_32_elements) {
  ByteWriter block;
  block.put(kHalf).put(kMinusTwo).raw(pack_scales(kScales, kMinima));
  for (int i = 0; i < 128; ++i) block.put(uint8_t((i % 16) | (i / 8) << 4));
  const std::vector<float> values = values_of(GgmlType::q4_k, block.data());
  for (int i = 0; i < 256; ++i) {
    const int group = i / 32, byte = group / 2 * 32 + i % 32, q = group % 2 ? byte / 8 : byte % 16;
    EXPECT_EQ(values[i], 0.5f * float(kScales[group] * q) + 2 * float(kMinima[group])) << i;
  }
}

TEST(Dequantize, q5_k_takes_the_fifth_bit_of_a_group_from_one_bit_plane) {
  ByteWriter block;
  block.put(kHalf).put(kMinusTwo).raw(pack_scales(kScales, kMinima));
  for (int i = 0; i < 32; ++i) block.put(uint8_t(i * 37));
  for (int i = 0; i < 128; ++i) block.put(uint8_t((i % 16) | (i / 8) << 4));
  const std::vector<float> values = values_of(GgmlType::q5_k, block.data());
  for (int i = 0; i < 256; ++i) {
    const int group = i / 32, byte = group / 2 * 32 + i % 32;
    const int q = (group % 2 ? byte / 8 : byte % 16) + 16 * (uint8_t(i % 32 * 37) >> group & 1);
    EXPECT_EQ(values[i], 0.5f * float(kScales[group] * q) + 2 * float(kMinima[group])) << i;
  }
}

TEST(Dequantize, q6_k_spreads_each_element_over_two_planes) {
  std::vector<int> q(256);
  std::string low(128, '\0'), high(64, '\0');
  for (int i = 0; i < 256; ++i) {
    q[i] = i * 29 % 64;
    const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
    low[half * 64 + quarter % 2 * 32 + lane] |= char((q[i] & 15) << quarter / 2 * 4);
    high[half * 32 + lane] |= char(q[i] >> 4 << 2 * quarter);
  }
  ByteWriter block;
  block.raw(low).raw(high);
  for (int i = 0; i < 16; ++i) block.put(int8_t(i * 16 - 128));
  const std::vector<float> values = values_of(GgmlType::q6_k, block.put(kHalf).data());
  for (int i = 0; i < 256; ++i) EXPECT_EQ(values[i], 0.5f * float((i / 16 * 16 - 128) * (q[i] - 32))) << i;
}

constexpr GgmlType kTypes[] = {GgmlType::f32,  GgmlType::f16,  GgmlType::bf16, GgmlType::q4_0, GgmlType::q4_1,
                               GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0, GgmlType::q2_k, GgmlType::q3_k,
                               GgmlType::q4_k, GgmlType::q5_k, GgmlType::q6_k};

TEST(Dequantize, treats_blocks_independently_in_every_type) {
  Random random(7);
  for (const GgmlType type : kTypes) {
    std::string bytes;
    while (int64_t(bytes.size()) < 5 * block_bytes(type)) bytes += char(random.below(256));
    const std::vector<float> together = values_of(type, bytes);
    for (int64_t block = 0; block < 5; ++block) {
      const std::vector<float> alone =
          values_of(type, bytes.substr(size_t(block * block_bytes(type)), size_t(block_bytes(type))));
      const float* expected = together.data() + block * block_elements(type);
      EXPECT_EQ(std::memcmp(alone.data(), expected, alone.size() * sizeof(float)), 0) << type_name(uint32_t(type));
    }
  }
}

TEST(Dequantize, accepts_nothing_of_every_type) {
  for (const GgmlType type : kTypes) EXPECT_NO_THROW(dequantize(type, {}, {}));
}

TEST(Dequantize, refuses_sizes_that_do_not_fit_and_types_it_does_not_know) {
  const auto message = [](GgmlType type, size_t byte_count, size_t elements) -> std::string {
    const std::vector<std::byte> bytes(byte_count);
    std::vector<float> values(elements);
    try {
      dequantize(type, bytes, values);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message(GgmlType::q8_0, 34, 32), "no error");
  EXPECT_EQ(message(GgmlType::q8_0, 35, 32), "dequantize: bytes must be 34 per 32 elements of Q8_0, got 35 for 32");
  EXPECT_EQ(message(GgmlType::q8_0, 34, 33), "dequantize: bytes must be 34 per 32 elements of Q8_0, got 34 for 33");
  EXPECT_EQ(message(GgmlType::f32, 4, 2), "dequantize: bytes must be 4 per 1 elements of F32, got 4 for 2");
  EXPECT_EQ(message(static_cast<GgmlType>(16), 66, 256), "dequantize: type must be supported, got IQ2_XXS");
  EXPECT_EQ(block_elements(static_cast<GgmlType>(99)), 0);
  EXPECT_EQ(block_bytes(static_cast<GgmlType>(99)), 0);
}

}  // namespace
}  // namespace foveate::io
