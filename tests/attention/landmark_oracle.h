// Landmark attention as plain loops in double: keys rotated at their slots, two levels of softmax.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <functional>
#include <map>

#include "foveate/attention/sparse/landmark.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::test::landmark {

using at::Tensor;
using attention::Inputs;
using attention::Landmark;

constexpr double kBase = 50;

using Row = std::vector<double>;

inline Row rotated(const Row& x, double position) {
  const size_t half = x.size() / 2;
  Row out(x.size());
  for (size_t d = 0; d < half; ++d) {
    const double angle = position * std::pow(kBase, -2.0 * double(d) / double(x.size()));
    out[d] = x[d] * std::cos(angle) - x[d + half] * std::sin(angle);
    out[d + half] = x[d + half] * std::cos(angle) + x[d] * std::sin(angle);
  }
  return out;
}

inline double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

// A key that a row sees: where it seems to be, the token it is, and the block it is of (-1: the row's own section).
struct Seen {
  int64_t place, token, block;
};

// The two-level softmax over what a row sees; a block's landmark is its last token.
struct Oracle {
  Array q, k, v;  // not rotated
  Landmark options;
  bool rotates = true;
  std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)> shows;  // what the model's own rule says

  Row row(const Array& x, int64_t b, int64_t h, int64_t i) const {
    Row out(static_cast<size_t>(x.shape[3]));
    for (int64_t d = 0; d < x.shape[3]; ++d) out[size_t(d)] = x.at(b, h, i, d);
    return out;
  }
  double score(int64_t b, int64_t h, int64_t i, int64_t query_place, int64_t token, int64_t key_place) const {
    const Row query = row(q, b, h, i), key = row(k, b, h * k.shape[1] / q.shape[1], token);
    const double scale = 1 / std::sqrt(double(q.shape[3]));
    if (!rotates) return scale * dot(query, key);
    return scale * dot(rotated(query, double(query_place)), rotated(key, double(key_place)));
  }

  struct Chunk {
    int64_t start, end, before, count, oldest, latest;  // latest: candidates from here on keep their place
  };
  Chunk chunk_of(int64_t i) const {
    const int64_t length = options.chunk_length();
    Chunk c{i / length * length, std::min(i / length * length + length, q.shape[2]), 0, 0, 0, 0};
    c.before = c.start / options.block;
    c.count = options.max_blocks > 0 ? std::min(c.before, options.max_blocks) : c.before;
    c.oldest = c.before - c.count, c.latest = c.count - std::min(options.top_k, c.count);
    return c;
  }
  bool stingy() const { return options.positions == Landmark::Positions::stingy; }
  // Where the row itself seems to be: local coordinates begin with one slot more than blocks fetched.
  int64_t query_place(int64_t i, const Chunk& c) const {
    if (!stingy()) return i;
    return (std::min(options.top_k, c.count) + 1) * options.block + i - c.before * options.block;
  }
  std::vector<double> landmark_scores(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> scores;
    for (int64_t j = 0; j < c.count; ++j) {
      const int64_t token = (c.oldest + j + 1) * options.block - 1;
      const int64_t slot = j < c.latest ? 0 : j - c.latest + 1;
      const int64_t place = stingy() ? slot * options.block + options.block - 1 : token;
      scores.push_back(shows(b, h, i, token) ? score(b, h, i, query_place(i, c), token, place) : -INFINITY);
    }
    return scores;
  }
  std::vector<double> shares(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> s = landmark_scores(b, h, i, c);
    double sum = 0;
    for (const double x : s) sum += std::exp(x);
    for (double& x : s)
      if (x > -INFINITY) x = std::exp(x) / sum;
    return s;
  }
  // Candidates chosen for a row, oldest first.
  std::vector<int64_t> chosen(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> best(size_t(c.count), -INFINITY);
    const int64_t heads = q.shape[1], group = heads / k.shape[1];
    const auto raise = [&](const std::vector<double>& s) {
      for (size_t j = 0; j < s.size(); ++j) best[j] = std::max(best[j], s[j]);
    };
    const bool shared = options.share_in_group;
    for (int64_t other = 0; other < heads; ++other) {
      const bool counts =
          options.select == Landmark::Select::max_over_heads || other == h || (shared && other / group == h / group);
      if (!counts) continue;
      if (options.select == Landmark::Select::max_over_tokens)
        for (int64_t t = c.start; t < c.end; ++t) raise(shares(b, other, t, c));
      else if (options.select == Landmark::Select::per_head_token && !shared)
        raise(landmark_scores(b, other, i, c));
      else
        raise(shares(b, other, i, c));
    }
    std::vector<int64_t> order;
    for (int64_t j = 0; j < c.count; ++j)
      if (best[size_t(j)] > -INFINITY) order.push_back(j);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t x, int64_t y) { return best[size_t(x)] > best[size_t(y)]; });
    if (std::ssize(order) > options.top_k) order.resize(size_t(options.top_k));
    std::sort(order.begin(), order.end());
    return order;
  }
  std::vector<Seen> seen(int64_t b, int64_t h, int64_t i) const {
    const Chunk c = chunk_of(i);
    const int64_t block = options.block;
    std::vector<Seen> all;
    const auto take = [&](int64_t token, int64_t place, int64_t of) {
      if (shows(b, h, i, token)) all.push_back({place, token, of});
    };
    const std::vector<int64_t> blocks = chosen(b, h, i, c);
    const int64_t empty = std::min(options.top_k, c.count) - std::ssize(blocks);  // slots before the first
    for (size_t r = 0; r < blocks.size(); ++r) {
      const int64_t slot = empty + int64_t(r) + (blocks[r] >= c.latest ? 1 : 0);
      for (int64_t u = 0; u < block; ++u) {
        const int64_t token = (c.oldest + blocks[r]) * block + u;
        take(token, stingy() ? slot * block + u : token, c.oldest + blocks[r]);
      }
    }
    for (int64_t t = c.before * block; t <= i; ++t) take(t, query_place(t, c), t / block == i / block ? -1 : t / block);
    return all;
  }
  Row weights(int64_t b, int64_t h, int64_t i) const {  // of all tokens
    const Chunk c = chunk_of(i);
    std::map<int64_t, double> block_sum, gate;
    Row e(size_t(k.shape[2]), 0.0), w(size_t(k.shape[2]), 0.0);
    double total = 0;
    const std::vector<Seen> all = seen(b, h, i);
    const auto is_landmark = [&](int64_t token) { return token % options.block == options.block - 1; };
    for (const Seen& s : all) {
      e[size_t(s.token)] = std::exp(score(b, h, i, query_place(i, c), s.token, s.place));
      if (s.block < 0 && !is_landmark(s.token)) total += e[size_t(s.token)];
      if (s.block >= 0 && is_landmark(s.token)) gate[s.block] = e[size_t(s.token)];
      if (s.block >= 0 && !is_landmark(s.token)) block_sum[s.block] += e[size_t(s.token)];
    }
    for (const auto& [of, g] : gate)
      if (block_sum[of] > 0) total += g;
    for (const Seen& s : all) {
      if (is_landmark(s.token) || total == 0) continue;
      const double share = s.block < 0 ? 1 : gate[s.block] / block_sum[s.block];
      w[size_t(s.token)] += e[size_t(s.token)] * share / total;
    }
    return w;
  }
  Tensor out() const {
    Array result(q.shape[0], q.shape[1], q.shape[2], v.shape[3]);
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const Row w = weights(b, h, i);
          for (int64_t t = 0; t < k.shape[2]; ++t)
            for (int64_t d = 0; d < v.shape[3]; ++d)
              result.at(b, h, i, d) += w[size_t(t)] * v.at(b, h * k.shape[1] / q.shape[1], t, d);
        }
    return to_tensor(result);
  }
};

