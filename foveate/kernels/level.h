// Levels of instructions that this machine can run.
#pragma once

#include <span>
#include <string_view>

#include "foveate/kernels/tile.h"

namespace foveate::kernels {

// The machine's levels, slowest first; never empty: "portable" runs anywhere.
std::span<const Table* const> levels();

// Whether bf16 inputs are multiplied as bf16 at this level (else as fp32).
inline bool has_pairs(const Table& table) { return table.forward[1] != nullptr; }

}  // namespace foveate::kernels
