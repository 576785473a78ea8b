#include "foveate/kernels/neighborhood_tile.h"

namespace foveate::kernels {
// Everything of this level has internal linkage: no other file may pick up a function that was compiled for it.
namespace {
constexpr float kInfinity = __builtin_inff();
// clang-format off
#include "foveate/kernels/cpu/simd_tails.h"
#include "foveate/kernels/cpu/simd_portable.h"
#include "foveate/kernels/cpu/level.h"
// clang-format on

}  // namespace

extern const Table kPortable;
const Table kPortable = make_table<>("portable");

}  // namespace foveate::kernels