struct Sample {
  Tensor q, k, v;  // not rotated
  ops::Rotary rotary{8, kBase};
  Inputs in;
  explicit Sample(int64_t length, at::ScalarType type = at::kDouble, int64_t offset = 0, int64_t batch = 2)
      : q(random_tensor({batch, 4, length, 8}, 1, type)),
        k(random_tensor({batch, 2, length, 8}, 2, type) * 2),
        v(random_tensor({batch, 2, length, 5}, 3, type)) {
    const Tensor positions = at::arange(offset, offset + length, at::kLong);
    in.q = rotary.rotate(q, positions), in.k = rotary.rotate(k, positions), in.v = v;
    in.rotary = &rotary;
  }
  Oracle oracle(const Landmark& options) const {
    const Rule& r = in.rule;
    const auto number = [](const Tensor& t, int64_t b, int64_t h, int64_t i) {  // of [B|1, Hq|1, Lq]
      return t[std::min(b, t.size(0) - 1)][std::min(h, t.size(1) - 1)][i].item<int64_t>();
    };
    const auto shows = [r, number](int64_t b, int64_t h, int64_t i, int64_t j) {
      if (r.window_left && j < i - *r.window_left) return false;
      if (r.head_window && (*r.head_window)[h].item<int64_t>() >= 0 && j < i - (*r.head_window)[h].item<int64_t>())
        return false;
      if (r.key_lengths && j >= (*r.key_lengths)[b].item<int64_t>()) return false;
      if (r.key_documents && !(*r.key_documents)[b][j].equal((*r.query_documents)[b][i])) return false;
      if (r.row_start && j < number(*r.row_start, b, h, i)) return false;
      return j <= i && (!r.row_end || j < number(*r.row_end, b, h, i));
    };
    return {to_array(q), to_array(k), to_array(v), options, in.rotary != nullptr, shows};
  }
};

// Prefills and then decodes; row by row or several at once.
inline Tensor generated(attention::State& state, const Sample& s, std::initializer_list<int64_t> parts,
                        int64_t prompt_parts) {
  std::vector<Tensor> outs;
  int64_t first = 0, number = 0;
  for (const int64_t count : parts) {
    const Inputs part = rows_of(s.in, first, count);
    outs.push_back((number++ < prompt_parts ? state.prefill(part) : state.decode(part)).out);
    first += count;
  }
  for (; first < s.q.size(2); ++first) outs.push_back(state.decode(rows_of(s.in, first, 1)).out);
  return at::cat(outs, 2);
}

}  // namespace foveate::test::landmark
