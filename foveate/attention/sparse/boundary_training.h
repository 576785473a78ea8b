// What DHSA's boundary predictor learns from: where dense attention changes from one token to the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

// For the gap behind each token p: with the attention that later rows (i > p + half_window) pay to the half_window keys
// before the gap and to those after it, mean over heads, the larger over the smaller, each + 1e-6.  lse [B, Hq, L] of
// dense attention over in.k, whose rows are all keys' (Lq = Lk).  Returns [B, L] fp64; gaps with less than half_window
// keys on a side: 1.  No L x L memory.  Throws Error: fewer rows than keys, score terms but scale and soft cap, a rule
// other than causality and a window.
at::Tensor boundary_ratios(const Inputs& in, const at::Tensor& lse, int64_t half_window);

// Which gaps count: all but the first 2 w - 1 and the last 2 w, [L] bool.
at::Tensor boundary_valid(int64_t length, int64_t half_window);

// Focal cross-entropy (Lin et al., 1708.02002) of logits [..] against targets [..] bool, with gamma = 2 and weight 1.3
// of boundaries: the mean over `valid` [..] bool.  Throws Error: nothing valid.
at::Tensor boundary_loss(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& valid);

}  // namespace foveate::attention
