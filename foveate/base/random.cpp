#include "foveate/base/random.h"

#include <cmath>

#include "foveate/base/error.h"

namespace foveate {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

// Natural logarithm from IEEE basic operations alone: libm's differs in the last bits between platforms.  x > 0,
// normal.
double portable_log(double x) {
  int exponent;
  double m = std::frexp(x, &exponent);  // exact; m in [0.5, 1)
  if (m < 0.70710678118654752440) m *= 2, --exponent;
  const double t = (m - 1) / (m + 1), t2 = t * t;  // |t| < 0.172: 12 terms of atanh reach 1e-19
  double sum = 0;
  for (int n = 23; n >= 1; n -= 2) sum = sum * t2 + 1.0 / n;
  return 2 * t * sum + exponent * kLn2;
}

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c = {uint32_t(b >> 32) ^ c[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ key[1], uint32_t(a)};
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  return c;
}

uint32_t Random::next_u32() {
  if (left_ == 0) {
    words_ = philox({uint32_t(block_), uint32_t(block_ >> 32), uint32_t(stream_), uint32_t(stream_ >> 32)},
                    {uint32_t(seed_), uint32_t(seed_ >> 32)});
    ++block_;
    left_ = 4;
  }
  return words_[4 - left_--];
}

uint64_t Random::next_u64() {
  const uint64_t high = next_u32();
  return high << 32 | next_u32();
}

double Random::uniform() { return double(next_u64() >> 11) * 0x1p-53; }

uint64_t Random::below(uint64_t limit) {
  require(limit >= 1, "random: limit must be >= 1, got {}", limit);
  const uint64_t rejected = -limit % limit;  // 2^64 mod limit: draws under it would favour small numbers
  for (;;) {
    const uint64_t draw = next_u64();
    if (draw >= rejected) return draw % limit;
  }
}

double Random::normal() {  // Marsaglia's polar method; the second number is dropped so that no state is hidden
  for (;;) {
    const double x = 2 * uniform() - 1, y = 2 * uniform() - 1, r2 = x * x + y * y;
    if (r2 > 0 && r2 < 1) return x * std::sqrt(-2 * portable_log(r2) / r2);
  }
}

std::array<uint32_t, 2> dropout_row(uint64_t seed, int64_t batch, int64_t head, int64_t position) {
  const auto words = philox({uint32_t(position), uint32_t(uint64_t(position) >> 32), uint32_t(head), uint32_t(batch)},
                            {uint32_t(seed), uint32_t(seed >> 32)});
  return {words[0], words[1]};
}

}  // namespace foveate
