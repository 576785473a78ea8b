// CCA against its specification as plain loops in double, its golden numbers, and what its cache must hold.
#include "foveate/attention/sparse/cca.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "foveate/attention/dense.h"
#include "foveate/base/error.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::random_tensor;
using test::rows_of;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr double kBase = 50;

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

std::vector<double> row(const Array& x, int64_t b, int64_t h, int64_t i) {
  std::vector<double> out;
  for (int64_t d = 0; d < x.shape[3]; ++d) out.push_back(x.at(b, h, i, d));
  return out;
}

// x rotated by `positions`, rotate-half, written out.
std::vector<double> rotated(const std::vector<double>& x, double positions) {
  const size_t half = x.size() / 2;
  std::vector<double> out(x.size());
  for (size_t d = 0; d < half; ++d) {
    const double angle = positions * std::pow(kBase, -2.0 * double(d) / double(x.size()));
    out[d] = x[d] * std::cos(angle) - x[d + half] * std::sin(angle);
    out[d + half] = x[d + half] * std::cos(angle) + x[d] * std::sin(angle);
  }
  return out;
}

std::vector<double> softmax(std::vector<double> s) {
  double top = -INFINITY, sum = 0;
  for (const double x : s) top = std::max(top, x);
  for (double& x : s) sum += x = std::exp(x - top);
  for (double& x : s) x /= sum;
  return s;
}

struct Entry {
  std::vector<double> k, v;
  double bias = 0;
};

// The core of group c as query head h sees it; the first token of `k` sits at `origin` of the text.
Entry core_of(const Cca& o, const Array& q, const Array& k, const Array& v, int64_t b, int64_t h, int64_t c,
              double scale, int64_t origin) {
  const int64_t repeats = q.shape[1] / k.shape[1], kv = h / repeats, first = c * o.group, last = first + o.group - 1;
  std::vector<double> query = row(q, b, h, last), weights(size_t(o.group), 1 / double(o.group));
  if (o.gqa_pool == Cca::GqaPool::per_kv_head)
    for (size_t d = 0; d < query.size(); ++d) {
      query[d] = 0;
      for (int64_t r = 0; r < repeats; ++r) query[d] += q.at(b, kv * repeats + r, last, int64_t(d)) / double(repeats);
    }
  if (o.pool == Cca::Pool::last) weights.assign(size_t(o.group), 0), weights.back() = 1;
  if (o.pool == Cca::Pool::cca) {
    for (int64_t t = 0; t < o.group; ++t) weights[size_t(t)] = scale * dot(query, row(k, b, kv, first + t));
    weights = softmax(weights);
  }
  const auto pool = [&](const Array& x, bool unrotate) {
    std::vector<double> sum(size_t(x.shape[3]), o.pool == Cca::Pool::max ? -INFINITY : 0);
    for (int64_t t = 0; t < o.group; ++t) {
      std::vector<double> one = row(x, b, kv, first + t);
      if (unrotate) one = rotated(one, -double(origin + first + t));
      for (size_t d = 0; d < one.size(); ++d)
        sum[d] = o.pool == Cca::Pool::max ? std::max(sum[d], one[d]) : sum[d] + weights[size_t(t)] * one[d];
    }
    return sum;
  };
  const bool pre = o.pool_stage == Cca::PoolStage::pre_rope;
  Entry e{pool(k, pre), pool(v, false), o.log_count_bias ? std::log(double(o.group)) : 0};
  const int64_t place = o.core_position == Cca::CorePosition::last ? o.group - 1 : o.group / 2;
  if (pre) e.k = rotated(e.k, double(origin + first + place));
  return e;
}

