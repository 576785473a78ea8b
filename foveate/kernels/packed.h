// Quantised weight matrices that stay packed: products with few rows, and tiles of rows as floats.
//
// 16 output rows stand side by side (the lanes of a vector), padded with zeros.  Such a row block is read from its
// first byte to its last, in pieces of 64 inputs, or of 256 where there are group scales.  A piece holds
//   scales   for each block: fp16 scale [16 rows], fp16 minimum [16], int8 group scale [block / group][16], int8 group
//            minimum [block / group][16]; what a format has not is left out; zeros up to a multiple of 64 bytes
//   codes    [inputs / 32][bits][16 rows] 32-bit words; the low halves hold even inputs, the high halves odd ones.  The
//            `bits` halves of a row hold 16 codes: as many as fit whole, from the low end on, and the rest in the bits
//            above them (put_codes in packed.cpp)
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "foveate/base/quantised.h"
#include "foveate/base/work_queue.h"
#include "foveate/kernels/tiling.h"

namespace foveate::kernels {

// Where matrices stand one behind the other, in large pages: small ones read a fifth faster than from the heap.  A
// matrix keeps the memory that it stands in.  Not to be used by two threads at a time.
class PackedMemory {
 public:
  std::shared_ptr<float> take(int64_t bytes);  // aligned to cache lines, not initialised

 private:
  std::shared_ptr<Floats64> chunk_;
  int64_t used_bytes_ = 0, chunk_bytes_ = 0;
};

class PackedMatrix {
 public:
  // Fills what QuantRow(format, in) holds for output row `row`; called from the pool's threads, must not throw.
  using RowReader = std::function<void(int64_t row, QuantRow& to)>;

  PackedMatrix() = default;
  // [out, in] with out >= 1 and in a positive multiple of 32 and of format.block, at most 2^26.  Throws Error where
  // sizes do not fit or the kernels do not know the format.  Of bits, group and block they know 4 or 5, 32, 32 or 256;
  // 8, 32, 32; and 2, 3 or 6, 16, 256.
  PackedMatrix(const QuantFormat& format, int64_t out, int64_t in, const RowReader& read, PackedMemory& memory,
               const Pool& pool);

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  const QuantFormat& format() const { return format_; }
  int64_t bytes() const;
  PackedView rows(int64_t first, int64_t count) const;  // for a level's kernels
  int64_t row_block_bytes() const { return block_bytes_; }

 private:
  void pack_block(int64_t block, std::vector<QuantRow>& rows, const RowReader& read) const;
  char* pack_piece(const std::vector<QuantRow>& rows, int64_t first, int64_t inputs, char* to) const;

  QuantFormat format_;
  int64_t out_ = 0, in_ = 0, block_bytes_ = 0;
  std::shared_ptr<float> data_;
};

struct PackedProduct {
  const PackedMatrix* weights = nullptr;
  float* y = nullptr;    // [rows, out]
  int64_t y_stride = 0;  // elements between rows
};

// y = x W^T for every product.  Throws Error unless all weights have the same `in`.  x [rows, in] fp32, rows `x_stride`
// elements apart. Levels that multiply bf16 round x to the sum of `terms` (1 or 2) bf16 numbers, about 8 or 16 bits;
// the others take x as it is.  Sums in fp32.  Up to 16 / terms rows read the weights once.  The bits do not depend on
// the number of threads, nor on which other rows and products there are.  A NaN or Inf in x makes what reads it NaN or
// Inf.
void multiply(const Table& table, const float* x, int64_t x_stride, int64_t rows,
              std::span<const PackedProduct> products, int terms, const Pool& pool);

// Rows [first, first + count) as f32, exact but for one rounding of scale * code + minimum, or as bf16 rounded from
// that; rows `stride` elements apart.
void dequantize_rows(const Table& table, const PackedMatrix& weights, int64_t first, int64_t count, DType type,
                     void* to, int64_t stride, const Pool& pool);

}  // namespace foveate::kernels
