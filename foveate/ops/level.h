// Which kernels run, and what this machine cannot run.
#pragma once

#include <string_view>

#include "foveate/kernels/level.h"

namespace foveate::ops {

// The level in use: the fastest this machine has, or the one FOVEATE_BACKEND names (definition is plain ATen, without
// kernels).  Throws Error: a level that does not exist or that this machine lacks.
std::string_view kernel_level();

// Its kernels; null for "definition".
const kernels::Table* kernel_table();

// Some virtual machines announce AMX and then fault on it inside oneDNN's bf16 products.  Tries one such product in a
// child process and, where that dies, keeps oneDNN to AVX-512 for this process (ONEDNN_MAX_CPU_ISA, unless it is set).
// To be called at the start of a program, before torch's first product and before threads exist.  Returns whether it
// had to.
bool avoid_faulty_products();

}  // namespace foveate::ops
