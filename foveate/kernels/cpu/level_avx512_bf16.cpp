#include <immintrin.h>

#include "foveate/kernels/neighborhood_tile.h"

namespace foveate::kernels {
// Everything of this level has internal linkage: no other file may pick up a function that was compiled for it.
namespace {
constexpr float kInfinity = __builtin_inff();
// clang-format off
#include "foveate/kernels/cpu/simd_avx512.h"
#include "foveate/kernels/cpu/level.h"
// clang-format on

// Pairs of bf16: vdpbf16ps takes two products a lane and sums in fp32.
struct Pairs {
  static constexpr int kStep = 2;
  static constexpr bool kCodes = false;
  static FOVEATE_INLINE F dot(F a, F b, F sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
  }
  static FOVEATE_INLINE F exp2(F x) { return Simd::exp2(x, kExp2Coarse); }
  // 16 neighbours of two rows.
  static FOVEATE_INLINE F interleave(const uint16_t* low, const uint16_t* high) {
    const I a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)low));
    const I b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)high));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(b, 16), a));
  }
  static FOVEATE_INLINE F interleave(F low, F high) {
    const I places = _mm512_or_si512(Simd::count_from(0), Simd::shift_up(Simd::count_from(16)));  // i, 16 + i
    return (F)_mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  // 32 neighbours of a row.
  static FOVEATE_INLINE F join(F first, F second) { return (F)(__m512i)_mm512_cvtne2ps_pbh(second, first); }
  // 32 neighbours of two rows, in an order that put_in_order mends in what is summed of them.
  static FOVEATE_INLINE void interleave_two(const uint16_t* low, const uint16_t* high, F& first, F& second) {
    const I a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
    first = (F)_mm512_unpacklo_epi16(a, b), second = (F)_mm512_unpackhi_epi16(a, b);
  }
  static FOVEATE_INLINE void put_in_order(F& first, F& second) {
    const I low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const I high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const F mixed = first;
    first = _mm512_permutex2var_ps(mixed, low, second), second = _mm512_permutex2var_ps(mixed, high, second);
  }
  static FOVEATE_INLINE void store_pairs(float* to, F first, F second) { Simd::store(to, join(first, second)); }
  // from [rows][64] -> to [rows / 2][64], two rows a unit, an odd last row with zeros; and, unless null, the rows as
  // they are in bf16: plain[r * stride].
  static void interleave_rows(const float* from, int rows, float* to, float* plain, int64_t stride) {
    for (int r = 0; r < rows; r += 2, to += kPanelKeys)
      for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
        const float* at = from + r * kPanelKeys + column;
        const bool odd = r + 1 == rows;
        const __m256i low = (__m256i)_mm512_cvtneps_pbh(Simd::load(at));
        const __m256i high = odd ? _mm256_setzero_si256() : (__m256i)_mm512_cvtneps_pbh(Simd::load(at + kPanelKeys));
        const I pairs = _mm512_or_si512(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16), _mm512_cvtepu16_epi32(low));
        _mm512_storeu_si512(to + column, pairs);
        if (!plain) continue;
        _mm256_storeu_si256((__m256i*)(plain + r * stride + column / 2), low);
        if (!odd) _mm256_storeu_si256((__m256i*)(plain + (r + 1) * stride + column / 2), high);
      }
  }
};

#include "foveate/kernels/cpu/code_kernels.h"

// The bf16 of codes' numbers are looked up; of eight bits the low and the high four apart, both times the same x.
template <int kBits>
struct CodeReader<Pairs, kBits> {
  static constexpr int kParts = kBits == 8 ? 2 : 1;
  static constexpr int unit(int step, int) { return step; }
  // Written out because g++ 12 broadcasts into a register first: 2.1 cycles a step instead of 1.45 on Zen 4.
  static FOVEATE_INLINE F dot(const float* x, F value, F sum) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(value), "m"(*x));
    return sum;
  }
  I tables[2];

  explicit FOVEATE_INLINE CodeReader(int lowest) {
    if constexpr (kBits == 8) {
      tables[0] = table(0, 15, 1, 0), tables[1] = table(0, 15, 16, lowest);
    } else {  // bits above the code do not matter: numbers repeat
      tables[0] = table(0, (1 << kBits) - 1, 1, lowest), tables[1] = table(32, (1 << kBits) - 1, 1, lowest);
    }
  }
  // bf16 of lowest + factor * (code & mask) for 32 codes from `first` on.
  static FOVEATE_INLINE I table(int first, int mask, int factor, int lowest) {
    const auto numbers = [&](int from) {
      const I code = Simd::bits_and(Simd::count_from(from), mask);
      return Simd::to_floats(Simd::add(Simd::multiply(code, factor), Simd::set_i(lowest)));
    };
    return (I)_mm512_cvtne2ps_pbh(numbers(first + 16), numbers(first));
  }
  template <int kStep>
  FOVEATE_INLINE void read(const CodeWords<kBits>& words, F (&to)[kParts]) const {
    const I code = words.template at<kStep>();
    if constexpr (kBits == 6) {
      to[0] = (F)_mm512_permutex2var_epi16(tables[0], code, tables[1]);
    } else {
      to[0] = (F)_mm512_permutexvar_epi16(code, tables[0]);
      if constexpr (kBits == 8) to[1] = (F)_mm512_permutexvar_epi16(Simd::shift_down<4>(code), tables[1]);
    }
  }
};

}  // namespace

extern const Table kAvx512Bf16;
const Table kAvx512Bf16 = [] {
  Table table = make_table<Pairs>("avx512_bf16");
  table.forward[1] = forward<Pairs, Codes>;
  table.pack_query_codes = Codes::pack_query;
  return table;
}();

}  // namespace foveate::kernels
