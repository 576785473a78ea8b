#include "foveate/attention/sparse/boundary_training.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/sums/sums.h"

namespace foveate::attention {

using at::Tensor;

Tensor boundary_ratios(const Inputs& in, const Tensor& lse, int64_t w) {
  const at::NoGradGuard no_grad;
  const int64_t length = in.k.size(2);
  require(in.q.size(2) == length, "dhsa: labels need a row for each of the {} keys, got {}", length, in.q.size(2));
  const ops::Score& score = in.score;
  require(!score.bias && !score.slopes && !score.relative && !score.leaky && !score.landmarks && !score.sink &&
              score.dropout == 0,
          "dhsa: labels know scale and soft cap alone, got other score terms; leave them out");
  require(in.rule.window_right == 0 && in.rule.sinks == 0 && !cuts_texts(in.rule) && !in.rule.head_window &&
              !in.rule.query_order,
          "dhsa: labels know causal texts and a layer's window alone, got another rule; label whole texts");
  // Weights of keys 0 .. 2w - 1 back, one by one, near [B, 2w, L]; of those further back summed over rows, far [B, L].
  const Tensor place = at::arange(length, at::kLong), back = at::arange(2 * w, at::kLong);
  const Tensor index = (place.unsqueeze(1) - back).view({1, 1, length, 2 * w});
  const double scale = in.score.scale_of(in.q.size(3));
  Tensor s = ops::pair_scores(in.q, ops::widened(in.k, in.q.scalar_type()), index, scale);
  s = in.score.capped(s).masked_fill(index.lt(0), -INFINITY);
  if (in.rule.window_left) s = s.masked_fill(back.gt(*in.rule.window_left), -INFINITY);
  const Tensor by_row = (s.to(at::kDouble) - lse.unsqueeze(3)).exp().mean(1);  // [B, L rows, 2w back]
  Rule rule = in.rule;
  rule.row_end = (place - (2 * w - 1)).clamp_min(0).view({1, 1, length});
  const Tensor far =
      ops::attention_sums(in.q, in.k, lse, rule, in.score, {.by = ops::SumBy::key}).to(at::kDouble).mean(1);
  // later[d][j]: all weight of key j in rows j + d and later
  const auto later = [&](int64_t d) {
    Tensor sum = far.clone();
    for (int64_t e = d; e < std::min(2 * w, length); ++e)
      sum.narrow(1, 0, length - e).add_(by_row.select(2, e).narrow(1, e, length - e));
    return sum;
  };
  Tensor ratios = at::ones_like(far);
  const int64_t gaps = length - 2 * w + 1;  // p = w - 1 .. length - w - 1
  if (gaps <= 0) return ratios;
  Tensor past = at::zeros_like(ratios.narrow(1, 0, gaps)), future = at::zeros_like(past);
  for (int64_t i = 0; i < 2 * w; ++i)  // key p - w + 1 + i is seen by rows > p + w, which are 2w - i behind it and more
    (i < w ? past : future).add_(later(2 * w - i).narrow(1, i, gaps));
  ratios.narrow(1, w - 1, gaps).copy_((at::maximum(past, future) + 1e-6) / (at::minimum(past, future) + 1e-6));
  return ratios;
}

Tensor boundary_valid(int64_t length, int64_t w) {
  const Tensor gap = at::arange(length, at::kLong);
  return gap.ge(2 * w - 1).logical_and(gap.lt(length - 2 * w));
}

Tensor boundary_loss(const Tensor& logits, const Tensor& targets, const Tensor& valid) {
  constexpr double kWeight = 1.3;  // of boundaries, which are few
  const Tensor y = targets.to(logits.scalar_type()), counts = valid.expand_as(targets).to(logits.scalar_type());
  require(counts.sum().item<double>() > 0, "dhsa: a loss needs gaps that count, got none");
  const Tensor entropy = at::binary_cross_entropy_with_logits(logits, y, {}, {}, /*reduction=*/0);
  const Tensor p = logits.sigmoid(), wrong = at::where(targets, 1 - p, p);
  const Tensor each = entropy * wrong.square() * (1 + (kWeight - 1) * y);
  return (each * counts).sum() / counts.sum();
}

}  // namespace foveate::attention
