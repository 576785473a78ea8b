// Rows of quantised types in their parts.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/io/dequantize.h"
#include "tests/support/gguf_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;

const GgmlType kQuantised[] = {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0,
                               GgmlType::q2_k, GgmlType::q3_k, GgmlType::q4_k, GgmlType::q5_k, GgmlType::q6_k};

// Any bytes are blocks of some numbers, also Inf and NaN.
std::string random_blocks(GgmlType type, int64_t blocks) {
  Random random{uint64_t(type)};
  std::string bytes(size_t(blocks * block_bytes(type)), '\0');
  for (char& byte : bytes) byte = char(random.below(256));
  return bytes;
}

TEST(TakeApart, scale_times_code_plus_minimum_has_the_bits_of_dequantize) {
  for (const GgmlType type : kQuantised) {
    const std::string bytes = random_blocks(type, 64);
    const int64_t count = 64 * block_elements(type);
    const QuantFormat format = *quant_format(type);
    QuantRow row(format, count);
    take_apart(type, as_bytes(bytes), row);
    std::vector<float> values(static_cast<size_t>(count));
    dequantize(type, as_bytes(bytes), values);
    int finite = 0;
    for (int64_t i = 0; i < count; ++i) {
      const size_t group = size_t(i / format.group), block = size_t(i / format.block);
      ASSERT_LT(row.codes[size_t(i)], 1 << format.bits);
      double element = half_to_float(row.scales[block]);  // double holds every step exactly
      if (format.has_group_scales()) element *= row.group_scales[group];
      element *= row.codes[size_t(i)] + format.lowest;
      if (format.has_minimum) {
        double minimum = half_to_float(row.minima[block]);
        if (format.has_group_scales()) minimum *= row.group_minima[group];
        element += minimum;
      }
      const float expected = float(element), value = values[size_t(i)];
      if (std::isnan(expected) || std::isnan(value)) {
        ASSERT_EQ(std::isnan(expected), std::isnan(value)) << type_name(uint32_t(type)) << " " << i;
        continue;
      }
      ++finite;
      ASSERT_EQ(std::memcmp(&value, &expected, 4), 0) << type_name(uint32_t(type)) << " " << i;
    }
    EXPECT_GT(finite, count / 2);
  }
}

TEST(TakeApart, plain_types_have_no_parts) {
  for (const GgmlType type : {GgmlType::f32, GgmlType::f16, GgmlType::bf16}) {
    EXPECT_FALSE(quant_format(type).has_value());
    QuantRow row({4, 0, 32, 32, false}, 32);
    EXPECT_THROW(take_apart(type, {}, row), Error);
  }
}

TEST(TakeApart, bytes_and_rows_that_do_not_fit_are_refused) {
  for (const GgmlType type : kQuantised) {
    const std::string bytes = random_blocks(type, 1);
    QuantRow row(*quant_format(type), block_elements(type)), longer(*quant_format(type), 2 * block_elements(type));
    EXPECT_NO_THROW(take_apart(type, as_bytes(bytes), row));
    EXPECT_THROW(take_apart(type, as_bytes(bytes), longer), Error);
    EXPECT_THROW(take_apart(type, as_bytes(bytes).first(bytes.size() - 1), row), Error);
    QuantRow other(type == GgmlType::q2_k ? QuantFormat{8, -128, 32, 32, false} : QuantFormat{2, 0, 16, 256, true},
                   block_elements(type) * 8);
    EXPECT_THROW(take_apart(type, as_bytes(random_blocks(type, 8)), other), Error) << type_name(uint32_t(type));
  }
}

}  // namespace
}  // namespace foveate::io
