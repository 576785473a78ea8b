// DHSA's boundary predictor, its labels and its loss, as plain loops; chunks between predicted boundaries.
#include "foveate/attention/sparse/boundaries.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/boundary_training.h"
#include "foveate/attention/sparse/dhsa.h"
#include "foveate/ops/select/pool.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::message_of;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;
using Vector = std::vector<double>;

constexpr BoundaryOptions kOptions{.half_window = 3, .heads = 2};
constexpr int64_t kWidth = 12;  // of a token's keys: 2 heads of 6

// Every part away from its start, so that biases and norms count.
Learned random_parts(uint64_t seed, at::ScalarType type = at::kDouble) {
  Learned parts;
  for (const LearnedPart& part : boundary_parts(kWidth, kOptions))
    parts[part.name] = random_tensor(part.sizes, ++seed, type) * 0.4;
  return parts;
}

Vector affine(const Learned& parts, const std::string& name, const Vector& x) {
  const at::Tensor w = parts.at(name), b = parts.at(name + "_bias");
  Vector y;
  for (int64_t row = 0; row < w.size(0); ++row) {
    y.push_back(b[row].item<double>());
    for (size_t i = 0; i < x.size(); ++i) y.back() += w[row][int64_t(i)].item<double>() * x[i];
  }
  return y;
}

// The predictor's logit of the gap behind token g of keys x [L][C].
double oracle_logit(const std::vector<Vector>& x, int64_t g, const Learned& parts) {
  const int64_t w = kOptions.half_window, n = 2 * w, heads = kOptions.heads, dim = kWidth / heads;
  std::vector<Vector> projected;  // [2w][3C]
  for (int64_t t = g - w + 1; t <= g + w; ++t)
    projected.push_back(affine(parts, "mha_in", t >= 0 && t < std::ssize(x) ? x[size_t(t)] : Vector(kWidth, 0.0)));
  std::vector<Vector> rows;
  for (int64_t i = 0; i < n; ++i) {
    Vector mixed(kWidth, 0.0);
    for (int64_t h = 0; h < heads; ++h) {
      Vector p;
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        double s = 0;
        for (int64_t d = 0; d < dim; ++d)
          s += projected[size_t(i)][size_t(h * dim + d)] * projected[size_t(j)][size_t(kWidth + h * dim + d)];
        p.push_back(std::exp(s / std::sqrt(double(dim))));
        sum += p.back();
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < dim; ++d)
          mixed[size_t(h * dim + d)] += p[size_t(j)] / sum * projected[size_t(j)][size_t(2 * kWidth + h * dim + d)];
    }
    Vector y = affine(parts, "mha_out", mixed);
    double mean = 0, variance = 0;
    for (const double v : y) mean += v / kWidth;
    for (const double v : y) variance += (v - mean) * (v - mean) / kWidth;
    for (int64_t c = 0; c < kWidth; ++c)
      y[size_t(c)] = (y[size_t(c)] - mean) / std::sqrt(variance + 1e-5) * parts.at("norm")[c].item<double>() +
                     parts.at("norm_bias")[c].item<double>();
    rows.push_back(y);
  }
  Vector left(kWidth, 0.0), right(kWidth, 0.0), features;
  for (int64_t i = 0; i < n; ++i)
    for (size_t c = 0; c < kWidth; ++c) (i < w ? left : right)[c] += rows[size_t(i)][c] / double(w);
  double dot = 0, ll = 0, rr = 0;
  for (size_t c = 0; c < kWidth; ++c) dot += left[c] * right[c], ll += left[c] * left[c], rr += right[c] * right[c];
  features = left;
  features.insert(features.end(), right.begin(), right.end());
  for (size_t c = 0; c < kWidth; ++c) features.push_back(std::abs(left[c] - right[c]));
  for (size_t c = 0; c < kWidth; ++c) features.push_back(left[c] * right[c]);
  features.push_back(dot / std::max(std::sqrt(ll * rr), 1e-6));
  Vector inner = affine(parts, "mlp_in", features);
  for (double& v : inner) v = std::max(v, 0.0);
  return affine(parts, "mlp_out", inner)[0];
}

