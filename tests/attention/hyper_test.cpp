// HyperAttention against its specification as plain loops (hyper_oracle.h).
#include "foveate/attention/sparse/hyper.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "tests/attention/calls.h"
#include "tests/attention/hyper_oracle.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::same;

Tensor gradient_of(const Tensor& loss, const Tensor& leaf) {
  leaf.mutable_grad() = Tensor();
  loss.backward();
  return leaf.grad().clone();
}

// Output, lse and all gradients equal the loops'.
void expect_loops(const Hyper& o, Problem p, at::ScalarType type, double unit) {
  for (Tensor* t : {&p.in.q, &p.in.k, &p.in.v}) *t = t->to(type);
  const Tensor log_weights = oracle_log_weights(o, p);
  const Tensor d_out = random_tensor({2, 4, p.in.q.size(2), 3}, 8, at::kDouble),
               d_lse = random_tensor({2, 4, p.in.q.size(2)}, 9, at::kDouble);
  std::vector<std::vector<Tensor>> all;
  for (const bool ours : {true, false}) {
    for (Tensor* t : {&p.in.q, &p.in.k, &p.in.v}) *t = t->detach().requires_grad_();
    const ops::Attended a = ours ? hyper_attention(o, p.in, p.draws) : weighted_attention(p.in, log_weights);
    ((a.out * d_out).sum() + (a.lse * d_lse).sum()).backward();
    all.push_back({a.out, a.lse, p.in.q.grad(), p.in.k.grad(), p.in.v.grad()});
  }
  for (size_t i = 0; i < all[0].size(); ++i) EXPECT_TRUE(same(all[0][i], all[1][i], {unit, unit})) << i;
}

void expect_loops_in_both(const Hyper& o, const Problem& p) {
  expect_loops(o, p, at::kDouble, 1e-10);
  expect_loops(o, p, at::kFloat, 1e-4);
}

Problem golden() {
  Problem p;
  const Tensor i = at::arange(8, at::kDouble);
  const auto on_circle = [&](double step, double turn) {
    return at::stack({(i * step + turn).cos(), (i * step + turn).sin()}, 1).view({1, 1, 8, 2});
  };
  p.in.q = on_circle(0.9, 0.2), p.in.k = on_circle(2.3, -0.4) * 1.5;
  p.in.v = at::stack({i, (i * i).remainder(3)}, 1).view({1, 1, 8, 2});
  p.in.rule = Rule::full();
  p.draws.projections = at::tensor({1.0, 0.3, 0.2, -1.0}, at::kDouble).view({2, 2});
  p.draws.samples = {at::tensor({0, 3, 5, 6, 3}, at::kLong).view({1, 1, 1, 5})};
  return p;
}

constexpr Hyper kGolden{.lsh_num_projs = 2, .block_size = 2, .sample_size = 5, .min_seq_len = 1};

TEST(Hyper, equals_the_specs_golden) {
  const Problem p = golden();
  const ops::Attended a = hyper_attention(kGolden, p.in, p.draws);
  const Tensor out = at::tensor({3.512364, .267798, 3.343016, .433387, 3.846724, .504357, 3.306824, .720451, 3.267252,
                                 .761022, 3.731265, .689106, 2.872516, .240850, 3.799191, .146585},
                                at::kDouble);
  const Tensor lse =
      at::tensor({2.253513, 2.346248, 2.516215, 2.210858, 1.984904, 2.162957, 2.366276, 2.713048}, at::kDouble);
  EXPECT_TRUE(same(a.out.flatten(), out, {1e-6, 0}));
  EXPECT_TRUE(same(a.lse.flatten(), lse, {1e-6, 0}));
}

TEST(Hyper, causal_calls_of_any_length_equal_plain_loops) {
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5};
  // 43 -> 22 | 21 -> 11 | 11, 11 | 10 -> leaves of 6 and 5 (6 splits: no half has 5)
  expect_loops_in_both(o, make_problem(o, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}));
  expect_loops_in_both(o, make_problem(o, 64, 64, Rule{}, {{1, 32}, {2, 16}, {4, 8}}));
  Hyper other = o;
  other.gray = Hyper::Gray::reference, other.same_block_mask = false;
  expect_loops_in_both(other, make_problem(other, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}));
  other = o, other.residual = Residual::vnorm;
  expect_loops_in_both(other, make_problem(other, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}));
  other = o, other.block_size = 0, other.lsh_num_projs = 0;
  expect_loops_in_both(other, make_problem(other, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}));
  other = o, other.sample_size = 0;
  expect_loops_in_both(other, make_problem(other, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}));
  other = o, other.block_size = 32;  // long lists; no rectangle has more keys
  expect_loops_in_both(other, make_problem(other, 64, 64, Rule{}, {{1, 32}, {2, 16}, {4, 8}}));
}

