// Superlinear attention against its specification as masks in double, its golden numbers, and the coverage of its
// spans.
#include "foveate/attention/sparse/superlinear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <set>

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

double dot(const Array& x, int64_t b, int64_t h, int64_t i, const Array& y, int64_t g, int64_t j) {
  double sum = 0;
  for (int64_t d = 0; d < x.shape[3]; ++d) sum += x.at(b, h, i, d) * y.at(b, g, j, d);
  return sum;
}

int64_t stripe_of(const Superlinear& o, int64_t i) {
  return int64_t(std::floor(std::pow(double(i), 1 / o.search_power) + 1e-9));
}

// What a query at q that sees keys [first, q] reads: for each span the set of its keys and of the window's.
struct Chosen {
  std::vector<double> values;
  std::vector<std::set<int64_t>> keys;
  std::vector<int64_t> anchors;
};

Chosen choose(const Superlinear& o, const Array& qs, const Array& k, int64_t b, int64_t h, int64_t i, int64_t q,
              int64_t first) {
  const int64_t kv = h / (qs.shape[1] / k.shape[1]), window = stripe_of(o, o.sw_index + 1) - 1, n = q + 1 - first;
  std::vector<std::pair<double, int64_t>> order;  // (-value, anchor): the older anchor first
  for (int64_t s = o.sw_index + 1; q - stripe_of(o, s) + 1 >= first; ++s) {
    const int64_t t = q - stripe_of(o, s) + 1;
    order.emplace_back(-o.search_scale * dot(qs, b, h, i, k, kv, t), t);
  }
  std::sort(order.begin(), order.end());
  Chosen chosen;
  for (int64_t r = 0; r < o.num_spans; ++r) {
    std::set<int64_t> keys;
    for (int64_t j = std::max(first, q - window + 1); j <= q; ++j) keys.insert(j);
    const bool is_there = r < std::ssize(order);
    chosen.values.push_back(is_there ? -order[size_t(r)].first : -INFINITY);
    chosen.anchors.push_back(is_there ? order[size_t(r)].second : -1);
    if (is_there) {
      const int64_t t = order[size_t(r)].second,
                    back = int64_t(std::ceil(o.backward_factor * std::pow(double(n), o.span_power))),
                    ahead = int64_t(std::ceil(o.forward_factor * std::pow(double(n), o.span_power)));
      for (int64_t j = std::max(first, t - back); j <= std::min(t + ahead, q - window); ++j) keys.insert(j);
    }
    chosen.keys.push_back(keys);
  }
  return chosen;
}

at::Tensor oracle(const Superlinear& o, const at::Tensor& search, const Inputs& in,
                  const std::vector<int64_t>& firsts = {0, 0}) {
  const Array qs = to_array(search), q = to_array(in.q), k = to_array(in.k), v = to_array(in.v);
  Array out(q.shape[0], q.shape[1], q.shape[2], v.shape[3]);
  const double scale = 1 / std::sqrt(double(q.shape[3]));
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t position = k.shape[2] - q.shape[2] + i, kv = h / (q.shape[1] / k.shape[1]),
                      first = firsts[size_t(b)];
        if (position < first) continue;
        const Chosen chosen = choose(o, qs, k, b, h, i, position, first);
        double total = 0;
        std::vector<double> gates;
        const bool any = chosen.anchors[0] >= 0;
        for (const double value : chosen.values) gates.push_back(any ? std::exp(value - chosen.values[0]) : 1);
        for (const double gate : gates) total += gate;
        for (size_t r = 0; r < gates.size(); ++r) {
          double sum = 0;
          for (const int64_t j : chosen.keys[r]) sum += std::exp(scale * dot(q, b, h, i, k, kv, j));
          for (const int64_t j : chosen.keys[r])
            for (int64_t d = 0; d < v.shape[3]; ++d)
              out.at(b, h, i, d) +=
                  gates[r] / total * std::exp(scale * dot(q, b, h, i, k, kv, j)) / sum * v.at(b, kv, j, d);
        }
      }
  return to_tensor(out);
}

Inputs sample(int64_t length, at::ScalarType type = at::kDouble) {
  return test::random_call(length, length, {.type = type});
}

std::vector<Superlinear> variants() {
  return {{.num_spans = 2,
           .sw_index = 1,
           .backward_factor = 1,
           .forward_factor = 0,
           .search_power = 0.5,
           .span_power = 0.5},
          {.num_spans = 3,
           .sw_index = 2,
           .backward_factor = 2,
           .forward_factor = 1,
           .search_power = 0.55,
           .span_power = 0.55},
          {.num_spans = 2,
           .sw_index = 0,
           .backward_factor = 1,
           .forward_factor = 0.5,
           .search_power = 1 / 3.0,
           .span_power = 0.7},
          {.num_spans = 1,
           .sw_index = 1,
           .backward_factor = 0.5,
           .forward_factor = 2,
           .search_power = 0.7,
           .span_power = 0.3,
           .search_scale = 0.4},
          {.num_spans = 30,
           .sw_index = 1,
           .backward_factor = 1,
           .forward_factor = 0,
           .search_power = 0.5,
           .span_power = 0.4}};
}

