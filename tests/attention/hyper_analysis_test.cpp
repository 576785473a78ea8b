// What HyperAttention's theory measures, against plain loops over full matrices.
#include "foveate/attention/sparse/hyper_analysis.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/attention/calls.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using test::random_tensor;
using test::same;

// exp(logits) of one head, and places in sorted order, all by loops.
struct HeadOracle {
  std::vector<std::vector<double>> a;  // [n][n]
  std::vector<int64_t> query_place, key_place;
  int64_t block, n = std::ssize(a);

  HeadOracle(const Tensor& q, const Tensor& k, const Tensor& projections, int64_t block_size, double scale, double cap)
      : block(block_size) {
    for (int64_t i = 0; i < q.size(0); ++i) {
      a.emplace_back();
      for (int64_t j = 0; j < k.size(0); ++j) {
        const double logit = scale * (q[i] * k[j]).sum().item<double>();
        a.back().push_back(std::exp(cap > 0 ? cap * std::tanh(logit / cap) : logit));
      }
    }
    n = std::ssize(a);
    query_place = places(q, projections), key_place = places(k, projections);
  }
  static std::vector<int64_t> places(const Tensor& x, const Tensor& projections) {
    std::vector<std::pair<int64_t, int64_t>> order;
    for (int64_t row = 0; row < x.size(0); ++row) {
      int64_t code = 0;  // prefix xor, from the highest bit down
      int64_t bit_before = 0;
      for (int64_t c = projections.size(1) - 1; c >= 0; --c) {
        bit_before ^= (x[row] * projections.select(1, c)).sum().item<double>() > 0;
        code = code * 2 + bit_before;
      }
      order.emplace_back(code, row);
    }
    std::sort(order.begin(), order.end());
    std::vector<int64_t> place(order.size());
    for (size_t i = 0; i < order.size(); ++i) place[size_t(order[i].second)] = int64_t(i);
    return place;
  }
  bool masked(int64_t i, int64_t j) const { return query_place[size_t(i)] / block == key_place[size_t(j)] / block; }
  double sum(int64_t i, bool inside) const {
    double s = 0;
    for (int64_t j = 0; j < n; ++j) s += masked(i, j) == inside ? a[size_t(i)][size_t(j)] : 0;
    return s;
  }
  double total(int64_t i) const { return sum(i, true) + sum(i, false); }
};

struct Problem {
  Tensor q = random_tensor({2, 4, 23, 6}, 1, at::kDouble), k = random_tensor({2, 2, 23, 6}, 2, at::kDouble),
         v = random_tensor({2, 2, 23, 3}, 3, at::kDouble), projections = random_tensor({6, 3}, 4, at::kDouble);
  ops::Score score{.scale = 0.3, .soft_cap = 4};
  Hyper options{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5};

  HeadOracle head(int64_t b, int64_t h) const { return {q[b][h], k[b][h / 2], projections, 4, 0.3, 4}; }
  template <class Use>
  void for_heads(const Use& use) const {
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 4; ++h) use(b, h, head(b, h));
  }
};

TEST(HyperAnalysis, alpha_and_kappa_equal_the_specs_golden) {
  const Tensor i = at::arange(8, at::kDouble);
  const auto on_circle = [&](double step, double turn) {
    return at::stack({(i * step + turn).cos(), (i * step + turn).sin()}, 1).view({1, 1, 8, 2});
  };
  const Tensor q = on_circle(0.9, 0.2), k = on_circle(2.3, -0.4) * 1.5;
  const Tensor projections = at::tensor({1.0, 0.3, 0.2, -1.0}, at::kDouble).view({2, 2});
  EXPECT_NEAR(hyper_alpha(q, k, Rule::full()).item<double>(), 1.833746, 1e-6);
  EXPECT_NEAR(hyper_kappa({.lsh_num_projs = 2, .block_size = 2}, q, k, projections).item<double>(), 1.732252, 1e-6);
}

TEST(HyperAnalysis, alpha_equals_plain_loops_with_and_without_the_first_keys) {
  const Problem p;
  for (const bool is_causal : {true, false})
    for (const int64_t first : {0, 2}) {
      const Tensor got = hyper_alpha(p.q, p.k, is_causal ? Rule{} : Rule::full(), p.score, first);
      p.for_heads([&](int64_t b, int64_t h, const HeadOracle& o) {
        double most = 0;
        for (int64_t j = first; j < o.n; ++j) {
          double squares = 0;
          for (int64_t i = is_causal ? j : 0; i < o.n; ++i) {
            double sum = 0;
            for (int64_t other = 0; other < (is_causal ? i + 1 : o.n); ++other) sum += o.a[size_t(i)][size_t(other)];
            squares += std::pow(o.a[size_t(i)][size_t(j)] / sum, 2);
          }
          most = std::max(most, squares);
        }
        EXPECT_NEAR(got[b][h].item<double>(), double(o.n) * most, 1e-10);
      });
    }
  EXPECT_THROW(hyper_alpha(p.q, p.k, Rule{}, p.score, 23), Error);
}

