#include <immintrin.h>

#include "foveate/kernels/neighborhood_tile.h"

namespace foveate::kernels {
// Everything of this level has internal linkage: no other file may pick up a function that was compiled for it.
namespace {
constexpr float kInfinity = __builtin_inff();
// clang-format off
#include "foveate/kernels/cpu/simd_tails.h"
#include "foveate/kernels/cpu/simd_avx2.h"
#include "foveate/kernels/cpu/level.h"
// clang-format on

}  // namespace

extern const Table kAvx2;
const Table kAvx2 = make_table<>("avx2");

}  // namespace foveate::kernels
