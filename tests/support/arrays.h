// Between the oracles' arrays and tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "tests/support/oracle_attention.h"

namespace foveate::test {

inline Array to_array(const at::Tensor& t) {
  const at::Tensor four = t.dim() == 3 ? t.unsqueeze(3) : t;
  Array array(four.size(0), four.size(1), four.size(2), four.size(3));
  const at::Tensor flat = four.detach().to(at::kDouble).contiguous();
  std::copy_n(flat.const_data_ptr<double>(), flat.numel(), array.data.begin());
  return array;
}

inline at::Tensor to_tensor(const Array& array) {
  const at::Tensor t = at::empty({array.shape[0], array.shape[1], array.shape[2], array.shape[3]}, at::kDouble);
  std::copy(array.data.begin(), array.data.end(), t.mutable_data_ptr<double>());
  return t;
}

}  // namespace foveate::test
