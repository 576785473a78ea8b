// Neighborhood attention as plain loops in double, forward and backward, after the papers' definition (2504.16922).
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "tests/support/arrays.h"

namespace foveate::test {

struct GridAxis {
  int64_t length, kernel, stride = 1, dilation = 1;
  bool is_causal = false;
};

struct WindowKey {
  int64_t position, relative;  // along one axis; key - query in the dilation group, plus kernel - 1
};

inline std::vector<WindowKey> window_keys(const GridAxis& axis, int64_t x, bool clamps_last_group = true) {
  const int64_t d = axis.dilation, k = axis.kernel, s = axis.stride, group = x % d, p = x / d;
  int64_t size = 0;
  for (int64_t y = group; y < axis.length; y += d) ++size;
  int64_t start, end;
  if (axis.is_causal) {
    int64_t leader = s * (p / s) + s - 1;
    if (clamps_last_group && leader > size - 1) leader = size - 1;
    start = leader - k + 1 < 0 ? 0 : leader - k + 1;
    end = p + 1;
  } else {
    int64_t leader = s * (p / s) + s / 2;
    if (leader > size - 1) leader = size - 1;
    start = leader - k / 2;
    if (start > size - k) start = size - k;
    if (start < 0) start = 0;
    end = start + k;
  }
  std::vector<WindowKey> keys;
  for (int64_t y = start; y < end; ++y) keys.push_back({y * d + group, y - p + k - 1});
  return keys;
}

// The keys of a query, and their place in a bias table.
inline std::vector<WindowKey> grid_keys(const std::vector<GridAxis>& axes, int64_t query, bool clamps = true) {
  std::vector<int64_t> places(axes.size());
  for (size_t i = axes.size(); i-- > 0;) places[i] = query % axes[i].length, query /= axes[i].length;
  std::vector<WindowKey> keys = {{0, 0}};
  for (size_t i = 0; i < axes.size(); ++i) {
    std::vector<WindowKey> longer;
    for (const WindowKey& outer : keys)
      for (const WindowKey& own : window_keys(axes[i], places[i], clamps))
        longer.push_back(
            {outer.position * axes[i].length + own.position, outer.relative * (2 * axes[i].kernel - 1) + own.relative});
    keys = longer;
  }
  return keys;
}

struct GridProblem {
  std::vector<GridAxis> axes;
  Array q, k, v;  // [B, H, N, D]
  double scale = 1;
  std::optional<Array> bias;  // [1, 1, Hq, table]
  std::optional<Array> extra_keys, extra_values;
  bool clamps = true;
};

struct GridAnswer {
  Array out, lse;
  Array d_q, d_k, d_v;  // of sum(out * d_out) + sum(lse * d_lse)
  Array d_bias, d_extra_keys, d_extra_values;
};

inline const double* row_of(const Array& a, int64_t b, int64_t h, int64_t n) {
  return a.data.data() + ((b * a.shape[1] + h) * a.shape[2] + n) * a.shape[3];
}
inline Array zeros_like(const Array& a) { return {a.shape[0], a.shape[1], a.shape[2], a.shape[3]}; }

// One query of one head, its window and the extra keys: forward, then what it adds to the gradients.
class QueryAnswer {
 public:
  QueryAnswer(const GridProblem& p, int64_t b, int64_t h, int64_t i)
      : p_(p), b_(b), h_(h), i_(i), g_(h / (p.q.shape[1] / p.k.shape[1])), window_(grid_keys(p.axes, i, p.clamps)) {
    double sum = 0, top = -INFINITY;
    for (int64_t n = 0; n < keys(); ++n) {
      double s = 0;
      for (int64_t d = 0; d < p.q.shape[3]; ++d) s += p.q.at(b, h, i, d) * key(n)[d];
      s *= p.scale;
      if (p.bias && is_own(n)) s += p.bias->at(0, 0, h, window_[size_t(n)].relative);
      weights_.push_back(s), top = std::max(top, s);
    }
    for (double& x : weights_) x = std::exp(x - top), sum += x;
    for (double& x : weights_) x /= sum;
    lse_ = top + std::log(sum);
  }

  void put(GridAnswer& a) const {
    a.lse.at(b_, h_, i_, 0) = lse_;
    for (int64_t n = 0; n < keys(); ++n)
      for (int64_t d = 0; d < p_.v.shape[3]; ++d) a.out.at(b_, h_, i_, d) += weights_[size_t(n)] * value(n)[d];
  }

  void put_gradients(const Array& d_out, const Array& d_lse, GridAnswer& a) const {
    double delta = -d_lse.at(b_, h_, i_, 0);
    for (int64_t d = 0; d < p_.v.shape[3]; ++d) delta += a.out.at(b_, h_, i_, d) * d_out.at(b_, h_, i_, d);
    for (int64_t n = 0; n < keys(); ++n) {
      const int64_t at = is_own(n) ? window_[size_t(n)].position : n - own();
      double* d_k = &(is_own(n) ? a.d_k : a.d_extra_keys).at(b_, g_, at, 0);
      double* d_v = &(is_own(n) ? a.d_v : a.d_extra_values).at(b_, g_, at, 0);
      double dp = 0;
      for (int64_t d = 0; d < p_.v.shape[3]; ++d) {
        dp += d_out.at(b_, h_, i_, d) * value(n)[d];
        d_v[d] += weights_[size_t(n)] * d_out.at(b_, h_, i_, d);
      }
      const double ds = weights_[size_t(n)] * (dp - delta);
      if (p_.bias && is_own(n)) a.d_bias.at(0, 0, h_, window_[size_t(n)].relative) += ds;
      for (int64_t d = 0; d < p_.q.shape[3]; ++d) {
        a.d_q.at(b_, h_, i_, d) += p_.scale * ds * key(n)[d];
        d_k[d] += p_.scale * ds * p_.q.at(b_, h_, i_, d);
      }
    }
  }

 private:
  int64_t own() const { return std::ssize(window_); }
  bool is_own(int64_t n) const { return n < own(); }
  int64_t keys() const { return own() + (p_.extra_keys ? p_.extra_keys->shape[2] : 0); }
  const double* key(int64_t n) const {
    return is_own(n) ? row_of(p_.k, b_, g_, window_[size_t(n)].position) : row_of(*p_.extra_keys, b_, g_, n - own());
  }
  const double* value(int64_t n) const {
    return is_own(n) ? row_of(p_.v, b_, g_, window_[size_t(n)].position) : row_of(*p_.extra_values, b_, g_, n - own());
  }

  const GridProblem& p_;
  int64_t b_, h_, i_, g_;
  std::vector<WindowKey> window_;
  std::vector<double> weights_;
  double lse_;
};

inline GridAnswer answer(const GridProblem& p, const Array& d_out, const Array& d_lse) {
  const auto like = [](const std::optional<Array>& a) { return a ? zeros_like(*a) : Array(0, 0, 0, 0); };
  const auto& q = p.q.shape;
  GridAnswer a{{q[0], q[1], q[2], p.v.shape[3]},
               {q[0], q[1], q[2], 1},
               zeros_like(p.q),
               zeros_like(p.k),
               zeros_like(p.v),
               like(p.bias),
               like(p.extra_keys),
               like(p.extra_values)};
  for (int64_t i = 0; i < q[2]; ++i)
    for (int64_t b = 0; b < q[0]; ++b)
      for (int64_t h = 0; h < q[1]; ++h) {
        const QueryAnswer query(p, b, h, i);
        query.put(a);
        query.put_gradients(d_out, d_lse, a);
      }
  return a;
}

}  // namespace foveate::test