TEST(Boundaries, logits_equal_the_plain_loops) {
  const at::NoGradGuard no_grad;
  const Learned parts = random_parts(10);
  for (const int64_t length : {1, 4, 9}) {
    const at::Tensor k = random_tensor({2, 2, length, 6}, uint64_t(length), at::kDouble);
    const at::Tensor got = boundary_logits(k, parts, kOptions);
    for (int64_t b = 0; b < 2; ++b) {
      std::vector<Vector> x(size_t(length), Vector{});
      for (int64_t t = 0; t < length; ++t)
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t d = 0; d < 6; ++d) x[size_t(t)].push_back(k[b][h][t][d].item<double>());
      for (int64_t g = 0; g < length; ++g)
        EXPECT_NEAR(got[b][g].item<double>(), oracle_logit(x, g, parts), 1e-9) << length << " " << g;
    }
  }
  EXPECT_EQ(boundary_logits(random_tensor({2, 2, 0, 6}, 1), parts, kOptions).size(1), 0);
}

TEST(Boundaries, long_texts_are_cut_into_parts_without_a_trace) {
  const at::NoGradGuard no_grad;
  const Learned parts = random_parts(10);
  const at::Tensor k = random_tensor({1, 2, 2100, 6}, 3, at::kDouble), got = boundary_logits(k, parts, kOptions);
  const at::Tensor middle = boundary_logits(k.narrow(2, 900, 400), parts, kOptions);  // around gap 1,024
  EXPECT_TRUE(same(got.narrow(1, 910, 380), middle.narrow(1, 10, 380), {1e-11, 1e-11}));
}

TEST(Boundaries, gradients_match_finite_differences) {
  Learned parts = random_parts(10);
  for (auto& [name, part] : parts) part.requires_grad_();
  const at::Tensor k = random_tensor({1, 2, 15, 6}, 2, at::kDouble).requires_grad_();
  const at::Tensor targets = random_tensor({1, 15}, 4).gt(0), valid = boundary_valid(15, kOptions.half_window);
  const auto loss = [&] { return boundary_loss(boundary_logits(k, parts, kOptions), targets, valid); };
  std::vector<at::Tensor> leaves{k};
  for (const auto& [name, part] : parts) leaves.push_back(part);
  test::expect_gradients(loss, leaves, 1e-7, 4);
}

at::Tensor logits_at(int64_t length, std::initializer_list<std::pair<int64_t, double>> peaks) {
  const at::Tensor z = at::zeros({length}, at::kDouble);
  for (const auto& [gap, value] : peaks) z[gap] = value;
  return z;
}

TEST(Boundaries, cuts_are_the_best_gaps_that_lie_apart) {
  using Cuts = std::vector<int64_t>;
  const at::Tensor z = logits_at(60, {{10, 2}, {18, 3}, {19, 3}, {30, 1.2}, {40, 1.1}, {50, 9}, {2, 9}, {57, 9}});
  const ChunkLimits limits{.most = 100};
  // 2 and 57 have less than 4 keys on a side, 40 is not above theta, 10 and 19 lie within 8 of 18 (the earlier of
  // equals).
  EXPECT_EQ(choose_cuts(z, limits), (Cuts{0, 19, 31, 51, 60}));
  EXPECT_EQ(choose_cuts(z, {.nms_window = 7, .most = 100}), (Cuts{0, 11, 19, 31, 51, 60}));
  EXPECT_EQ(choose_cuts(z, {.theta = 1, .most = 100}), (Cuts{0, 19, 31, 41, 51, 60}));
  EXPECT_EQ(choose_cuts(z, {.most = 2}), (Cuts{0, 19, 51, 60}));
  EXPECT_EQ(choose_cuts(z, {.most = 0}), (Cuts{0, 60}));
  EXPECT_EQ(choose_cuts(z, {.theta = 10, .most = 100}), (Cuts{0, 60}));
  EXPECT_EQ(choose_cuts(z, {.most = 100, .half_window = 3}), (Cuts{0, 3, 19, 31, 51, 60}));
  // The last 12 tokens are a question: it begins a chunk, and what lies in it or near its start is no boundary.
  EXPECT_EQ(choose_cuts(z, {.most = 100, .instruction = 12}), (Cuts{0, 19, 31, 48, 60}));
  EXPECT_EQ(choose_cuts(z, {.most = 100, .instruction = 60}), choose_cuts(z, limits));
  EXPECT_EQ(choose_cuts(at::zeros({0}), limits), Cuts{0});
  EXPECT_EQ(choose_cuts(logits_at(1, {{0, 5}}), limits), (Cuts{0, 1}));
}

// Ratios from the whole matrix of weights.
Vector oracle_ratios(const std::vector<std::vector<Vector>>& heads, int64_t length, int64_t w) {
  Vector ratios(size_t(length), 1.0);
  for (int64_t p = w - 1; p + w < length; ++p) {
    double past = 0, future = 0;
    for (const auto& a : heads)
      for (int64_t i = p + w + 1; i < length; ++i)
        for (int64_t j = p - w + 1; j <= p + w; ++j)
          (j <= p ? past : future) += a[size_t(i)][size_t(j)] / double(heads.size());
    ratios[size_t(p)] = (std::max(past, future) + 1e-6) / (std::min(past, future) + 1e-6);
  }
  return ratios;
}