// All rows of one text: core tokens and tokens in one list, one softmax.
at::Tensor oracle(const Cca& o, const at::Tensor& q_rows, const at::Tensor& k_rows, const at::Tensor& v_rows,
                  int64_t origin = 0) {
  const Array q = to_array(q_rows), k = to_array(k_rows), v = to_array(v_rows);
  const double scale = 1 / std::sqrt(double(q.shape[3]));
  Array out(q.shape[0], q.shape[1], q.shape[2], v.shape[3]);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t n = i + 1, kv = h / (q.shape[1] / k.shape[1]);
        int64_t j = 0;
        while ((j + 1) * o.group + o.window <= n) ++j;
        std::vector<Entry> seen;
        const auto token = [&](int64_t t) { seen.push_back({row(k, b, kv, t), row(v, b, kv, t)}); };
        for (int64_t c = 0; c < j; ++c)
          if (c < o.sink_groups) {
            for (int64_t t = c * o.group; t < (c + 1) * o.group; ++t) token(t);
          } else {
            seen.push_back(core_of(o, q, k, v, b, h, c, scale, origin));
          }
        for (int64_t t = j * o.group; t < n; ++t) token(t);
        std::vector<double> s;
        for (const Entry& e : seen) s.push_back(scale * dot(row(q, b, h, i), e.k) + e.bias);
        const auto weights = softmax(s);
        for (size_t e = 0; e < seen.size(); ++e)
          for (int64_t d = 0; d < v.shape[3]; ++d) out.at(b, h, i, d) += weights[e] * seen[e].v[size_t(d)];
      }
  return to_tensor(out);
}

Inputs sample(int64_t length, at::ScalarType type = at::kDouble) {
  static const ops::Rotary rotary(8, kBase);
  Inputs in = test::random_call(length, length, {.type = type});
  in.rotary = &rotary;
  return in;
}

std::vector<Cca> variants() {
  using enum Cca::Pool;
  constexpr auto kPre = Cca::PoolStage::pre_rope;
  constexpr auto kShared = Cca::GqaPool::per_kv_head;
  return {
      {.group = 4, .window = 8},
      {.group = 3, .window = 5, .gqa_pool = kShared},
      {.group = 5, .window = 1, .pool = mean},
      {.group = 4, .window = 6, .pool = max, .pool_stage = kPre},
      {.group = 4, .window = 6, .pool = last, .log_count_bias = true},
      {.group = 4, .window = 7, .pool_stage = kPre},
      {.group = 5, .window = 7, .pool_stage = kPre, .core_position = Cca::CorePosition::centre, .gqa_pool = kShared},
      {.group = 4, .window = 6, .sink_groups = 2, .log_count_bias = true},
      {.group = 4, .window = 6, .sink_groups = 30},
      {.group = 1, .window = 3},
      {.group = 16, .window = 3}};
}

TEST(Cca, equals_its_definition) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(43);
  for (const Cca& o : variants())
    EXPECT_TRUE(same(o.attend(in).out, oracle(o, in.q, in.k, in.v), {1e-11, 1e-11})) << to_spec(o).text();
}

TEST(Cca, has_the_golden_numbers) {
  const auto make = [](const auto& number) {
    std::vector<double> values;
    for (int j = 0; j < 8; ++j)
      for (int d = 0; d < 2; ++d) values.push_back(number(j, d));
    return at::tensor(values, at::kDouble).view({1, 1, 8, 2});
  };
  Inputs in;
  in.q = make([](int j, int d) { return d ? (7 * j % 5 - 2) / 2.0 : 2 * j % 3 - 1; });
  in.k = make([](int j, int d) { return d ? (5 * j % 4 - 1) / 2.0 : (3 * j % 5 - 2) / 2.0; });
  in.v = make([](int j, int d) { return double(d ? j % 2 : j); });
  const Cca o{.group = 2, .window = 2};
  const int64_t cores[] = {0, 0, 0, 1, 1, 2, 2, 3};
  for (int64_t n = 1; n <= 8; ++n) EXPECT_EQ(o.cores_of(n), cores[n - 1]);
  const CcaCores pooled = cca_pool(o, in.q.slice(2, 1, 8, 2), in.k, in.v, 1 / std::sqrt(2.0));
  const auto want = [](const std::vector<double>& values) {
    return at::tensor(values, at::kDouble).view({1, 1, -1, 2});
  };
  constexpr test::Bound kPrinted{1e-6, 0};
  EXPECT_TRUE(
      same(pooled.weights, want({.257183, .742817, .775118, .224882, .587479, .412521, .587479, .412521}), kPrinted));
  EXPECT_TRUE(
      same(pooled.k, want({.114225, -.128592, -.162676, .612441, -.412521, -.293740, .087479, .706260}), kPrinted));
  EXPECT_TRUE(
      same(pooled.v, want({.742817, .742817, 2.224882, .224882, 4.412521, .412521, 6.412521, .412521}), kPrinted));
  EXPECT_TRUE(same(o.attend(in).out,
                   want({0, 0, .742817, .742817, 1.230921, .319866, 1.653741, .424478, 2.582458, .653159, 3.107825,
                         .470117, 3.729251, .513556, 4.453795, .423273}),
                   kPrinted));
}

