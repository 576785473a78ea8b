#include <immintrin.h>

#include "foveate/kernels/tile.h"

namespace foveate::kernels {
// Everything of this level has internal linkage: no other file may pick up a function that was compiled for it.
namespace {
constexpr float kInfinity = __builtin_inff();
// clang-format off
#include "foveate/kernels/cpu/simd_avx512.h"
#include "foveate/kernels/cpu/products.h"
#include "foveate/kernels/cpu/forward_kernel.h"
#include "foveate/kernels/cpu/backward_kernel.h"
#include "foveate/kernels/cpu/pack_kernels.h"
#include "foveate/kernels/cpu/peak_kernels.h"
// clang-format on

// Pairs of bf16: vdpbf16ps takes two products a lane and sums in fp32.
struct Pairs {
  static constexpr int kStep = 2;
  static FOVEATE_INLINE F dot(F a, F b, F sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
  }
  static FOVEATE_INLINE F exp2(F x) { return Simd::exp2(x, kExp2Coarse); }
  // 32 neighbours of a row.
  static FOVEATE_INLINE void store_pairs(float* to, F first, F second) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }
  // from [rows][64] -> to [rows / 2][64]: two rows a unit, an odd last row with zeros.
  static void interleave_rows(const float* from, int rows, float* to) {
    for (int r = 0; r < rows; r += 2, to += kPanelKeys)
      for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
        const float* at = from + r * kPanelKeys + column;
        const I low = wide(Simd::load(at));
        const I high = r + 1 < rows ? wide(Simd::load(at + kPanelKeys)) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + column, _mm512_or_si512(_mm512_slli_epi32(high, 16), low));
      }
  }
  static FOVEATE_INLINE I wide(F x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
};

}  // namespace

extern const Table kAvx512Bf16;
const Table kAvx512Bf16 = {
    .name = "avx512_bf16",
    .pack_rows = pack_rows,
    .pack_by_key = pack_by_key,
    .pack_by_dim = pack_by_dim,
    .forward = {forward<Floats>, forward<Pairs>},
    .backward = {backward<Floats>, backward<Pairs>},
    .finish = finish,
    .row_dots = row_dots,
    .scale_row = scale_row,
    .add_row = add_row,
    .peak_products = {peak_products<Floats>, peak_products<Pairs>},
    .read = read,
};

}  // namespace foveate::kernels