TEST(Boundaries, labels_equal_the_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const auto& window : {std::optional<int64_t>(), std::optional<int64_t>(4), std::optional<int64_t>(13)})
    for (const int64_t length : {1, 5, 6, 7, 30}) {
      Inputs in = test::random_call(length, length, {.batch = 2});
      in.rule.window_left = window;
      in.score.soft_cap = 1.5;
      const at::Tensor lse = *Dense{}.attend(in).lse, got = boundary_ratios(in, lse, 3);
      for (int64_t b = 0; b < 2; ++b) {
        std::vector<std::vector<Vector>> heads;
        for (int64_t h = 0; h < 4; ++h) {
          const at::Tensor s = in.q[b][h].matmul(in.k[b][h / 2].t()) / std::sqrt(8.0);
          const at::Tensor a = ((s / 1.5).tanh() * 1.5 - lse[b][h].unsqueeze(1)).exp();
          auto& head = heads.emplace_back(size_t(length), Vector(size_t(length), 0.0));
          for (int64_t i = 0; i < length; ++i)
            for (int64_t j = 0; j <= i; ++j)
              if (!window || i - j <= *window) head[size_t(i)][size_t(j)] = a[i][j].item<double>();
        }
        const Vector want = oracle_ratios(heads, length, 3);
        for (int64_t p = 0; p < length; ++p)
          EXPECT_NEAR(got[b][p].item<double>() / want[size_t(p)], 1, 1e-6) << length << " " << p;
      }
    }
}

TEST(Boundaries, golden_labels) {
  const at::NoGradGuard no_grad;
  Inputs in;
  const at::Tensor place = at::arange(16, at::kDouble);
  in.k = place.ge(4).logical_and(place.le(7)).to(at::kDouble).view({1, 1, 16, 1});
  in.q = at::full({1, 1, 16, 1}, std::log(9.0), at::kDouble);
  in.v = in.k;
  in.score.scale = 1;
  const at::Tensor got = boundary_ratios(in, *Dense{}.attend(in).lse, 2);
  for (int64_t p = 1; p < 13; ++p) {
    const double want = p == 3 ? 8.99998 : p == 7 ? 8.99997 : p == 2 || p == 8 ? 5 : p == 4 || p == 6 ? 1.8 : 1;
    EXPECT_NEAR(got[0][p].item<double>(), want, p == 3 || p == 7 ? 1e-5 : 2e-5) << p;
  }
  const at::Tensor valid = boundary_valid(16, 2);
  for (int64_t p = 0; p < 16; ++p) EXPECT_EQ(valid[p].item<bool>(), p >= 3 && p < 12) << p;
}

TEST(Boundaries, the_loss_is_focal_cross_entropy_of_what_counts) {
  const at::Tensor logits = at::tensor({0.5, -2.0, 3.0, 7.0}, at::kDouble),
                   targets = logits.gt(0.4).logical_and(logits.lt(6));
  const at::Tensor valid = at::tensor({1, 1, 1, 0}, at::kLong).gt(0);
  double want = 0;
  for (const auto& [z, is_boundary] : {std::pair{0.5, true}, {-2.0, false}, {3.0, true}}) {
    const double p = 1 / (1 + std::exp(-z)), right = is_boundary ? p : 1 - p;
    want -= (is_boundary ? 1.3 : 1.0) * (1 - right) * (1 - right) * std::log(right) / 3;
  }
  EXPECT_NEAR(boundary_loss(logits, targets, valid).item<double>(), want, 1e-12);
  EXPECT_EQ(message_of([&] { boundary_loss(logits, targets, valid.logical_not().logical_and(valid)); }),
            "dhsa: a loss needs gaps that count, got none");
}

// Chunks that a predictor cuts, in a call of 2 sequences.
class CutDhsa : public testing::Test {
 protected:
  const at::NoGradGuard no_grad_;
  Dhsa dhsa_{.query_block = 8, .budget = 19, .global_tokens = 2, .local_tokens = 3};
  Inputs in_ = test::random_call(61, 61, {.batch = 2, .dim = 6});
  const Learned parts_ = random_parts(30);
  CutDhsa() {
    dhsa_.chunks = Dhsa::Chunks::learned, dhsa_.theta = 0.2, dhsa_.nms_window = 2;
    dhsa_.half_window = kOptions.half_window, dhsa_.boundary_heads = kOptions.heads;
    in_.learned = &parts_;
  }
  // One sequence alone.
  Inputs one(int64_t b, int64_t rows = 61) const {
    Inputs part = in_;
    for (at::Tensor* t : {&part.q, &part.k, &part.v}) *t = t->narrow(0, b, 1).narrow(2, 0, rows);
    return part;
  }
};