TEST(HyperAnalysis, mask_mass_and_kappa_equal_plain_loops) {
  const Problem p;
  const TokenPlan mask = sortlsh_mask(p.options, p.q, p.k, p.projections);
  const Tensor mass = heavy_mass(p.q, p.k, mask, Rule::full(), p.score),
               kappa = hyper_kappa(p.options, p.q, p.k, p.projections, p.score);
  p.for_heads([&](int64_t b, int64_t h, const HeadOracle& o) {
    double share = 0, least = INFINITY, most = 0;
    for (int64_t i = 0; i < o.n; ++i) {
      share += o.sum(i, true) / o.total(i) / double(o.n);
      least = std::min(least, o.sum(i, false)), most = std::max(most, o.sum(i, false));
    }
    EXPECT_NEAR(mass[b][h].item<double>(), share, 1e-12);
    EXPECT_NEAR(kappa[b][h].item<double>(), most / least, 1e-10);
  });
  const Tensor causal = heavy_mass(p.q, p.k, mask, Rule{}, p.score);
  p.for_heads([&](int64_t b, int64_t h, const HeadOracle& o) {
    double share = 0;
    for (int64_t i = 0; i < o.n; ++i) {
      double inside = 0, total = 0;
      for (int64_t j = 0; j <= i; ++j) {
        total += o.a[size_t(i)][size_t(j)];
        inside += o.masked(i, j) ? o.a[size_t(i)][size_t(j)] : 0;
      }
      share += inside / total / double(o.n);
    }
    EXPECT_NEAR(causal[b][h].item<double>(), share, 1e-12);
  });
  EXPECT_THROW(hyper_kappa({.lsh_num_projs = 3, .block_size = 23}, p.q, p.k, p.projections), Error);
  EXPECT_THROW(sortlsh_mask({.lsh_num_projs = 3, .block_size = 0}, p.q, p.k, p.projections), Error);
}

TEST(HyperAnalysis, approx_d_equals_plain_loops) {
  Problem p;
  p.options.residual = Hyper::Residual::capped;
  const Tensor drawn = at::tensor({0, 3, 22, 9, 9}, at::kLong).expand({2, 2, 5});
  const Tensor asked = at::tensor({1, 8, 20}, at::kLong);
  for (const auto& [epsilon, given_kappa] : {std::pair(1.0, 0.0), {3.0, 0.0}, {1.5, 1.2}, {100.0, 1e6}}) {
    p.options.epsilon = epsilon, p.options.kappa = given_kappa;
    const Tensor got = approx_d(p.options, p.q, p.k, p.projections, drawn, asked, p.score);
    p.for_heads([&](int64_t b, int64_t h, const HeadOracle& o) {
      double tau = 0, least = INFINITY;
      for (int64_t i = 0; i < o.n; ++i)
        if (const int64_t place = o.query_place[size_t(i)]; place == 1 || place == 8 || place == 20)
          tau = std::max(tau, o.sum(i, false)), least = std::min(least, o.sum(i, false));
      const double floor = tau / (given_kappa > 0 ? given_kappa : tau / least);
      for (int64_t i = 0; i < o.n; ++i) {
        const double n = double(o.n), cap = epsilon * epsilon * 5 / (n * std::log(n)) * (o.sum(i, true) + floor);
        double d = 0;
        for (const int64_t place : {0, 3, 22, 9, 9}) {
          const int64_t j = std::find(o.key_place.begin(), o.key_place.end(), place) - o.key_place.begin();
          if (!o.masked(i, j)) d += n / 5 * std::min(o.a[size_t(i)][size_t(j)], cap);
        }
        EXPECT_NEAR(got[b][h][i].item<double>(), std::log(o.sum(i, true) + std::max(d, floor)), 1e-10);
      }
    });
  }
  EXPECT_THROW(approx_d({.lsh_num_projs = 3, .block_size = 4}, p.q, p.k, p.projections, drawn, asked), Error);
}

