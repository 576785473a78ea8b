#include "tests/support/oracle_attention.h"

#include <algorithm>

namespace foveate::test {
namespace {

// Columns of the relative logits that a pair takes, one for each axis.
std::vector<int64_t> columns(const OracleScore& score, int64_t i, int64_t j) {
  std::vector<int64_t> taken;
  int64_t first = 0;
  for (const OracleAxis& axis : score.axes) {
    const int64_t offset = axis.key[size_t(j)] - axis.query[size_t(i)];
    taken.push_back(first + std::min(std::max<int64_t>(offset, 0), axis.size - 1));
    first += axis.size;
  }
  return taken;
}

int64_t head_of(const std::vector<int64_t>& map, int64_t h, const Array& q, const Array& of) {
  return map.empty() ? h / (q.shape[1] / of.shape[1]) : map[size_t(h)];
}

double distance(const OracleScore& score, int64_t i, int64_t j) { return double(std::abs(score.query_start + i - j)); }

// One row's logits; -inf where invisible.  slope: d logit / d (q.k); added: d logit / d (what is added to it).
void row_logits(const Array& q, const Array& k, const Visible& visible, OracleScore& score, int64_t b, int64_t h,
                int64_t i, std::vector<double>& logit, std::vector<double>& slope, std::vector<double>& added) {
  const int64_t key_head = head_of(score.key_heads, h, q, k);
  for (int64_t j = 0; j < k.shape[2]; ++j) {
    logit[size_t(j)] = -INFINITY;
    slope[size_t(j)] = 0, added[size_t(j)] = 1;
    if (!visible(b, h, i, j)) continue;
    double s = 0;
    for (int64_t d = 0; d < q.shape[3]; ++d) s += q.at(b, h, i, d) * k.at(b, key_head, j, d);
    s *= score.scale;
    slope[size_t(j)] = score.scale;
    if (score.soft_cap) {
      const double t = std::tanh(s / *score.soft_cap);
      s = *score.soft_cap * t;
      slope[size_t(j)] *= 1 - t * t;
    }
    if (score.bias) s += score.bias->broadcast(b, h, i, j);
    for (const int64_t column : columns(score, i, j)) s += score.relative->broadcast(b, h, i, column);
    if (score.slopes) s -= (*score.slopes)[size_t(h)] * distance(score, i, j);
    if (s <= 0) s *= score.leaky, slope[size_t(j)] *= score.leaky, added[size_t(j)] = score.leaky;
    logit[size_t(j)] = s;
  }
}

double log_sum(const std::vector<double>& logit, const Visible& visible, const OracleScore& score, int64_t b, int64_t h,
               int64_t i) {
  double top = score.sink ? (*score.sink)[size_t(h)] : -INFINITY;
  for (const double s : logit) top = std::max(top, s);
  if (top == -INFINITY) return top;
  double sum = score.sink ? std::exp((*score.sink)[size_t(h)] - top) : 0;
  for (size_t j = 0; j < logit.size(); ++j)
    if (logit[j] != -INFINITY) sum += visible(b, h, i, int64_t(j)) * std::exp(logit[j] - top);
  return top + std::log(sum);
}

}  // namespace

OracleResult oracle_attention(const Array& q, const Array& k, const Array& v, const Visible& visible,
                              OracleScore score) {
  const int64_t keys = k.shape[2];
  OracleResult result{Array(q.shape[0], q.shape[1], q.shape[2], v.shape[3]),
                      Array(q.shape[0], q.shape[1], q.shape[2], 1)};
  std::vector<double> logit(size_t(keys), 0.0), slope(logit), added(logit);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t value_head = head_of(score.value_heads, h, q, v);
        row_logits(q, k, visible, score, b, h, i, logit, slope, added);
        const double lse = log_sum(logit, visible, score, b, h, i);
        result.lse.at(b, h, i, 0) = lse;
        for (int64_t j = 0; j < keys; ++j) {
          if (logit[size_t(j)] == -INFINITY) continue;
          const double kept = score.keep ? score.keep(b, h, i, j) : 1;
          const double weight = kept * visible(b, h, i, j) * std::exp(logit[size_t(j)] - lse);
          for (int64_t d = 0; d < v.shape[3]; ++d) result.out.at(b, h, i, d) += weight * v.at(b, value_head, j, d);
        }
      }
  return result;
}

OracleGradients oracle_backward(const Array& q, const Array& k, const Array& v, const Visible& visible,
                                OracleScore score, const Array& d_out, const Array& d_lse) {
  const int64_t keys = k.shape[2];
  const OracleResult forward = oracle_attention(q, k, v, visible, score);
  OracleGradients g;
  g.q = Array(q.shape[0], q.shape[1], q.shape[2], q.shape[3]);
  g.k = Array(k.shape[0], k.shape[1], k.shape[2], k.shape[3]);
  g.v = Array(v.shape[0], v.shape[1], v.shape[2], v.shape[3]);
  if (score.bias)
    g.bias = Array(score.bias->shape[0], score.bias->shape[1], score.bias->shape[2], score.bias->shape[3]);
  if (score.relative)
    g.relative =
        Array(score.relative->shape[0], score.relative->shape[1], score.relative->shape[2], score.relative->shape[3]);
  if (score.slopes) g.slopes.assign(size_t(q.shape[1]), 0);
  if (score.sink) g.sink.assign(size_t(q.shape[1]), 0);
  std::vector<double> logit(size_t(keys), 0.0), slope(logit), added(logit);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t key_head = head_of(score.key_heads, h, q, k), value_head = head_of(score.value_heads, h, q, v);
        row_logits(q, k, visible, score, b, h, i, logit, slope, added);
        const double lse = forward.lse.at(b, h, i, 0);
        double mean = 0;  // d_out . out
        for (int64_t d = 0; d < v.shape[3]; ++d) mean += d_out.at(b, h, i, d) * forward.out.at(b, h, i, d);
        const double along_lse = d_lse.at(b, h, i, 0);
        if (score.sink) g.sink[size_t(h)] += std::exp((*score.sink)[size_t(h)] - lse) * (along_lse - mean);
        for (int64_t j = 0; j < keys; ++j) {
          if (logit[size_t(j)] == -INFINITY) continue;
          const double kept = score.keep ? score.keep(b, h, i, j) : 1;
          const double weight = visible(b, h, i, j) * std::exp(logit[size_t(j)] - lse);
          double along = 0;
          for (int64_t d = 0; d < v.shape[3]; ++d) {
            along += d_out.at(b, h, i, d) * v.at(b, value_head, j, d);
            g.v.at(b, value_head, j, d) += kept * weight * d_out.at(b, h, i, d);
          }
          const double d_logit = weight * (kept * along - mean + along_lse), d_added = d_logit * added[size_t(j)];
          if (score.bias) g.bias.broadcast(b, h, i, j) += d_added;
          for (const int64_t column : columns(score, i, j)) g.relative.broadcast(b, h, i, column) += d_added;
          if (score.slopes) g.slopes[size_t(h)] -= d_added * distance(score, i, j);
          for (int64_t d = 0; d < q.shape[3]; ++d) {
            g.q.at(b, h, i, d) += d_logit * slope[size_t(j)] * k.at(b, key_head, j, d);
            g.k.at(b, key_head, j, d) += d_logit * slope[size_t(j)] * q.at(b, h, i, d);
          }
        }
      }
  return g;
}

}  // namespace foveate::test