// The keys of a block of rows: tokens in the order of their chunks' scores, in plain loops.
std::vector<int64_t> oracle_list(const Dhsa& o, const Inputs& in, const std::vector<int64_t>& cuts, int64_t first,
                                 int64_t end) {
  const Array q = to_array(in.q), k = to_array(in.k);
  const auto mean = [&](const Array& x, int64_t d, int64_t from, int64_t to) {
    double sum = 0;
    for (int64_t h = 0; h < x.shape[1]; ++h)
      for (int64_t i = from; i < to; ++i) sum += x.at(0, h, i, d) / double(x.shape[1]);
    return sum / std::sqrt(double(to - from));
  };
  std::vector<std::pair<double, int64_t>> order;
  std::vector<int64_t> chosen;
  for (size_t c = 0; c + 1 < cuts.size(); ++c) {
    double score = 0;
    for (int64_t d = 0; d < q.shape[3]; ++d) score += mean(q, d, first, end) * mean(k, d, cuts[c], cuts[c + 1]);
    for (int64_t j = cuts[c]; j < std::min(cuts[c + 1], end); ++j)
      if (j < o.global_tokens || j >= first - o.local_tokens + 1)
        chosen.push_back(j);
      else
        order.emplace_back(-score, j);
  }
  std::ranges::sort(order);
  for (const auto& [score, j] : order)
    if (std::ssize(chosen) < o.budget) chosen.push_back(j);
  std::ranges::sort(chosen);
  return chosen;
}

TEST_F(CutDhsa, each_sequence_is_cut_and_selected_by_its_own_boundaries) {
  const Dhsa::Cuts cuts = dhsa_.cuts_of(in_);
  ASSERT_EQ(cuts.size(), 2u);
  EXPECT_NE(cuts[0], cuts[1]);
  EXPECT_GT(cuts[0].size(), 3u);
  const Attended got = dhsa_.attend(in_);
  for (int64_t b = 0; b < 2; ++b) {
    EXPECT_EQ(cuts[size_t(b)], choose_cuts(boundary_logits(in_.k, parts_, kOptions)[b],
                                           {.theta = 0.2, .nms_window = 2, .most = 61 / 8 * 8, .half_window = 3}));
    EXPECT_TRUE(same(dhsa_.attend(one(b)).out, got.out.narrow(0, b, 1), {1e-12, 1e-12}));
    const at::Tensor index = std::get<TokenPlan>(got.plans[0].plan).index;
    for (int64_t block = 0; block < index.size(2); ++block) {
      const auto want = oracle_list(dhsa_, one(b), cuts[size_t(b)], block * 8, std::min<int64_t>(block * 8 + 8, 61));
      for (int64_t n = 0; n < index.size(3); ++n)
        EXPECT_EQ(index[b][0][block][n].item<int64_t>(), n < std::ssize(want) ? want[size_t(n)] : -1)
            << b << block << n;
    }
  }
}

TEST_F(CutDhsa, even_chunks_are_the_same_code) {
  Dhsa even = dhsa_;
  even.chunks = Dhsa::Chunks::even, even.chunk = 7;
  EXPECT_TRUE(same(even.attend_chunks(in_, {ops::even_cuts(61, 7), ops::even_cuts(61, 7)}).out, even.attend(in_).out,
                   {1e-12, 1e-12}));
  EXPECT_EQ(even.own_kind(), Kind::block);
  EXPECT_EQ(dhsa_.own_kind(), Kind::prompt);
}

