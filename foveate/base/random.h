// Counter-based random numbers (Philox4x32-10) with distributions of our own: the same seed gives the same bits on
// every platform, standard library and thread count.  Source: Salmon et al., "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>

namespace foveate {

// One Philox4x32-10 block: 128 random bits of a 128-bit counter under a 64-bit key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A sequence of random numbers.  Two generators with different (seed, stream) are independent.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  uint32_t next_u32();
  uint64_t next_u64();
  double uniform();                // in [0, 1), 53 random bits
  uint64_t below(uint64_t limit);  // in [0, limit), unbiased; limit >= 1
  double normal();                 // mean 0, variance 1

  template <class T>
  void shuffle(std::span<T> items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  uint64_t seed_, stream_;
  uint64_t block_ = 0;  // the next block to draw
  std::array<uint32_t, 4> words_{};
  int left_ = 0;  // unused words of words_
};

// Bits that decide about the pair of a row and a key: four operations more than a row's own words, so that vectors and
// tensors can do the same.  The weight is dropped where the upper 31 bits are below probability * 2^31.
std::array<uint32_t, 2> dropout_row(uint64_t seed, int64_t batch, int64_t head, int64_t position);
inline uint32_t dropout_bits(std::array<uint32_t, 2> row, uint32_t key) {
  uint32_t x = key * 0x9e3779b1u + row[0];
  x = (x ^ x >> 16) * 0x21f0aaadu;
  x = (x ^ x >> 15) + row[1];
  x = (x ^ x >> 16) * 0x735a2d97u;
  return x ^ x >> 15;
}
constexpr uint32_t dropout_threshold(double probability) { return uint32_t(probability * 0x1p31); }

}  // namespace foveate
