// Packed tensor types of GGUF files to fp32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "foveate/base/quantised.h"
#include "foveate/io/gguf.h"

namespace foveate::io {

// Elements that share one block, and its bytes; 0 for a type that is not supported.
int64_t block_elements(GgmlType type);
int64_t block_bytes(GgmlType type);

float half_to_float(uint16_t half);  // exact

// The same bits as ggml's own conversion.  `bytes` are the blocks of all of `out`.  Throws Error if they do not fit, or
// where the type is not supported.
void dequantize(GgmlType type, std::span<const std::byte> bytes, std::span<float> out);

// How elements of a quantised type are made of integers; unset for f32, f16 and bf16.
std::optional<QuantFormat> quant_format(GgmlType type);

// A row in its parts: as dequantize gives it, bit by bit, if scale * code + minimum is rounded once.  `bytes` are the
// blocks of the row's elements and `row` is one of the type's format.  Throws Error as dequantize does.
void take_apart(GgmlType type, std::span<const std::byte> bytes, QuantRow& row);

}  // namespace foveate::io
