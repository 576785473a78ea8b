// A problem as the kernels want it.
#pragma once

#include <vector>

#include "foveate/kernels/attend.h"
#include "foveate/ops/attend/definition.h"

namespace foveate::ops {

kernels::DType dtype_of(const at::Tensor& t);
// Unit last stride: anything else is copied.
at::Tensor readable(const at::Tensor& t);
kernels::View view_of(const at::Tensor& t);
// Unfilled [B, H, N, dim] with heads before or behind rows in memory, as `like` [B, H, N, ..] has them.
at::Tensor empty_rows(const at::Tensor& like, const c10::SymInt& dim);
at::Tensor empty_rows(const at::Tensor& like, const c10::SymInt& dim, at::ScalarType type);

// The length of the blocks that landmarks close where the kernels can take them, else 0: every 16, 32 or 64 keys, and
// no plan that gathers keys.
int64_t landmark_block(const Problem& p);

// Keeps alive what it points to.
struct Prepared {
  kernels::Arguments arguments;
  std::vector<at::Tensor> held;

  explicit Prepared(const Problem& p);

 private:
  const at::Tensor& keep(at::Tensor t);
  const float* floats(const at::Tensor& t);
  void set_rule(const Rule& rule);
  void add_list(const at::Tensor& index, const at::Tensor* count, const at::Tensor* end, bool checks_rule);
  void set_score(const Score& score);
  void set_relative(const Relative& relative);
};

}  // namespace foveate::ops