TEST(Cca, splits_the_past_exactly) {
  for (const Cca& o : variants())
    for (int64_t n = 1; n < 200; ++n) {
      const int64_t latest = n - o.cores_of(n) * o.group;
      if (n < o.window) {
        EXPECT_EQ(latest, n);
      }
      if (n >= o.window) {
        EXPECT_TRUE(latest >= o.window && latest < o.window + o.group) << n;
      }
    }
}

TEST(Cca, is_dense_where_groups_are_tokens_or_the_window_is_long) {
  const Inputs in = sample(40);
  const at::Tensor want = Dense{}.attend(in).out;
  EXPECT_TRUE(same(Cca{.group = 1, .window = 2}.attend(in).out, want, {1e-12, 1e-12}));
  EXPECT_TRUE((Cca{.group = 4, .window = 40}.attend(in).out.equal(want)));
}

TEST(Cca, pooling_the_hidden_state_is_pooling_its_projections) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({1, 1, 24, 12}, 5, at::kDouble), to_k = random_tensor({12, 8}, 6, at::kDouble);
  const at::Tensor k = at::matmul(x, to_k), q = random_tensor({1, 1, 6, 8}, 7, at::kDouble);
  const CcaCores cores = cca_pool(Cca{.group = 4}, q, k, x, 0.3);
  EXPECT_TRUE(same(cores.weights.sum(-1), at::ones_like(cores.weights.sum(-1)), {1e-14, 0}));
  EXPECT_TRUE(same(at::matmul(cores.v, to_k), cores.k, {1e-12, 1e-12}));
  const at::Tensor alike = k.slice(2, 0, 24, 4).repeat_interleave(4, 2);  // groups of equal keys
  EXPECT_TRUE(same(cca_pool(Cca{.group = 4}, q, alike, x, 0.3).k, k.slice(2, 0, 24, 4), {1e-12, 1e-12}));
}

TEST(Cca, gradients_are_those_of_finite_differences) {
  for (const Cca& o : {variants()[0], variants()[5], variants()[6], variants()[7]}) {
    Inputs in = sample(15);
    for (at::Tensor* t : {&in.q, &in.k, &in.v}) *t = t->narrow(0, 0, 1).clone();
    const at::Tensor weight = random_tensor({1, 4, 15, 5}, 8, at::kDouble);
    test::expect_gradients([&] { return (o.attend(in).out * weight).sum(); }, {in.q, in.k, in.v}, 1e-7, 240);
  }
}

TEST(Cca, the_gradient_of_weights_can_be_stopped) {
  Inputs in = sample(15);
  in.q.requires_grad_();
  const auto gradient = [&](bool flows) {
    in.q.mutable_grad() = at::Tensor();
    Cca{.group = 4, .window = 3, .weight_gradient = flows}.attend(in).out.narrow(2, 14, 1).sum().backward();
    return in.q.grad().narrow(2, 0, 14).abs().sum().item<double>();  // other rows matter through cores alone
  };
  EXPECT_GT(gradient(true), 0.01);
  EXPECT_EQ(gradient(false), 0);
}