TEST(Hyper, full_calls_and_chunks_over_a_cache_equal_plain_loops) {
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5};
  expect_loops_in_both(o, make_problem(o, 30, 30, Rule::full(), {{1, 30}}));
  expect_loops_in_both(o, make_problem(o, 13, 41, Rule::full(), {{1, 41}}));
  expect_loops_in_both(o, make_problem(o, 41, 13, Rule::full(), {{1, 13}}));
  expect_loops_in_both(o, make_problem(o, 22, 43, Rule{}, {{1, 21}, {1, 11}, {2, 5}}));
}

TEST(Hyper, capped_residuals_equal_plain_loops) {
  const at::NoGradGuard no_grad;
  for (const auto& [epsilon, kappa] : {std::pair(1.0, 0.0), {2.0, 1.5}, {0.5, 3.0}}) {
    const Hyper o{.lsh_num_projs = 3,
                  .block_size = 4,
                  .sample_size = 50,  // as many rows are asked: all
                  .min_seq_len = 5,
                  .residual = Residual::capped,
                  .epsilon = epsilon,
                  .kappa = kappa};
    for (const Problem& p :
         {make_problem(o, 43, 43, Rule{}, {{1, 22}, {2, 11}, {4, 5}}), make_problem(o, 30, 30, Rule::full(), {{1, 30}}),
          make_problem(o, 22, 43, Rule{}, {{1, 21}, {1, 11}, {2, 5}})}) {
      const ops::Attended want = weighted_attention(p.in, oracle_log_weights(o, p)),
                          got = hyper_attention(o, p.in, p.draws);
      EXPECT_TRUE(same(got.out, want.out, {1e-10, 1e-10})) << epsilon << " " << p.in.q.size(2);
      EXPECT_TRUE(same(got.lse, want.lse, {1e-10, 1e-10})) << epsilon << " " << p.in.q.size(2);
    }
  }
}

TEST(Hyper, a_sink_joins_every_call_once) {
  for (const Residual residual : {Residual::uniform, Residual::vnorm, Residual::capped})
    for (const Rule& rule : {Rule{}, Rule::full()}) {
      const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5, .residual = residual};
      Inputs in = make_problem(o, 43, 43, rule, {}).in;
      const HyperDraws draws = hyper_draws(o, 6, 0);
      const ops::Attended bare = hyper_attention(o, in, draws);
      const Tensor sink = random_tensor({4}, 7, at::kDouble).requires_grad_(), by_row = sink.view({1, 4, 1});
      in.score.sink = sink;
      const ops::Attended got = hyper_attention(o, in, draws);
      const Tensor lse = at::logaddexp(bare.lse, by_row);
      EXPECT_TRUE(same(got.lse, lse, {1e-12, 1e-12}));
      EXPECT_TRUE(same(got.out, bare.out * (bare.lse - lse).exp().unsqueeze(3), {1e-12, 1e-12}));
      const Tensor want = gradient_of((bare.out * (bare.lse - lse).exp().unsqueeze(3)).sum() + lse.sum(), sink);
      EXPECT_TRUE(same(gradient_of(got.out.sum() + got.lse.sum(), sink), want, {1e-10, 1e-10}));
    }
}

TEST(Hyper, is_exact_where_nothing_is_left_to_estimate) {
  const Problem p = make_problem({.lsh_num_projs = 3}, 40, 40, Rule{}, {});
  const ops::Attended want = ops::attend(p.in.q, p.in.k, p.in.v, p.in.rule);
  const auto expect_exact = [&](const Hyper& o, HyperDraws draws) {
    const ops::Attended got = hyper_attention(o, p.in, draws);
    EXPECT_TRUE(same(got.out, want.out, {1e-13, 1e-13}));
    EXPECT_TRUE(same(got.lse, want.lse, {1e-13, 1e-13}));
  };
  expect_exact({.lsh_num_projs = 3}, p.draws);  // shorter than min_seq_len
  expect_exact({.lsh_num_projs = 3, .block_size = 40, .sample_size = 0, .min_seq_len = 4}, p.draws);
  expect_exact({.lsh_num_projs = 0, .block_size = 20, .sample_size = 7, .min_seq_len = 4}, {at::zeros({6, 0})});
  // every key of a rectangle once, in any order
  HyperDraws once = p.draws;
  const auto each = [](int64_t rectangles, int64_t keys) {
    return at::arange(keys - 1, -1, -1, at::kLong).view({1, 1, 1, keys}).expand({2, 2, rectangles, keys});
  };
  once.samples = {each(1, 20), each(2, 10), each(4, 5)};
  expect_exact({.lsh_num_projs = 3, .block_size = 3, .min_seq_len = 5}, once);
  expect_exact({.lsh_num_projs = 3, .block_size = 0, .min_seq_len = 5}, once);
  expect_exact({.lsh_num_projs = 3, .block_size = 3, .sample_size = 99, .min_seq_len = 4, .replacement = false},
               p.draws);
}