TEST_F(CutDhsa, later_layers_go_by_earlier_ones) {
  Dhsa later = dhsa_;
  later.chunks = Dhsa::Chunks::shared;
  Inputs second = test::random_call(61, 61, {.batch = 2, .dim = 6, .seed = 50});
  const std::string none =
      "dhsa: chunks=shared needs an earlier layer with chunks=learned in the same forward pass, got none";
  EXPECT_EQ(message_of([&] { later.attend(second); }),
            "dhsa: chunks=shared is for the layers of one forward pass, got a call alone, which shares nothing");
  Shared shared;
  in_.shared = second.shared = &shared;
  EXPECT_EQ(message_of([&] { later.attend(second); }), none);
  const Attended first = dhsa_.attend(in_);
  const Attended got = later.attend(second);
  EXPECT_TRUE(same(got.out, dhsa_.attend_chunks(second, dhsa_.cuts_of(in_)).out, {1e-12, 1e-12}));
  // One selection for all layers of the same window.
  shared.clear();
  dhsa_.attend(in_);
  later.lists = Dhsa::Lists::shared;
  EXPECT_TRUE(std::get<TokenPlan>(later.attend(second).plans[0].plan)
                  .index.equal(std::get<TokenPlan>(first.plans[0].plan).index));
  later.decode = Dhsa::Decode::sparse, later.chunk = 5;  // what selects nothing for the prompt may differ
  later.theta = 7, later.nms_window = 5, later.chunks_per_block = 3, later.half_window = 2, later.boundary_heads = 1;
  EXPECT_TRUE(std::get<TokenPlan>(later.attend(second).plans[0].plan)
                  .index.equal(std::get<TokenPlan>(first.plans[0].plan).index));
  second.rule.window_left = 20;
  EXPECT_NE(message_of([&] { later.attend(second); }).find("dhsa: lists=shared needs an earlier layer"),
            std::string::npos);
  EXPECT_NE(message_of([&] { later.attend(test::rows_of(second, 0, 40)); }).find("must be of the same 40 keys, got 61"),
            std::string::npos);
}

TEST_F(CutDhsa, sparse_decode_reads_the_prompts_chunks_and_survives_files) {
  dhsa_.decode = Dhsa::Decode::sparse;
  const auto state = dhsa_.make_state({}), other = dhsa_.make_state({});
  Inputs prompt = test::rows_of(in_, 0, 40);
  state->prefill(prompt);
  Dhsa::Cuts cuts = dhsa_.cuts_of(prompt);
  const auto check = [&](State& s, int64_t row) {
    const Attended got = s.decode(test::rows_of(in_, row, 1));
    const at::Tensor index = std::get<TokenPlan>(got.plans[0].plan).index;
    for (int64_t b = 0; b < 2; ++b) {
      std::vector<int64_t> grown = cuts[size_t(b)];
      grown.back() = row + 1;  // new keys join the last chunk
      const Inputs seen = one(b, row + 1);
      const auto want = oracle_list(dhsa_, seen, grown, row, row + 1);
      for (int64_t n = 0; n < std::ssize(want); ++n)
        EXPECT_EQ(index[b][0][0][n].item<int64_t>(), want[size_t(n)]) << row << " " << b;
    }
  };
  for (int64_t row = 40; row < 50; ++row) check(*state, row);
  state->truncate(45);
  check(*state, 45);
  other->load(state->save());
  check(*other, 46);
  EXPECT_GT(state->read_bytes(), 0);
  State::Snapshot spoilt = state->save();
  spoilt["chunk_starts"] = spoilt["chunk_starts"] + 1;
  EXPECT_EQ(message_of([&] { dhsa_.make_state({})->load(spoilt); }),
            "dhsa: a saved state of these options must have chunk_starts that ascend from 0 below its 46 keys");
  // Going back into the prompt drops the chunks behind.
  const int64_t back = cuts[0][2];
  state->truncate(back);
  for (auto& own : cuts) {
    std::erase_if(own, [&](int64_t cut) { return cut >= back; });
    own.push_back(back);
  }
  check(*state, back), check(*state, back + 1);
  // A prompt that goes on is cut anew.
  state->prefill(test::rows_of(in_, back + 2, 30));
  cuts = dhsa_.cuts_of(test::rows_of(in_, 0, back + 32));
  check(*state, back + 32), check(*state, back + 33);
}

TEST_F(CutDhsa, gradients_reach_queries_keys_and_values_under_a_fixed_selection) {
  const at::AutoGradMode grad(true);
  Inputs in = one(0, 24);
  in.q = in.q.detach().clone().requires_grad_(), in.k = in.k.detach().clone().requires_grad_(),
  in.v = in.v.detach().clone().requires_grad_();
  test::expect_gradients([&] { return dhsa_.attend(in).out.square().sum(); }, {in.q, in.k, in.v}, 1e-5, 4);
}

TEST_F(CutDhsa, refuses_heads_that_do_not_divide) {
  EXPECT_EQ(message_of([&] { boundary_parts(12, {.heads = 5}); }),
            "dhsa: boundary_heads must divide the 12 numbers of a token's keys, got 5");
  in_.learned = nullptr;
  EXPECT_EQ(message_of([&] { dhsa_.attend(in_); }),
            "dhsa: has learned parts, got no adapter; give the file that training wrote");
}

}  // namespace
}  // namespace foveate::attention
