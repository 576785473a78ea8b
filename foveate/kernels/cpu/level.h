// All kernels of a level and its table.  To be included inside the level's own anonymous namespace, after its Simd.
// clang-format off
#include "foveate/kernels/cpu/products.h"
#include "foveate/kernels/cpu/score_kernels.h"
#include "foveate/kernels/cpu/row_kernels.h"
#include "foveate/kernels/cpu/forward_kernel.h"
#include "foveate/kernels/cpu/backward_kernel.h"
#include "foveate/kernels/cpu/sums_kernel.h"
#include "foveate/kernels/cpu/pack_kernels.h"
#include "foveate/kernels/cpu/neighborhood_kernel.h"
#include "foveate/kernels/cpu/packed_kernels.h"
#include "foveate/kernels/cpu/index_kernel.h"
#include "foveate/kernels/cpu/layer_kernels.h"
#include "foveate/kernels/cpu/offset_kernels.h"
#include "foveate/kernels/cpu/peak_kernels.h"
// clang-format on

template <class... Pairs>  // the unit of two bf16, where the level has one
constexpr Table make_table(const char* name) {
  Table table{};
  table.name = name;
  table.pack_rows = pack_rows;
  table.pack_by_key = pack_by_key;
  table.pack_by_dim = pack_by_dim;
  table.forward[0] = forward<Floats>;
  table.backward[0] = backward<Floats>;
  table.sums[0] = sums<Floats>;
  table.peak_products[0] = peak_products<Floats>;
  table.index_scores[0] = index_scores<Floats>;
  table.lane_forward[0] = lane_forward<Floats>;
  table.lane_backward[0] = lane_backward<Floats>;
  ((table.lane_forward[1] = lane_forward<Pairs>, table.lane_backward[1] = lane_backward<Pairs>), ...);
  ((table.forward[1] = forward<Pairs>, table.backward[1] = backward<Pairs>, table.sums[1] = sums<Pairs>,
    table.peak_products[1] = peak_products<Pairs>, table.index_scores[1] = index_scores<Pairs>),
   ...);
  table.packed_inputs = packed_inputs<Floats>;
  table.packed_multiply = packed_multiply<Floats>;
  ((table.packed_inputs = packed_inputs<Pairs>, table.packed_multiply = packed_multiply<Pairs>), ...);
  table.packed_values = packed_values;
  table.finish = finish;
  table.row_dots = row_dots;
  table.quantise_row = quantise_row;
  table.take_in = take_in;
  table.rotate_heads = rotate_heads;
  table.gate_row = gate_row;
  table.scale_row = scale_row;
  table.add_scaled = add_scaled;
  table.add_row = add_row;
  table.read = read;
  table.weigh_rows = weigh_rows;
  table.dot_rows = dot_rows;
  return table;
}