TEST(Superlinear, equals_masks_span_by_span) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(61);
  for (const Superlinear& o : variants()) {
    EXPECT_TRUE(same(o.attend(in).out, oracle(o, in.q, in), {1e-11, 1e-11})) << to_spec(o).text();
    const at::Tensor search = random_tensor({2, 4, 61, 8}, 7, at::kDouble);
    EXPECT_TRUE(same(superlinear(o, search, in.k, in).out, oracle(o, search, in), {1e-11, 1e-11}));
    Inputs single = sample(300, at::kFloat);
    const at::Tensor want = oracle(o, single.q, single);
    EXPECT_TRUE(same(o.attend(single).out, want, {2e-5, 2e-5})) << to_spec(o).text();
  }
}

TEST(Superlinear, has_the_golden_numbers) {
  const Superlinear o = variants()[0];
  std::vector<double> k, v;
  for (int j = 0; j < 12; ++j) {
    k.push_back((7 * j % 5 - 2) / 2.0), k.push_back((3 * j % 4 - 1) / 2.0);
    v.push_back(j), v.push_back(j % 3);
  }
  for (const int64_t queries : {1, 12}) {  // as a decoded row and as the last of many
    const auto all = [&](double x, double y) {
      return at::tensor({x, y}, at::kDouble).view({1, 1, 1, 2}).expand({1, 1, queries, 2}).contiguous();
    };
    Inputs in;
    in.q = all(0.5, 1);
    in.k = at::tensor(k, at::kDouble).view({1, 1, 12, 2});
    in.v = at::tensor(v, at::kDouble).view({1, 1, 12, 2});
    const at::Tensor search = all(1, -0.5);
    const Spans spans = choose_spans(o, search, in.k, in);
    const auto last = [&](const at::Tensor& t) { return t.select(2, queries - 1).flatten(); };
    const auto longs = [](const std::vector<int64_t>& x) { return at::tensor(x, at::kLong); };
    EXPECT_TRUE(last(spans.anchor).equal(longs({8, 3})));
    EXPECT_TRUE(last(spans.start).equal(longs({4, 0})));
    EXPECT_TRUE(last(spans.end).equal(longs({9, 4})));
    EXPECT_EQ(o.window(), 3);
    const at::Tensor out = superlinear(o, search, in.k, in).out.narrow(2, queries - 1, 1).flatten();
    EXPECT_TRUE(same(out, at::tensor({6.542439, .921499}, at::kDouble), {1e-6, 0}));
  }
}

TEST(Superlinear, stripes_and_windows_are_the_published_ones) {
  EXPECT_EQ(Superlinear{}.window(), 2032);
  EXPECT_EQ((Superlinear{.sw_index = 3, .search_power = 0.5}.window()), 15);
  EXPECT_EQ((Superlinear{.sw_index = 0}.window()), 0);
  const Superlinear cubes{.search_power = 1 / 3.0}, squares{.search_power = 0.5};
  for (const int64_t i : {1, 7, 464, 207000}) {
    EXPECT_EQ(cubes.stripe(i), std::min(i * i * i, int64_t{1} << 53));
    EXPECT_EQ(squares.stripe(i), i * i);
  }
  // 10 million tokens: 7,079 anchors at power 0.55, ascending; 3,162 at 0.5.
  int64_t anchors = 0;
  for (int64_t before = 0; Superlinear{}.stripe(anchors + 1) <= 10'000'000; ++anchors) {
    ASSERT_GT(Superlinear{}.stripe(anchors + 1), before);
    before = Superlinear{}.stripe(anchors + 1);
  }
  EXPECT_EQ(anchors, 7079);
  EXPECT_EQ(squares.stripe(3162), 9'998'244);
}

