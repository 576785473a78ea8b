#include "foveate/kernels/tile.h"

namespace foveate::kernels {
// Everything of this level has internal linkage: no other file may pick up a function that was compiled for it.
namespace {
constexpr float kInfinity = __builtin_inff();
// clang-format off
#include "foveate/kernels/cpu/simd_portable.h"
#include "foveate/kernels/cpu/products.h"
#include "foveate/kernels/cpu/forward_kernel.h"
#include "foveate/kernels/cpu/backward_kernel.h"
#include "foveate/kernels/cpu/pack_kernels.h"
#include "foveate/kernels/cpu/peak_kernels.h"
// clang-format on

}  // namespace

extern const Table kPortable;
const Table kPortable = {
    .name = "portable",
    .pack_rows = pack_rows,
    .pack_by_key = pack_by_key,
    .pack_by_dim = pack_by_dim,
    .forward = {forward<Floats>, nullptr},
    .backward = {backward<Floats>, nullptr},
    .finish = finish,
    .row_dots = row_dots,
    .scale_row = scale_row,
    .add_row = add_row,
    .peak_products = {peak_products<Floats>, nullptr},
    .read = read,
};

}  // namespace foveate::kernels