TEST(HyperAnalysis, the_mechanisms_sums_are_those_of_approx_d) {
  Problem p;
  p.options.residual = Hyper::Residual::capped, p.options.min_seq_len = 1, p.options.epsilon = 2;
  Inputs in;
  in.q = p.q, in.k = p.k, in.v = p.v, in.rule = Rule::full(), in.score = p.score;
  const Tensor drawn = at::tensor({0, 3, 22, 9, 9}, at::kLong).expand({2, 2, 5});
  const ops::Attended got = hyper_attention(p.options, in, {p.projections, {drawn.unsqueeze(2)}});
  p.options.sample_size = 23;  // all rows are asked: their order does not matter
  const Tensor lse = hyper_attention(p.options, in, {p.projections, {drawn.unsqueeze(2)}}).lse;
  const Tensor want = approx_d(p.options, p.q, p.k, p.projections, drawn, at::arange(23, at::kLong), p.score);
  EXPECT_TRUE(same(lse, want, {1e-12, 0}));
  EXPECT_FALSE(got.lse.equal(lse));
}

TEST(HyperAnalysis, lists_by_key_head_serve_the_query_heads_that_read_them) {
  const Problem p;
  TokenPlan mask = sortlsh_mask(p.options, p.q, p.k, p.projections);
  ASSERT_EQ(mask.index.size(1), 2);
  const Tensor got = attention_norm(p.q, p.k, mask, p.score);
  mask.index = mask.index.repeat_interleave(2, 1);
  EXPECT_TRUE(same(got, attention_norm(p.q, p.k, mask, p.score), {1e-9, 0}));
}

TEST(HyperAnalysis, norms_equal_those_of_full_matrices) {
  const Problem p;
  const Tensor got = attention_norm(p.q, p.k, Rule{}, p.score), noise = random_tensor({2, 4, 23, 3}, 9, at::kDouble);
  const Tensor out = ops::attend(p.q, p.k, p.v, Rule{}, p.score).out + noise * 0.1;
  const Tensor error = operator_norm_error(out, p.q, p.k, p.v, Rule{}, p.score);
  // the norm of a matrix by many rounds of plain loops
  const auto norm_of = [](const std::vector<std::vector<double>>& m) {
    std::vector<double> x(m[0].size(), 1.0);
    x[0] = 1.7;
    double norm = 0;
    for (int round = 0; round < 5000; ++round) {
      std::vector<double> y(m.size()), z(x.size());
      double length = 0;
      for (const double value : x) length += value * value;
      norm = 0;
      for (size_t i = 0; i < m.size(); ++i) {
        for (size_t j = 0; j < x.size(); ++j) y[i] += m[i][j] * x[j] / std::sqrt(length);
        norm += y[i] * y[i];
      }
      for (size_t i = 0; i < m.size(); ++i)
        for (size_t j = 0; j < x.size(); ++j) z[j] += m[i][j] * y[i];
      x = z;
    }
    return std::sqrt(norm);
  };
  const auto rows_of = [](const Tensor& t) {
    std::vector<std::vector<double>> rows;
    for (int64_t i = 0; i < t.size(0); ++i) {
      rows.emplace_back();
      for (int64_t j = 0; j < t.size(1); ++j) rows.back().push_back(t[i][j].item<double>());
    }
    return rows;
  };
  p.for_heads([&](int64_t b, int64_t h, const HeadOracle& o) {
    auto rows = o.a;
    for (int64_t i = 0; i < o.n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < o.n; ++j) sum += j <= i ? rows[size_t(i)][size_t(j)] : 0;
      for (int64_t j = 0; j < o.n; ++j) rows[size_t(i)][size_t(j)] *= j <= i ? 1 / sum : 0;
    }
    const double want = norm_of(rows);
    EXPECT_NEAR(got[b][h].item<double>(), want, 1e-4 * want);
    const double of_noise = norm_of(rows_of(noise[b][h])) * 0.1, of_values = norm_of(rows_of(p.v[b][h / 2]));
    EXPECT_NEAR(error[b][h].item<double>(), of_noise / (want * of_values), 2e-4 * of_noise);
  });
}

TEST(HyperAnalysis, alpha_of_long_texts_needs_no_full_matrix) {
  const int64_t n = 8192;
  const Tensor nothing = at::zeros({1, 1, n, 8}), q = at::full({1, 1, n, 8}, 4.0), k = at::zeros({1, 1, n, 8});
  EXPECT_NEAR(hyper_alpha(nothing, nothing, Rule::full()).item<double>(), 1, 1e-3);
  k.select(2, 5).fill_(4);  // one key has all
  EXPECT_NEAR(hyper_alpha(q, k, Rule::full()).item<double>() / double(n * n), 1, 1e-3);
  EXPECT_NEAR(hyper_alpha(q, k, Rule::full(), {}, 6).item<double>(), 0, 1e-3);
}

}  // namespace
}  // namespace foveate::attention