TEST(Hyper, sums_of_weights_are_without_bias) {
  for (const auto& [residual, replacement] :
       {std::pair(Residual::uniform, true), {Residual::uniform, false}, {Residual::vnorm, true}}) {
    Hyper o{.lsh_num_projs = 4,
            .block_size = 8,
            .sample_size = 8,
            .min_seq_len = 1,
            .residual = residual,
            .replacement = replacement};
    Inputs in;
    in.q = random_tensor({1, 1, 64, 8}, 1) * 0.7, in.k = random_tensor({1, 1, 64, 8}, 2) * 0.7;
    in.v = random_tensor({1, 1, 64, 4}, 3), in.rule = Rule::full();
    const Tensor want = ops::attend(in.q, in.k, in.v, in.rule).lse.to(at::kDouble).exp();
    const HyperDraws draws = hyper_draws(o, 8, 0);
    Tensor sum = at::zeros_like(want), squares = at::zeros_like(want);
    constexpr int64_t kBatch = 100, kDraws = 4000;  // samples of a batch draw for themselves
    for (Tensor* t : {&in.q, &in.k, &in.v}) *t = t->expand({kBatch, -1, -1, -1});
    for (o.seed = 0; o.seed < kDraws / kBatch; ++o.seed) {
      const Tensor rows = hyper_attention(o, in, draws).lse.to(at::kDouble).exp();
      sum += rows.sum(0, true), squares += (rows * rows).sum(0, true);
    }
    const Tensor mean = sum / double(kDraws),
                 deviation = ((squares / double(kDraws) - mean * mean) / double(kDraws)).sqrt();
    EXPECT_LT(((mean - want).abs() / deviation).max().item<double>(), 4.5);
    EXPECT_LT(((mean - want).abs() / want).max().item<double>(), 0.03);
    EXPECT_GT(deviation.min().item<double>(), 0);
  }
}

TEST(Hyper, the_error_of_sums_halves_with_four_times_the_samples) {
  Inputs in;
  in.q = random_tensor({1, 4, 256, 8}, 1) * 0.7, in.k = random_tensor({1, 4, 256, 8}, 2) * 0.7;
  in.v = random_tensor({1, 4, 256, 4}, 3), in.rule = Rule::full();
  const Tensor want = ops::attend(in.q, in.k, in.v, in.rule).lse.exp();
  std::vector<double> errors;
  for (const int64_t samples : {16, 64}) {
    double error = 0;
    for (int64_t seed = 0; seed < 40; ++seed) {
      const Hyper o{.block_size = 16, .sample_size = samples, .min_seq_len = 1, .seed = seed};
      error += (hyper_attention(o, in, hyper_draws(o, 8, 0)).lse.exp() / want - 1).square().mean().item<double>();
    }
    errors.push_back(std::sqrt(error));
  }
  EXPECT_NEAR(errors[0] / errors[1], 2, 0.2);
}

TEST(Hyper, later_keys_and_values_change_no_earlier_row) {
  const at::NoGradGuard no_grad;
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5};
  Problem p = make_problem(o, 43, 43, Rule{}, {});
  const HyperDraws draws = hyper_draws(o, 6, 0);
  const Tensor before = hyper_attention(o, p.in, draws).out;
  for (const int64_t changed : {1, 11, 22, 30, 42}) {
    Inputs in = p.in;
    for (Tensor* t : {&in.k, &in.v}) {
      *t = t->clone();
      t->narrow(2, changed, 43 - changed).mul_(-2);
    }
    const Tensor after = hyper_attention(o, in, draws).out;
    EXPECT_TRUE(after.narrow(2, 0, changed).equal(before.narrow(2, 0, changed))) << changed;
    EXPECT_FALSE(after.equal(before));
  }
}

