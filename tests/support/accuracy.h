// Errors of attention against fp64, beside those of torch's own attention.
#pragma once

#include "tests/support/attend_problems.h"

namespace foveate::test {

struct AccuracyInputs {
  std::string name;
  at::Tensor q, k, v, d_out;  // fp64, [B, Hq, L, D] and [B, Hkv, L, D]
};

// Causal attention and its gradients in fp32, bf16 and fp16: errors at most twice those of torch's attention.
void expect_accuracy_of_torch(const AccuracyInputs& inputs);

}  // namespace foveate::test
