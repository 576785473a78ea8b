// Keys of an indexer as they are scored: packed once, grown by appending, and the pooled keys of their blocks.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string_view>
#include <vector>

#include "foveate/ops/quantise/float8.h"

namespace foveate::ops {

enum class IndexType { fp32, bf16, e4m3 };
constexpr auto enum_names(IndexType) { return std::array<std::string_view, 3>{"fp32", "bf16", "e4m3"}; }

struct IndexForm {
  IndexType type = IndexType::e4m3;
  Float8Options float8;  // where e4m3
};

// Panels of 64 keys in the units that the kernels multiply: bf16 pairs where the level has them, else floats.  e4m3 are
// held as bf16, which is exact, their scales apart.  Not differentiable.
class IndexKeys {
 public:
  IndexKeys(int64_t dim, const IndexForm& form);  // throws Error: dim < 1
  IndexKeys(IndexKeys&&) = default;
  IndexKeys& operator=(IndexKeys&&) = default;  // copies would share memory that append() changes

  void append(const at::Tensor& x);     // [n, dim] floating point, rounded or quantised here
  void append(const Float8Rows& rows);  // [n, dim]; throws Error unless the form is e4m3
  void truncate(int64_t length);

  int64_t length() const { return length_; }
  int64_t dim() const { return dim_; }
  const IndexForm& form() const { return form_; }
  int64_t bytes() const;
  int64_t key_bytes() const;                              // that a score reads
  at::Tensor values(int64_t first, int64_t count) const;  // [count, dim] fp32, scales multiplied
  Float8Rows rows(int64_t first, int64_t count) const;  // as they are held; fp32 instead of codes, scales perhaps none

  // For the kernels.
  at::Tensor units(
      const at::Tensor& x) const;  // [.., dim] floating point -> fp32 [.., steps]: pairs of bf16, or floats
  int64_t steps() const { return steps_; }
  bool has_pairs() const { return pairs_; }
  const float* column(int64_t i) const;  // keys [16 i, 16 i + 16)
  const float* scales() const;           // of all keys; null: 1

 private:
  void reserve(int64_t length);
  void put(const at::Tensor& units);

  int64_t dim_, steps_, length_ = 0;
  bool pairs_;
  IndexForm form_;
  at::Tensor panels_;  // [capacity / 64, steps, 64]
  at::Tensor scales_;  // [capacity] fp32, where e4m3
};

enum class IndexPooling { mean, max };
constexpr auto enum_names(IndexPooling) { return std::array<std::string_view, 2>{"mean", "max"}; }

// x [n, D] fp32 -> [1, D]: their mean or maximum, added up in order, so that the bits do not depend on how they came.
at::Tensor pool_rows(const at::Tensor& x, IndexPooling pooling);

// The keys of one sequence beside the pooled keys of its blocks [block i, block i + block).  A complete block is pooled
// once, the open one with every append; a pooled key is made of its block's own tokens, dequantised, and quantised with
// a scale of its own (HISA, 2603.28458).
class BlockedKeys {
 public:
  // Throws Error: dim < 1, block < 1.  Pooled keys are fp32 where keys are, else e4m3 or bf16.
  BlockedKeys(int64_t dim, const IndexForm& form, int64_t block, IndexPooling pooling = IndexPooling::mean,
              bool pooled_as_bf16 = false);

  template <class Rows>
  void append(const Rows& rows) {  // as IndexKeys
    const int64_t complete = keys_.length() / block_;
    keys_.append(rows);
    pool_from(complete);
  }
  void truncate(int64_t length);

  const IndexKeys& keys() const { return keys_; }
  const IndexKeys& pooled() const { return pooled_; }
  int64_t block() const { return block_; }
  int64_t bytes() const { return keys_.bytes() + pooled_.bytes(); }
  // Pooled keys of the tokens [first[i], end[i]), each inside one block: what a query sees of its own block.
  IndexKeys pooled_parts(const std::vector<int64_t>& first, const std::vector<int64_t>& end) const;

 private:
  void pool_from(int64_t block);

  IndexKeys keys_, pooled_;
  int64_t block_;
  IndexPooling pooling_;
};

}  // namespace foveate::ops
