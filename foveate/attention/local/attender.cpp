#include "foveate/attention/local/attender.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>

#include <cstdlib>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/ops/offsets/weigh_offsets.h"

namespace foveate::attention {

std::vector<Offset> attender_offsets(int64_t count) {
  const auto belongs = [&](int64_t row, int64_t column) {
    const int64_t down = std::abs(row), across = std::abs(column);
    if (count == 5) return down + across <= 1;
    if (count == 9) return down <= 1 && across <= 1;
    if (count == 13) return down + across <= 2;
    if (count == 17) return (down <= 1 && across <= 1) || (down % 2 == 0 && across % 2 == 0);
    return true;
  };
  require(count == 5 || count == 9 || count == 13 || count == 17 || count == 25,
          "local attender: the number of offsets must be 5, 9, 13, 17 or 25, got {}", count);
  std::vector<Offset> offsets;
  for (int64_t row = -2; row <= 2; ++row)
    for (int64_t column = -2; column <= 2; ++column)
      if (belongs(row, column)) offsets.push_back({row, column});
  return offsets;
}

at::Tensor local_attender(const at::Tensor& logits, const at::Tensor& value, std::span<const Offset> offsets,
                          AttenderWeights weights) {
  std::vector<int64_t> rows, columns;
  for (const Offset& offset : offsets) rows.push_back(offset.row), columns.push_back(offset.column);
  if (weights == AttenderWeights::softmax) return ops::weigh_offsets(value, logits, rows, columns);
  const at::Tensor none = at::full_like(logits, -std::numeric_limits<double>::infinity());
  return ops::weigh_offsets(value, none.scatter(1, logits.argmax(1, true), 0), rows, columns);
}

}  // namespace foveate::attention