TEST(Hyper, rows_are_means_of_values_and_order_of_keys_is_nothing) {
  const at::NoGradGuard no_grad;
  for (const Residual residual : {Residual::uniform, Residual::vnorm, Residual::capped}) {
    const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5, .residual = residual};
    Inputs in = make_problem(o, 43, 43, Rule{}, {}).in;
    const Tensor out = hyper_attention(o, in, hyper_draws(o, 6, 0)).out;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 4; ++h)
        for (int64_t d = 0; d < 3; ++d) {
          const Tensor values = in.v[b][h / 2].select(1, d), row = out[b][h].select(1, d);
          EXPECT_LE(row.max().item<double>(), values.max().item<double>() + 1e-12);
          EXPECT_GE(row.min().item<double>(), values.min().item<double>() - 1e-12);
        }
    in.v = at::full_like(in.v, 1.5);
    EXPECT_TRUE(same(hyper_attention(o, in, hyper_draws(o, 6, 0)).out, at::full({2, 4, 43, 3}, 1.5), {1e-12, 0}));
  }
  // keys in another order, of which no two share a bucket: the same sorted order and so the same result
  Problem p = golden();
  p.in.k = p.in.k.index_select(2, at::tensor({0, 1, 2, 7}, at::kLong)), p.in.v = p.in.v.narrow(2, 0, 4);
  p.draws.samples[0] = p.draws.samples[0].remainder(4);
  const Tensor order = at::tensor({2, 0, 3, 1}, at::kLong), before = hyper_attention(kGolden, p.in, p.draws).out;
  p.in.k = at::stack({p.in.k.select(2, 0), p.in.k.select(2, 1), p.in.k.select(2, 2), -p.in.k.select(2, 0)}, 2);
  const Tensor first = hyper_attention(kGolden, p.in, p.draws).out;
  p.in.k = p.in.k.index_select(2, order), p.in.v = p.in.v.index_select(2, order);
  EXPECT_TRUE(same(hyper_attention(kGolden, p.in, p.draws).out, first, {1e-13, 0}));
  EXPECT_FALSE(first.equal(before));
}

TEST(Hyper, a_seed_decides_and_threads_do_not) {
  const at::NoGradGuard no_grad;
  Hyper o{.block_size = 16, .sample_size = 16, .min_seq_len = 32};
  Inputs in;
  in.q = random_tensor({1, 4, 300, 16}, 1), in.k = random_tensor({1, 2, 300, 16}, 2),
  in.v = random_tensor({1, 2, 300, 16}, 3);
  const Tensor want = o.attend(in).out;
  test::expect_same_bits_on_threads([&] { return o.attend(in).out; });
  in.layer = 1;
  EXPECT_FALSE(o.attend(in).out.equal(want));
  in.layer = 0, o.seed = 1;
  EXPECT_FALSE(o.attend(in).out.equal(want));
}

TEST(Hyper, every_option_changes_the_result) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_problem({}, 43, 43, Rule{}, {}).in;
  const std::string base = "hyper:min_seq_len=5,block_size=4,sample_size=5,lsh_num_projs=3";
  const auto run = [&](const std::string& spec) { return make_mechanism(parse_spec(spec)).attend(in).out; };
  const Tensor want = run(base), capped = run(base + ",residual=capped");
  EXPECT_FALSE(capped.equal(want));
  for (const char* option :
       {"seed=3", "residual=vnorm", "replacement=false", "gray=reference", "same_block_mask=false"})
    EXPECT_FALSE(run(base + "," + option).equal(want)) << option;
  for (const char* option : {"epsilon=0.5", "kappa=1.5"})
    EXPECT_FALSE(run(base + ",residual=capped," + option).equal(capped)) << option;
  for (const char* spec : {"hyper:min_seq_len=5,block_size=5,sample_size=5,lsh_num_projs=3",
                           "hyper:min_seq_len=5,block_size=4,sample_size=6,lsh_num_projs=3",
                           "hyper:min_seq_len=5,block_size=4,sample_size=5,lsh_num_projs=2",
                           "hyper:min_seq_len=11,block_size=4,sample_size=5,lsh_num_projs=3"})
    EXPECT_FALSE(run(spec).equal(want)) << spec;
}

