#include "foveate/base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "foveate/base/error.h"

namespace foveate {
namespace {

// Known answers of Philox4x32-10 from the authors' distribution (kat_vectors).
TEST(Random, philox_gives_the_published_vectors) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, same_seed_same_numbers_other_stream_other_numbers) {
  Random a(5, 1), b(5, 1), c(5, 2), d(6, 1);
  const uint64_t first = a.next_u64();
  EXPECT_EQ(first, b.next_u64());
  EXPECT_NE(first, c.next_u64());
  EXPECT_NE(first, d.next_u64());
}

TEST(Random, below_is_uniform_and_in_range) {
  Random random(1);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 5 * std::sqrt(10000.0));
  EXPECT_EQ(random.below(1), 0u);
  EXPECT_THROW(random.below(0), Error);
}

TEST(Random, uniform_and_normal_have_their_moments) {
  Random random(2);
  double sum = 0, normal = 0, square = 0, fourth = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double u = random.uniform(), n = random.normal();
    ASSERT_TRUE(u >= 0 && u < 1);
    sum += u, normal += n, square += n * n, fourth += n * n * n * n;
  }
  EXPECT_NEAR(sum / kCount, 0.5, 0.004);
  EXPECT_NEAR(normal / kCount, 0, 0.01);
  EXPECT_NEAR(square / kCount, 1, 0.02);
  EXPECT_NEAR(fourth / kCount, 3, 0.15);
}

TEST(Random, normal_has_fixed_bits) {  // the same on every platform: our own logarithm, IEEE operations alone
  Random random(3);
  EXPECT_DOUBLE_EQ(random.normal(), 1.0584317246184618);
}

TEST(Random, shuffle_is_a_permutation) {
  std::vector<int> items = {0, 1, 2, 3, 4, 5, 6, 7};
  Random(4).shuffle(std::span(items));
  std::vector<int> sorted = items;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_NE(items, sorted);
}

}  // namespace
}  // namespace foveate
