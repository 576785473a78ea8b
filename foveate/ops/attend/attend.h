// Attention over the keys that a plan names: the one operator every softmax mechanism is made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "foveate/plan/plan.h"

namespace foveate::ops {

// How a logit is made:  s = scale * q.k;  s = soft_cap * tanh(s / soft_cap);  s += bias.
struct Score {
  std::optional<double> scale;     // unset: 1 / sqrt(D)
  std::optional<double> soft_cap;  // > 0 (Gemma 2); unset: none
  std::optional<at::Tensor> bias;  // floating point [B|1, Hq|1, Lq|1, Lk|1], added to the logit; has a gradient
  std::optional<at::Tensor> sink;  // floating point [Hq]: a logit that joins the denominator alone; has a gradient
};

struct Attended {
  at::Tensor out;  // [B, Hq, Lq, Dv], dtype of q
  at::Tensor lse;  // [B, Hq, Lq] natural log of the softmax's denominator, sink included; fp32 (fp64 for fp64 inputs)
};

// out = softmax(s over the keys the plan shows) v, in blocks: no L x L matrix, forward or backward.
// q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], one dtype of fp32, bf16, fp16, fp64, any strides; Hq must be
// a multiple of Hkv: query head h reads key head h / (Hq / Hkv).  Softmax and sums run in fp32 (fp64 for fp64). A row
// that sees no key: out 0, lse -inf (with a sink: its logit), gradients 0.  An invisible key or value, even NaN or Inf,
// changes nothing.  Gradients: q, k, v, bias, sink, from out and from lse. Throws Error: shapes, dtypes or a plan that
// do not fit.   Source: Dao et al., FlashAttention-2, 2307.08691, section 3.
Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Plan& plan,
                const Score& score = {});

}  // namespace foveate::ops