TEST(Cca, a_state_gives_the_rows_of_one_prefill) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(150);
  for (const Cca& o : variants())
    for (const int64_t step : {1, 17}) {
      const auto state = o.make_state({});
      std::vector<at::Tensor> outs = {state->prefill(rows_of(in, 0, 13)).out};
      for (int64_t first = 13; first < 150; first += step)
        outs.push_back(state->decode(rows_of(in, first, std::min<int64_t>(step, 150 - first))).out);
      ASSERT_TRUE(same(at::cat(outs, 2), o.attend(in).out, {1e-11, 1e-11})) << to_spec(o).text() << " by " << step;
    }
}

TEST(Cca, a_state_reads_what_the_formula_says_and_stays_small) {
  const at::NoGradGuard no_grad;
  const Cca o{.group = 4, .window = 10, .gqa_pool = Cca::GqaPool::per_kv_head};
  const Inputs in = sample(700);
  const auto state = o.make_state({});
  const int64_t token = 2 * 2 * (8 + 5) * 8;  // batch, key heads, key and value, fp64
  for (int64_t n = 1; n <= 700; ++n) {
    state->decode(rows_of(in, n - 1, 1));
    const int64_t cores = n < 10 ? 0 : (n - 10) / 4;
    ASSERT_EQ(state->read_bytes(), (cores + n - 4 * cores) * token) << n;
  }
  EXPECT_LE(state->bytes(), (3 * 700 / 4 / 2 + 4 * (10 + 64)) * token);
  EXPECT_THROW(state->truncate(300), Error);
  // The published share of keys and values that is left, of all groups' cores and the window.
  for (const auto& [length, percent] : {std::pair<int64_t, double>{32, 9.38}, {64, 7.81}, {128, 7.03}})
    EXPECT_NEAR(100 * (double(length * 1024 / 16) + 1024) / double(length * 1024), percent, 0.006);
}

TEST(Cca, goes_back_as_far_as_was_asked) {
  const at::NoGradGuard no_grad;
  const Cca o{.group = 4, .window = 6, .sink_groups = 1};
  const Inputs in = sample(300);
  const at::Tensor want = o.attend(in).out;
  const auto state = o.make_state({.rule = {}, .rollback = 30});
  state->prefill(rows_of(in, 0, 200));
  for (const int64_t length : {200, 230, 260})
    for (int64_t again = 0; again < 2; ++again) {
      EXPECT_TRUE(same(state->decode(rows_of(in, length, 30)).out, want.narrow(2, length, 30), {1e-11, 1e-11}));
      if (again == 0) state->truncate(length);
    }
}

TEST(Cca, changes_granularity_only_where_everything_was_kept) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(160);
  const Cca other{.group = 5, .window = 9};
  const auto kept = Cca{.group = 4, .window = 6, .keep_raw = true}.make_state({});
  kept->prefill(rows_of(in, 0, 150));
  change_granularity(*kept, 5, 9);
  EXPECT_TRUE(same(kept->decode(rows_of(in, 150, 10)).out, other.attend(in).out.narrow(2, 150, 10), {1e-11, 1e-11}));
  Inputs low = in;  // pooled without queries, from 8-bit rows
  for (at::Tensor* t : {&low.q, &low.k, &low.v}) *t = t->to(at::kBFloat16);
  const auto mean = Cca{.group = 4, .window = 6, .pool = Cca::Pool::mean, .keep_raw = true}.make_state(
      {.rule = {}, .rollback = 0, .cache = CacheType::q8});
  mean->prefill(rows_of(low, 0, 150));
  change_granularity(*mean, 5, 9);
  const at::Tensor want = Cca{.group = 5, .window = 9, .pool = Cca::Pool::mean}.attend(low).out.narrow(2, 150, 10);
  EXPECT_TRUE(same(mean->decode(rows_of(low, 150, 10)).out, want, {0.05, 0.05}));
  const auto dropped = Cca{.group = 4, .window = 6}.make_state({});
  dropped->prefill(rows_of(in, 0, 150));
  EXPECT_THROW(change_granularity(*dropped, 5, 9), Error);
  EXPECT_THROW(change_granularity(*Dense{}.make_state({}), 5, 9), Error);
  EXPECT_THROW(change_granularity(*kept, 0, 9), Error);
  EXPECT_THROW(other.make_state({})->load(dropped->save()), Error);
}

