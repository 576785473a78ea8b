// HyperAttention's specification as plain loops: how much each key counts for each query, pair by pair.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "foveate/attention/sparse/hyper.h"
#include "foveate/base/random.h"
#include "tests/support/compare.h"

namespace foveate::attention {

using at::Tensor;
using test::random_tensor;
using Residual = Hyper::Residual;

// The place of a bin: exact, by writing the reflected code out; reference, as released.
inline int64_t place_of(int64_t bin, int64_t bits, Hyper::Gray gray) {
  if (gray == Hyper::Gray::reference) return bin ^ (bin >> 1);
  std::vector<int64_t> codes = {0};
  for (int64_t bit = 0; bit < bits; ++bit)
    for (int64_t i = std::ssize(codes) - 1; i >= 0; --i) codes.push_back(codes[size_t(i)] + (int64_t{1} << bit));
  return std::find(codes.begin(), codes.end(), bin) - codes.begin();
}

// weights [Lq, Lk] of one head of one sample: a logit counts weight * exp(logit).
struct HeadOracle {
  const Hyper& o;
  Tensor q, k, v, projections;  // [L, D] fp64, [D, r]
  std::vector<Tensor> samples;  // of each group [rectangles, m]
  Tensor weights;
  std::vector<int64_t> used = std::vector<int64_t>(16);  // rectangles of each group so far

  double& weight(int64_t i, int64_t j) { return weights.mutable_data_ptr<double>()[i * k.size(0) + j]; }

  std::vector<int64_t> sorted(const Tensor& x, int64_t first, int64_t count) const {
    std::vector<std::pair<int64_t, int64_t>> order;
    for (int64_t row = first; row < first + count; ++row) {
      int64_t bin = 0;
      for (int64_t c = 0; c < projections.size(1); ++c) {
        double sum = 0;
        for (int64_t d = 0; d < x.size(1); ++d) sum += x[row][d].item<double>() * projections[d][c].item<double>();
        if (sum > 0) bin += int64_t{1} << c;
      }
      order.emplace_back(place_of(bin, projections.size(1), o.gray), row);
    }
    std::sort(order.begin(), order.end());
    std::vector<int64_t> rows;
    for (const auto& [place, row] : order) rows.push_back(row);
    return rows;
  }

  void rectangle(int64_t first_query, int64_t queries, int64_t first_key, int64_t keys, int64_t query_block,
                 size_t group) {
    const auto by_query = sorted(q, first_query, queries), by_key = sorted(k, first_key, keys);
    const int64_t number = used[group]++;
    const bool has_blocks = o.block_size > 0;
    for (int64_t a = 0; a < queries && has_blocks; ++a)
      for (int64_t c = 0; c < keys; ++c)
        if (a / query_block == c / o.block_size) weight(by_query[size_t(a)], by_key[size_t(c)]) += 1;
    if (o.sample_size == 0 || (has_blocks && keys <= o.block_size)) return;
    const int64_t m = samples[group].size(1);
    if (o.residual == Residual::capped) return capped(by_query, by_key, query_block, samples[group][number]);
    double norms = 0;
    for (int64_t c = 0; c < keys; ++c) norms += v[by_key[size_t(c)]].square().sum().item<double>();
    for (int64_t a = 0; a < queries; ++a)
      for (int64_t l = 0; l < m; ++l) {
        const int64_t u = samples[group][number][l].item<int64_t>();
        if (has_blocks && o.same_block_mask && a / query_block == u / o.block_size) continue;
        const double norm = v[by_key[size_t(u)]].square().sum().item<double>();
        weight(by_query[size_t(a)], by_key[size_t(u)]) +=
            o.residual == Residual::vnorm ? norms / (double(m) * norm) : double(keys) / double(m);
      }
  }

  // ApproxD (algorithm 2) with all rows asked for their outside sums; a drawn key counts what is left of it.
  void capped(const std::vector<int64_t>& by_query, const std::vector<int64_t>& by_key, int64_t query_block,
              const Tensor& places) {
    const size_t rows = by_query.size();
    const double n = double(by_key.size()), m = double(places.size(0));
    const auto exp_of = [&](size_t a, size_t c) {
      return std::exp((q[by_query[a]] * k[by_key[c]]).sum().item<double>() / std::sqrt(double(q.size(1))));
    };
    const auto is_own = [&](size_t a, size_t c) { return int64_t(a) / query_block == int64_t(c) / o.block_size; };
    std::vector<double> inside(rows), outside(rows);
    for (size_t a = 0; a < rows; ++a)
      for (size_t c = 0; c < by_key.size(); ++c) (is_own(a, c) ? inside : outside)[a] += exp_of(a, c);
    const double tau = *std::max_element(outside.begin(), outside.end());
    const double floor = o.kappa > 0 ? tau / o.kappa : *std::min_element(outside.begin(), outside.end());
    for (size_t a = 0; a < rows; ++a) {
      const double cap = o.epsilon * o.epsilon * m / (n * std::log(n)) * (inside[a] + floor);
      double sum = 0;
      std::vector<std::pair<size_t, double>> counts;
      for (int64_t l = 0; l < places.size(0); ++l) {
        const auto u = size_t(places[l].item<int64_t>());
        if (is_own(a, u)) continue;
        counts.emplace_back(u, n / m * std::min(1.0, cap / exp_of(a, u)));
        sum += counts.back().second * exp_of(a, u);
      }
      for (const auto& [u, count] : counts) weight(by_query[a], by_key[u]) += count * std::max(1.0, floor / sum);
    }
  }

