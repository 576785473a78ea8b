#include "foveate/attention/sparse/boundaries.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

using at::Tensor;
constexpr int64_t kHidden = 256;  // of the MLP

// Projections of the keys [n, 3 C] around each of n - 2w + 1 gaps -> what an MLP says of them, [n - 2w + 1].
Tensor gap_logits(const Tensor& projected, const Learned& parts, const BoundaryOptions& o) {
  const auto type = projected.scalar_type();
  const auto as = [&](const char* name) { return parts.at(name).to(type); };
  const int64_t w = o.half_window, width = projected.size(1) / 3, dim = width / o.heads;
  // [gaps, 2w, 3, heads, dim] -> three of [gaps, heads, 2w, dim]
  const Tensor windows = projected.unfold(0, 2 * w, 1).transpose(1, 2).unflatten(2, {3, o.heads, dim});
  const auto heads = [&](int64_t which) { return windows.select(2, which).transpose(1, 2); };
  const Tensor scores = at::matmul(heads(0), heads(1).transpose(2, 3)) / std::sqrt(double(dim));
  const Tensor mixed = at::matmul(at::softmax(scores, -1), heads(2)).transpose(1, 2).flatten(2);  // [gaps, 2w, C]
  const Tensor x =
      at::layer_norm(at::linear(mixed, as("mha_out"), as("mha_out_bias")), {width}, as("norm"), as("norm_bias"), 1e-5);
  const Tensor left = x.narrow(1, 0, w).mean(1), right = x.narrow(1, w, w).mean(1);
  const Tensor cosine = at::cosine_similarity(left, right, 1, 1e-6).unsqueeze(1);
  const Tensor features = at::cat({left, right, (left - right).abs(), left * right, cosine}, 1);
  const Tensor inner = at::relu(at::linear(features, as("mlp_in"), as("mlp_in_bias")));
  return at::linear(inner, as("mlp_out"), as("mlp_out_bias")).squeeze(1);
}

}  // namespace

std::vector<LearnedPart> boundary_parts(int64_t width, const BoundaryOptions& o) {
  require(width % o.heads == 0, "dhsa: boundary_heads must divide the {} numbers of a token's keys, got {}", width,
          o.heads);
  const auto uniform = [](double scale) { return Init{.kind = Init::Kind::uniform, .scale = scale}; };
  const auto linear = [&](int64_t inputs) { return uniform(1 / std::sqrt(double(inputs))); };  // as torch's begin
  const double xavier = std::sqrt(6.0 / double(4 * width));
  return {{"mha_in", {3 * width, width}, uniform(xavier)},
          {"mha_in_bias", {3 * width}},
          {"mha_out", {width, width}, linear(width)},
          {"mha_out_bias", {width}},
          {"norm", {width}, {.kind = Init::Kind::ones}},
          {"norm_bias", {width}},
          {"mlp_in", {kHidden, 4 * width + 1}, linear(4 * width + 1)},
          {"mlp_in_bias", {kHidden}, linear(4 * width + 1)},
          {"mlp_out", {1, kHidden}, linear(kHidden)},
          {"mlp_out_bias", {1}, linear(kHidden)}};
}

Tensor boundary_logits(const Tensor& k, const Learned& parts, const BoundaryOptions& o) {
  const Tensor wide = ops::widened(k, at::kFloat);
  const auto type = wide.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor tokens = wide.to(type).transpose(1, 2).flatten(2);  // [B, L, C]
  const int64_t length = tokens.size(1), w = o.half_window;
  check_learned(parts, boundary_parts(tokens.size(2), o), "dhsa");
  if (length == 0) return tokens.sum(2);
  // A key's projections are the same for all gaps around it; zeros beside the text have them too.
  const Tensor padded = at::constant_pad_nd(tokens, {0, 0, w - 1, w});
  const Tensor projected = at::linear(padded, parts.at("mha_in").to(type), parts.at("mha_in_bias").to(type));
  constexpr int64_t kGaps = 1024;  // at a time: each holds 2 w keys
  std::vector<Tensor> rows;
  for (int64_t b = 0; b < tokens.size(0); ++b) {
    std::vector<Tensor> logits;
    for (int64_t first = 0; first < length; first += kGaps) {
      const int64_t gaps = std::min(kGaps, length - first);
      logits.push_back(gap_logits(projected.select(0, b).narrow(0, first, gaps + 2 * w - 1), parts, o));
    }
    rows.push_back(at::cat(logits));
  }
  return at::stack(rows);
}

std::vector<int64_t> choose_cuts(const Tensor& logits, const ChunkLimits& o) {
  const Tensor values = logits.detach().to(at::kDouble).contiguous();
  const double* z = values.const_data_ptr<double>();
  const int64_t length = values.size(0);
  if (length == 0) return {0};
  const bool has_tail = o.instruction > 0 && o.instruction < length;
  const int64_t last = std::min(length - o.half_window, has_tail ? length - o.instruction - 1 : length);
  std::vector<int64_t> order, chosen;  // gaps, each by the token before it
  for (int64_t gap = o.half_window - 1; gap < last; ++gap)
    if (z[gap] > o.theta) order.push_back(gap);
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return z[a] > z[b]; });
  if (has_tail) chosen.push_back(length - o.instruction - 1);
  for (const int64_t gap : order) {
    if (std::ssize(chosen) >= o.most) break;
    const auto is_near = [&](int64_t other) { return std::abs(gap - other) <= o.nms_window; };
    if (std::ranges::none_of(chosen, is_near)) chosen.push_back(gap);
  }
  std::vector<int64_t> cuts{0};
  std::ranges::sort(chosen);
  for (const int64_t gap : chosen) cuts.push_back(gap + 1);
  cuts.push_back(length);
  return cuts;
}

}  // namespace foveate::attention
