// Attention as plain loops in double: the definition that everything else is held against.  Shares no code with
// foveate/.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

namespace foveate::test {

// A dense array of four axes.
struct Array {
  int64_t shape[4] = {0, 0, 0, 0};
  std::vector<double> data;

  Array() = default;
  Array(int64_t a, int64_t b, int64_t c, int64_t d) : shape{a, b, c, d}, data(size_t(a * b * c * d)) {}
  double& at(int64_t a, int64_t b, int64_t c, int64_t d) {
    return data[size_t(((a * shape[1] + b) * shape[2] + c) * shape[3] + d)];
  }
  double at(int64_t a, int64_t b, int64_t c, int64_t d) const { return const_cast<Array*>(this)->at(a, b, c, d); }
  // Axes of length 1 stand for the whole axis.
  double& broadcast(int64_t a, int64_t b, int64_t c, int64_t d) {
    return at(shape[0] == 1 ? 0 : a, shape[1] == 1 ? 0 : b, shape[2] == 1 ? 0 : c, shape[3] == 1 ? 0 : d);
  }
};

// One axis of relative logits: column clamp(key[j] - query[i], 0, size - 1) behind the columns of the axes before.
struct OracleAxis {
  int64_t size = 1;
  std::vector<int64_t> query, key;  // [Lq], [Lk]
};

// s = scale q.k;  s = soft_cap tanh(s / soft_cap);  s += bias + relative - slope |position - j|;  s <= 0: s *= leaky
struct OracleScore {
  double scale = 1;
  std::optional<double> soft_cap;
  std::optional<Array> bias;                  // broadcastable to [B, Hq, Lq, Lk]
  std::optional<std::vector<double>> slopes;  // [Hq]
  int64_t query_start = 0;                    // position of query 0
  std::optional<Array> relative;              // broadcastable to [B, Hq, Lq, columns of all axes]
  std::vector<OracleAxis> axes;
  double leaky = 1;
  std::vector<int64_t> key_heads, value_heads;  // [Hq] heads of k and v; empty: equal groups
  std::optional<std::vector<double>> sink;      // [Hq]
  // What dropout multiplies a probability with: 0 or 1 / (1 - p).  Unset: no dropout.
  std::function<double(int64_t b, int64_t h, int64_t i, int64_t j)> keep;
};

// How often query i of head h sees key j: 0 for invisible, more than 1 in multisets.
using Visible = std::function<int(int64_t b, int64_t h, int64_t i, int64_t j)>;

struct OracleResult {
  Array out;  // [B, Hq, Lq, Dv]
  Array lse;  // [B, Hq, Lq, 1]
};

OracleResult oracle_attention(const Array& q, const Array& k, const Array& v, const Visible& visible,
                              OracleScore score);

struct OracleGradients {
  Array q, k, v, bias, relative;
  std::vector<double> sink, slopes;
};

// Of sum(d_out * out) + sum(d_lse * lse), by the chain rule written out for each pair.
OracleGradients oracle_backward(const Array& q, const Array& k, const Array& v, const Visible& visible,
                                OracleScore score, const Array& d_out, const Array& d_lse);

}  // namespace foveate::test