  void causal(int64_t first, int64_t length, int64_t start, size_t depth) {
    const int64_t half = length / 2 + length % 2;
    if (length <= o.min_seq_len || half < o.min_seq_len) {
      for (int64_t i = first; i < first + length; ++i)
        for (int64_t j = first; j <= i; ++j) weight(i, start + j) += 1;
      return;
    }
    rectangle(first + half, length - half, start + first, half, o.block_size, depth);
    causal(first, half, start, depth + 1);
    causal(first + half, length - half, start, depth + 1);
  }

  void run(bool is_causal) {
    const int64_t queries = q.size(0), keys = k.size(0), start = keys - queries;
    weights = at::zeros({queries, keys}, at::kDouble);
    if (!is_causal) {
      const int64_t blocks = (keys + o.block_size - 1) / o.block_size;
      const int64_t padded = (queries + o.block_size - 1) / o.block_size * o.block_size;
      return rectangle(0, queries, 0, keys, queries == keys ? o.block_size : (padded + blocks - 1) / blocks, 0);
    }
    if (start > 0) {
      const int64_t blocks = (start + o.block_size - 1) / o.block_size;
      const int64_t padded = (queries + o.block_size - 1) / o.block_size * o.block_size;
      rectangle(0, queries, 0, start, (padded + blocks - 1) / blocks, 0);
    }
    causal(0, queries, start, start > 0 ? 1 : 0);
  }
};

struct Problem {
  Inputs in;
  HyperDraws draws;
};

// `groups`: rectangles and keys of the smallest of them, for each group.
inline Problem make_problem(const Hyper& o, int64_t queries, int64_t keys, const Rule& rule,
                            const std::vector<std::pair<int64_t, int64_t>>& groups, int64_t samples = 5) {
  Problem p;
  p.in.q = random_tensor({2, 4, queries, 6}, 1, at::kDouble);
  p.in.k = random_tensor({2, 2, keys, 6}, 2, at::kDouble);
  p.in.v = random_tensor({2, 2, keys, 3}, 3, at::kDouble);
  p.in.rule = rule;
  p.draws.projections = random_tensor({6, o.lsh_num_projs}, 4, at::kDouble);
  Random random(5);
  for (const auto& [rectangles, fewest] : groups) {
    const Tensor places = at::zeros({2, 2, rectangles, samples}, at::kLong);
    for (int64_t i = 0; i < places.numel(); ++i)
      places.mutable_data_ptr<int64_t>()[i] = int64_t(random.below(uint64_t(fewest)));
    p.draws.samples.push_back(places);
  }
  return p;
}

// log of the weights of all heads, [B, Hq, Lq, Lk].
inline Tensor oracle_log_weights(const Hyper& o, const Problem& p) {
  const Inputs& in = p.in;
  const Tensor all = at::zeros({in.q.size(0), in.q.size(1), in.q.size(2), in.k.size(2)}, at::kDouble);
  const int64_t group = in.q.size(1) / in.k.size(1);
  for (int64_t b = 0; b < in.q.size(0); ++b)
    for (int64_t h = 0; h < in.q.size(1); ++h) {
      const auto of = [&](const Tensor& t, int64_t head) { return t.detach()[b][head].to(at::kDouble); };
      HeadOracle head{o, of(in.q, h), of(in.k, h / group), of(in.v, h / group), p.draws.projections, {}, {}};
      for (const Tensor& places : p.draws.samples) head.samples.push_back(places[b][h / group]);
      head.run(in.rule.window_right.has_value());
      all[b][h].copy_(head.weights);
    }
  return all.log();
}

// The softmax over weighted logits, dense and in fp64: {out, lse}, differentiable.
inline ops::Attended weighted_attention(const Inputs& in, const Tensor& log_weights) {
  const int64_t group = in.q.size(1) / in.k.size(1);
  const Tensor k = in.k.to(at::kDouble).repeat_interleave(group, 1),
               v = in.v.to(at::kDouble).repeat_interleave(group, 1);
  const Tensor logits =
      at::matmul(in.q.to(at::kDouble), k.transpose(2, 3)) / std::sqrt(double(in.q.size(3))) + log_weights;
  return {at::matmul(logits.softmax(-1), v), logits.logsumexp(-1)};
}

}  // namespace foveate::attention