TEST(Cca, padding_moves_the_groups) {
  const at::NoGradGuard no_grad;
  Inputs in = sample(50);
  const int64_t pads[] = {7, 0};
  in.rule.row_start = at::tensor({7, 0}, at::kLong).view({2, 1, 1}).expand({2, 1, 50});
  for (const Cca& o : {variants()[0], variants()[5], variants()[7]}) {
    const at::Tensor got = o.attend(in).out;
    for (int64_t b = 0; b < 2; ++b) {
      const auto own = [&](const at::Tensor& t) { return t.narrow(0, b, 1).narrow(2, pads[b], 50 - pads[b]); };
      EXPECT_TRUE(same(own(got), oracle(o, own(in.q), own(in.k), own(in.v), pads[b]), {1e-11, 1e-11})) << b;
    }
    EXPECT_EQ(got[0].narrow(1, 0, 7).abs().sum().item<double>(), 0);  // rows of padding see nothing
    in.first_position = 101;                                          // of the call, not of the texts
    EXPECT_TRUE(o.attend(in).out.equal(got));
    in.first_position.reset();
  }
  Inputs right = sample(50);
  right.rule.key_lengths = at::tensor({41, 50}, at::kLong);
  right.k[0].narrow(1, 41, 9).fill_(NAN);
  right.v[0].narrow(1, 41, 9).fill_(NAN);
  const Inputs clean = sample(50);
  const at::Tensor got = variants()[0].attend(right).out;
  EXPECT_TRUE(got.isfinite().all().item<bool>());
  EXPECT_TRUE(same(got[0].narrow(1, 0, 41), variants()[0].attend(clean).out[0].narrow(1, 0, 41), {1e-11, 1e-11}));
}

TEST(Cca, sees_whole_groups_inside_a_layers_own_window) {
  const at::NoGradGuard no_grad;
  Inputs in = sample(60);
  in.rule.window_left = 19;
  const Cca o{.group = 1, .window = 5};  // groups of one token are always whole
  EXPECT_TRUE(same(o.attend(in).out, Dense{}.attend(in).out, {1e-12, 1e-12}));
  EXPECT_TRUE((Cca{.group = 4, .window = 20}.attend(in).out.equal(Dense{}.attend(in).out)));
  const Cca wide{.group = 4, .window = 6};
  Inputs other = in;
  other.v = in.v.clone();
  other.v.narrow(2, 0, 24).add_(1);  // row 40 sees tokens from 21 on: groups from 24 on
  EXPECT_TRUE(wide.attend(other).out.narrow(2, 40, 20).equal(wide.attend(in).out.narrow(2, 40, 20)));
}

TEST(Cca, says_what_it_cannot_do) {
  const auto fails = [](const Inputs& in, Cca o, std::string_view part) {
    try {
      o.attend(in);
      FAIL() << "no error with " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  const Cca o{.group = 4, .window = 6};
  Inputs in = sample(40);
  in.rule.key_documents = in.rule.query_documents = at::arange(40, at::kLong).remainder(2).expand({2, 40});
  fails(in, o, "documents");
  in = sample(40), in.rule = Rule::full();
  fails(in, o, "causal");
  in = sample(40), in.score.slopes = at::ones({4}, at::kDouble);
  fails(in, o, "no place");
  in = sample(40), in.rotary = nullptr;
  fails(in, {.group = 4, .window = 6, .pool_stage = Cca::PoolStage::pre_rope}, "rotary");
  in = sample(40), in.q = in.q.narrow(2, 30, 10);
  fails(in, o, "keep a state");
  EXPECT_NO_THROW((Cca{.group = 4, .window = 6, .pool = Cca::Pool::mean}.attend(in)));
  fails(sample(40), {.group = 0}, "group must be");
  fails(sample(40), {.window = 0}, "window must be");
}

}  // namespace
}  // namespace foveate::attention
