#include "foveate/ops/select/top.h"

#include <algorithm>
#include <bit>

namespace foveate::ops {
namespace {

// Numbers that ascend with the score: 0 is -inf, 1 NaN, 2 and more all others.
inline uint32_t order_of(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 equals 0
  const uint32_t order = bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
  constexpr uint32_t kMinusInfinity = 0x007fffff, kInfinity = 0xff800000;
  if (order <= kMinusInfinity) return order == kMinusInfinity ? 0 : 1;  // below it are negative NaN
  return order > kInfinity ? 1 : order;
}

}  // namespace

void TopOfRow::operator()(std::span<const float> scores, int64_t count, int32_t* to) {
  const int64_t entries = std::ssize(scores);
  orders_.resize(size_t(entries));
  uint32_t* orders = orders_.data();
  counts_.fill(0);
  for (int64_t i = 0; i < entries; ++i) {
    orders[i] = order_of(scores[size_t(i)]);
    ++counts_[orders[i] >> (32 - kDigit)];
  }
  const int64_t legal = entries - (counts_[0] ? std::ranges::count(orders_, 0u) : 0);
  const auto emit = [&](uint32_t above, int64_t equal) {  // all above, and the first `equal` that equal it
    int64_t taken = 0;
    for (int64_t i = 0; i < entries; ++i) {
      to[taken] = int32_t(i);
      const bool is_equal = orders[i] == above && equal > 0;
      taken += orders[i] > above || is_equal;
      equal -= is_equal;
      if (taken == count) break;
    }
    std::fill(to + taken, to + count, -1);
  };
  if (count <= 0) return;
  if (legal <= count) return emit(0, 0);
  // The order of the last entry taken, digit by digit; `rest` of those that share its digits so far are taken.
  int64_t rest = count;
  uint32_t prefix = 0;
  const uint32_t* from = orders;
  int64_t held = entries;
  for (int shift = 32 - kDigit, width = kDigit; width > 0;) {
    int64_t digit = (int64_t{1} << width) - 1;
    for (; int64_t(counts_[size_t(digit)]) < rest; --digit) rest -= counts_[size_t(digit)];
    prefix |= uint32_t(digit) << shift;
    const int next = std::min(kDigit, shift);
    if (next == 0) break;
    left_.resize(std::max(left_.size(), size_t(held) + 1));
    uint32_t* to_left = left_.data();
    counts_.fill(0);
    int64_t kept = 0;
    for (int64_t i = 0; i < held; ++i) {
      const uint32_t order = from[i];
      to_left[kept] = order;  // in place from the second round on: kept <= i
      kept += order >> shift == prefix >> shift;
    }
    for (int64_t i = 0; i < kept; ++i) ++counts_[to_left[i] >> (shift - next) & ((1u << next) - 1)];
    from = to_left, held = kept, shift -= next, width = next;
  }
  return emit(prefix, rest);
}

}  // namespace foveate::ops