TEST(Hyper, padded_samples_equal_each_alone) {
  const at::NoGradGuard no_grad;
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 99, .min_seq_len = 5, .replacement = false};
  const Hyper blocks{.lsh_num_projs = 3, .block_size = 4, .sample_size = 0, .min_seq_len = 5};
  Inputs in = make_problem(o, 43, 43, Rule{}, {}).in;
  in.rule.key_lengths = at::tensor({17, 43}, at::kLong);
  EXPECT_TRUE(same(o.attend(in).out, Dense{}.attend(in).out, {1e-12, 1e-12}));  // all is drawn
  Inputs short_one = in, bare = in;
  short_one.q = in.q.narrow(2, 0, 17), short_one.k = in.k.narrow(2, 0, 17), short_one.v = in.v.narrow(2, 0, 17);
  short_one.rule = bare.rule = Rule{};
  const Tensor got = blocks.attend(in).out;
  EXPECT_TRUE(same(got[0].narrow(1, 0, 17), blocks.attend(short_one).out[0], {1e-12, 1e-12}));
  EXPECT_TRUE(same(got[1], blocks.attend(bare).out[1], {1e-12, 1e-12}));
  Inputs poisoned = in;
  poisoned.k = in.k.clone(), poisoned.v = in.v.clone();
  poisoned.k[0].narrow(1, 17, 26).fill_(NAN), poisoned.v[0].narrow(1, 17, 26).fill_(NAN);
  EXPECT_TRUE(blocks.attend(poisoned).out.equal(got));
  in.rule.key_lengths = at::tensor({0, 43}, at::kLong);
  EXPECT_TRUE(blocks.attend(in).out[0].eq(0).all().item<bool>());
  in.rule = Rule::full(), in.rule.key_lengths = at::tensor({17, 43}, at::kLong);
  EXPECT_TRUE(same(o.attend(in).out, Dense{}.attend(in).out, {1e-12, 1e-12}));
}

TEST(Hyper, a_layers_own_window_is_exact) {
  const at::NoGradGuard no_grad;
  const Hyper o{.block_size = 4, .sample_size = 5, .min_seq_len = 5};
  Inputs in = make_problem(o, 43, 43, Rule{.window_left = 9}, {}).in;
  const Attended got = o.attend(in);
  EXPECT_TRUE(got.out.equal(Dense{}.attend(in).out));
  EXPECT_TRUE(got.lse.has_value());
  in.rule.window_left = 43;  // hides nothing
  const Attended estimate = o.attend(in);
  EXPECT_FALSE(estimate.out.equal(Dense{}.attend(in).out));
  EXPECT_FALSE(estimate.lse.has_value());
}

TEST(Hyper, plans_count_what_is_visited) {
  const at::NoGradGuard no_grad;
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 8, .same_block_mask = false};
  const Inputs in = make_problem(o, 32, 32, Rule{}, {}).in;
  double pairs = 0;
  for (const PlannedRows& part : o.attend(in).plans) pairs += visible_pairs(part.plan, in.q, in.k);
  EXPECT_EQ(pairs, 2 * 4 * (4 * 36 + 2 * 16 * (4 + 5)));  // leaves of 8; two depths of 16 rows
}

TEST(Hyper, says_what_it_can_not_do) {
  const auto says = [](const std::string& spec, const char* part) {
    try {
      make_mechanism(parse_spec(spec));
      ADD_FAILURE() << spec;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  says("hyper:block_size=0,sample_size=0", "must not both be 0");
  says("hyper:lsh_num_projs=17", "0 .. 16");
  says("hyper:block_size=-1", ">= 0");
  says("hyper:residual=vnorm,replacement=false", "with replacement");
  says("hyper:residual=vnorm,sample_size=0", "needs samples");
  says("hyper:residual=capped,block_size=0", "needs blocks");
  says("hyper:epsilon=2", "belong to residual=capped");
  const Hyper o{.lsh_num_projs = 3, .block_size = 4, .sample_size = 5, .min_seq_len = 5};
  Problem p = make_problem(o, 20, 20, Rule{}, {});
  const auto throws = [&](const Inputs& in) { EXPECT_THROW(o.attend(in), Error); };
  Inputs in = p.in;
  in.rule.row_start = at::zeros({1, 1, 20}, at::kLong);
  throws(in);
  in = p.in, in.rule.query_documents = in.rule.key_documents = at::zeros({2, 20}, at::kLong);
  throws(in);
  in = p.in, in.rule.window_right = 2;
  throws(in);
  in = p.in, in.rule.query_start = -1;
  throws(in);
  in = p.in, in.k = p.in.k.narrow(2, 0, 0), in.v = p.in.v.narrow(2, 0, 0), in.rule = Rule::full();
  throws(in);
  EXPECT_THROW(hyper_attention(o, p.in, {random_tensor({5, 3}, 1)}), Error);
  EXPECT_THROW(hyper_attention(o, p.in, {p.draws.projections, {at::zeros({2, 2, 1, 5}, at::kLong)}}), Error);
  p = make_problem(o, 20, 20, Rule{}, {{1, 10}, {2, 5}});
  p.draws.samples[0][0][0][0][0] = 10;
  EXPECT_THROW(hyper_attention(o, p.in, p.draws), Error);
}

}  // namespace
}  // namespace foveate::attention