TEST(Superlinear, spans_of_the_presets_cover_everything) {
  const auto misses = [](const Superlinear& o, int64_t most, int64_t step) {
    int64_t count = 0;
    for (int64_t n = 1; n <= most; n += step) {
      // By sets of keys, for short texts; the predicate for all.
      if (n < 400) {
        std::set<int64_t> seen;
        const int64_t q = n - 1, window = o.window();
        for (int64_t j = std::max<int64_t>(0, q - window + 1); j <= q; ++j) seen.insert(j);
        for (int64_t i = o.sw_index + 1; stripe_of(o, i) <= n; ++i) {
          const int64_t t = q - stripe_of(o, i) + 1,
                        back = int64_t(std::ceil(o.backward_factor * std::pow(double(n), o.span_power))),
                        ahead = int64_t(std::ceil(o.forward_factor * std::pow(double(n), o.span_power)));
          for (int64_t j = std::max<int64_t>(0, t - back); j <= std::max(t, std::min(t + ahead, q - window)); ++j)
            seen.insert(j);
        }
        EXPECT_EQ(o.covers(n), std::ssize(seen) == n) << n;
      }
      count += !o.covers(n);
    }
    return count;
  };
  const auto of = [](double backward, double forward, double p, double s, int64_t sw_index) {
    return Superlinear{.sw_index = sw_index,
                       .backward_factor = backward,
                       .forward_factor = forward,
                       .search_power = p,
                       .span_power = s};
  };
  EXPECT_EQ(misses(of(2, 0, 0.5, 0.5, 3), 3000, 1), 0);
  EXPECT_GT(misses(of(1, 0, 0.5, 0.5, 3), 3000, 1), 2000);
  EXPECT_GT(misses(of(1.5, 0.5, 0.5, 0.5, 3), 3000, 1), 0);
  EXPECT_GT(misses(of(1, 1, 0.5, 0.5, 3), 3000, 1), 0);
  EXPECT_EQ(misses(of(2, 0, 0.55, 0.45, 5), 4000, 7), 0);
  const int64_t few = misses(of(1, 0, 0.55, 0.55, 5), 4000, 1);
  EXPECT_TRUE(few > 0 && few < 400) << few;
  EXPECT_EQ(misses(of(3, 1, 0.55, 0.55, 5), 4000, 7), 0);
  for (const int64_t n : {2033, 5000, 100'000, 1'000'000}) EXPECT_TRUE(Superlinear{}.covers(n)) << n;
}

TEST(Superlinear, anchors_begin_where_the_window_ends) {
  const at::NoGradGuard no_grad;
  Superlinear o{
      .num_spans = 3, .sw_index = 1, .backward_factor = 1, .forward_factor = 5, .search_power = 0.5, .span_power = 0.5};
  Inputs in;
  in.k = random_tensor({1, 1, 21, 4}, 1), in.v = in.k, in.q = random_tensor({1, 1, 1, 4}, 2);
  const Spans spans = choose_spans(o, in.q, in.k, in);
  EXPECT_TRUE(std::get<0>(spans.anchor.flatten().sort()).equal(at::tensor({5, 12, 17}, at::kLong)));
  EXPECT_TRUE(spans.end.le(18).all().item<bool>());  // the window is 18 .. 20
  in.k = at::zeros({1, 1, 21, 4}), o.num_spans = 2;
  EXPECT_TRUE(choose_spans(o, in.q, in.k, in).anchor.flatten().equal(at::tensor({5, 12}, at::kLong)));  // ties: older
}

TEST(Superlinear, equal_scores_of_all_anchors_mix_evenly_and_short_texts_are_dense) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(60);
  const at::Tensor dense = Dense{}.attend(in).out;
  EXPECT_TRUE(Superlinear{}.attend(in).out.equal(dense));
  // One span that reaches everything.
  const Superlinear all{
      .num_spans = 1, .sw_index = 2, .backward_factor = 1000, .forward_factor = 1000, .search_power = 0.5};
  EXPECT_TRUE(same(all.attend(in).out, dense, {1e-11, 1e-11}));
  const Superlinear o = variants()[4];
  const at::Tensor nothing = at::zeros_like(in.q);
  EXPECT_TRUE(same(superlinear(o, nothing, in.k, in).out, oracle(o, nothing, in), {1e-11, 1e-11}));
}

TEST(Superlinear, gradients_are_those_of_finite_differences) {
  for (const Superlinear& o : {variants()[0], variants()[1], variants()[2]}) {
    Inputs in = sample(30);
    const at::Tensor search = random_tensor({1, 4, 30, 8}, 7, at::kDouble);
    for (at::Tensor* t : {&in.q, &in.k, &in.v}) *t = t->narrow(0, 0, 1).clone();
    const at::Tensor weight = random_tensor({1, 4, 30, 5}, 8, at::kDouble);
    test::expect_gradients([&] { return (superlinear(o, search, in.k, in).out * weight).sum(); },
                           {search, in.q, in.k, in.v}, 1e-7, 80);
    EXPECT_GT(search.grad().abs().sum().item<double>(), 0.1);
  }
}

TEST(Superlinear, gradients_of_the_kernels_are_those_of_the_definition) {
  for (const Superlinear& o : {variants()[0], variants()[1]}) {
    std::vector<at::Tensor> gradients[2];
    for (const bool single : {false, true}) {
      Inputs in = sample(200, at::kFloat);
      for (at::Tensor* t : {&in.q, &in.k, &in.v}) *t = t->to(single ? at::kFloat : at::kDouble).requires_grad_();
      (o.attend(in).out * random_tensor({2, 4, 200, 5}, 8)).sum().backward();
      for (const at::Tensor* t : {&in.q, &in.k, &in.v}) gradients[single].push_back(t->grad());
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same(gradients[1][i], gradients[0][i], {2e-4, 2e-4})) << i;
  }
}

TEST(Superlinear, a_state_gives_the_rows_of_one_prefill) {
  const at::NoGradGuard no_grad;
  const Inputs in = sample(130);
  for (const Superlinear& o : variants())
    for (const int64_t step : {1, 29}) {
      const auto state = o.make_state({});
      std::vector<at::Tensor> outs = {state->prefill(rows_of(in, 0, 13)).out};
      for (int64_t first = 13; first < 130; first += step)
        outs.push_back(state->decode(rows_of(in, first, std::min<int64_t>(step, 130 - first))).out);
      ASSERT_TRUE(same(at::cat(outs, 2), o.attend(in).out, {1e-11, 1e-11})) << to_spec(o).text() << " by " << step;
    }
}

TEST(Superlinear, padding_on_the_left_only_moves_the_text) {
  const at::NoGradGuard no_grad;
  Inputs in = sample(70);
  in.rule.row_start = at::tensor({9, 0}, at::kLong).view({2, 1, 1}).expand({2, 1, 70});
  for (const Superlinear& o : variants())
    EXPECT_TRUE(same(o.attend(in).out, oracle(o, in.q, in, {9, 0}), {1e-11, 1e-11})) << to_spec(o).text();
  in.rule.row_start = std::nullopt;
  const at::Tensor want = variants()[1].attend(in).out;
  in.rule.key_lengths = at::tensor({50, 70}, at::kLong);
  in.k[0].narrow(1, 50, 20).fill_(NAN), in.v[0].narrow(1, 50, 20).fill_(NAN);
  const at::Tensor got = variants()[1].attend(in).out;
  EXPECT_TRUE(got.isfinite().all().item<bool>());
  EXPECT_TRUE(same(got[0].narrow(1, 0, 50), want[0].narrow(1, 0, 50), {1e-11, 1e-11}));
}

TEST(Superlinear, a_learned_search_query_is_rotated_as_queries_are) {
  const at::NoGradGuard no_grad;
  Superlinear o = variants()[1];
  o.search = Superlinear::Search::learned;
  const ops::Rotary rotary(8, 100);
  Inputs in = sample(50);
  in.rotary = &rotary;
  EXPECT_THROW(o.attend(in), Error);
  const auto parts = o.learned_parts({.width = 12, .heads = 4, .kv_heads = 2, .head_dim = 8, .value_dim = 5});
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].sizes, (std::vector<int64_t>{32, 12}));
  const Learned learned = {{"search_query", random_tensor({32, 12}, 5, at::kDouble)}};
  in.learned = &learned;
  EXPECT_THROW(o.attend(in), Error);
  in.hidden = random_tensor({2, 50, 12}, 6, at::kDouble);
  const at::Tensor projected = at::linear(*in.hidden, learned.at("search_query")).view({2, 50, 4, 8}).transpose(1, 2);
  const at::Tensor search = rotary.rotate(projected, at::arange(50, at::kLong));
  EXPECT_TRUE(same(o.attend(in).out, oracle(o, search, in), {1e-11, 1e-11}));
  const auto state = o.make_state({});
  std::vector<at::Tensor> outs;
  for (int64_t row = 0; row < 50; row += 10) {
    Inputs part = rows_of(in, row, 10);
    part.hidden = in.hidden->narrow(1, row, 10);
    outs.push_back(state->decode(part).out);
  }
  EXPECT_TRUE(same(at::cat(outs, 2), o.attend(in).out, {1e-11, 1e-11}));
}

TEST(Superlinear, says_what_it_cannot_do) {
  const Superlinear o = variants()[0];
  Inputs in = sample(40);
  in.rule.key_documents = in.rule.query_documents = at::arange(40, at::kLong).remainder(2).expand({2, 40});
  EXPECT_THROW(o.attend(in), Error);
  in = sample(40), in.rule = Rule::full();
  EXPECT_THROW(o.attend(in), Error);
  in = sample(40);
  EXPECT_THROW((Superlinear{.num_spans = 0}.attend(in)), Error);
  EXPECT_THROW((Superlinear{.sw_index = -1}.attend(in)), Error);
  EXPECT_THROW((Superlinear{.search_power = 1}.attend(in)), Error);
  EXPECT_THROW((Superlinear{.backward_factor = 0}.attend(in)), Error);
}

}  // namespace
}  // namespace foveate::attention
