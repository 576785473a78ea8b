// The router by loops, its goldens, the blend's gradients, and what a state decides and keeps.
#include "foveate/attention/routing/flux.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "foveate/attention/routing/objectives.h"
#include "foveate/attention/window.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::random_tensor;
using test::rows_of;
using test::same;

constexpr test::Bound kClose{1e-12, 1e-12};
constexpr int64_t kDim = 8;

Learned as_begun(const Flux& flux, uint64_t seed = 4) {
  Learned parts = make_learned(flux.learned_parts({24, 4, 2, kDim, kDim}), seed);
  for (auto& [name, part] : parts) part = part.to(at::kDouble);
  return parts;
}

Inputs make_inputs(int64_t batch, int64_t length, const Learned* parts) {
  static const ops::Rotary rotary(kDim, 100);
  Inputs in;
  const at::Tensor raw = random_tensor({batch, 4, length, kDim}, 31, at::kDouble) +
                         random_tensor({batch, 1, 1, kDim}, 34, at::kDouble) * 2;  // sequences differ in their means
  in.q = rotary.rotate(raw, at::arange(length, at::kLong));
  in.k = random_tensor({batch, 2, length, kDim}, 32, at::kDouble);
  in.v = random_tensor({batch, 2, length, kDim}, 33, at::kDouble);
  in.rotary = &rotary;
  in.learned = parts;
  return in;
}

Inputs sequence(const Inputs& in, int64_t b) {
  Inputs one = in;
  one.q = in.q.narrow(0, b, 1), one.k = in.k.narrow(0, b, 1), one.v = in.v.narrow(0, b, 1);
  return one;
}

// A router that sends half of the sequences of `in` each way.
Learned undecided(Flux flux, Inputs in) {
  Learned parts = as_begun(flux);
  parts["head_out"] = random_tensor({2, kDim}, 8, at::kDouble), parts["head_out_bias"] = at::zeros({2}, at::kDouble);
  in.learned = &parts;
  flux.phase = Flux::Phase::train, flux.blend = Flux::Blend::soft, flux.noise = false, flux.tau = 1;
  const at::Tensor z = flux_decision(flux, in), logits = std::get<0>((z / (1 - z)).log().sort());
  const int64_t half = logits.size(0) / 2;
  parts["head_out_bias"][0] = (logits[half - 1] + logits[half]) / 2;
  return parts;
}

std::vector<double> layer(const std::vector<double>& x, const at::Tensor& w, const at::Tensor& b, bool silu) {
  std::vector<double> y;
  for (int64_t o = 0; o < w.size(0); ++o) {
    double sum = b[o].item<double>();
    for (int64_t i = 0; i < w.size(1); ++i) sum += w[o][i].item<double>() * x[size_t(i)];
    y.push_back(silu ? sum / (1 + std::exp(-sum)) : sum);
  }
  return y;
}

// Logits of one sequence's unrotated queries [1, H, L, D], by loops.
std::vector<double> logits_by_loops(const at::Tensor& q, const Learned& p, int64_t pool_size) {
  const int64_t length = q.size(2);
  std::vector<double> x(size_t(kDim), 0);
  int64_t count = 0;
  for (const int64_t end : {0, 1})
    for (int64_t i = 0; i < length; ++i) {
      if (end == 0 ? i >= pool_size : i < length - pool_size) continue;
      ++count;
      for (int64_t h = 0; h < q.size(1); ++h)
        for (int64_t d = 0; d < kDim; ++d) x[size_t(d)] += q[0][h][i][d].item<double>() / double(q.size(1));
    }
  for (double& value : x) value /= double(count);
  x = layer(x, p.at("encoder_in"), p.at("encoder_in_bias"), true);
  x = layer(x, p.at("encoder_out"), p.at("encoder_out_bias"), false);
  x = layer(x, p.at("head_in"), p.at("head_in_bias"), true);
  x = layer(x, p.at("head_middle"), p.at("head_middle_bias"), true);
  return layer(x, p.at("head_out"), p.at("head_out_bias"), false);
}

TEST(Flux, the_router_has_the_published_size_and_begins_dense) {
  const auto count = [](int64_t dim) {
    int64_t numbers = 0;
    for (const LearnedPart& part : Flux{}.learned_parts({24, 4, 2, dim, dim}))
      numbers += std::accumulate(part.sizes.begin(), part.sizes.end(), int64_t{1}, std::multiplies<>());
    return numbers;
  };
  EXPECT_EQ(count(64), 148546);
  EXPECT_EQ(count(128), 592002);
  EXPECT_EQ(count(256), 2363650);
  const Learned parts = as_begun({});
  Inputs in = make_inputs(3, 20, &parts);
  const Flux soft{.phase = Flux::Phase::train, .blend = Flux::Blend::soft, .noise = false};
  EXPECT_TRUE(same(flux_decision(soft, in), at::full({3}, 0.98901, at::kDouble), {5e-6, 0}));
  EXPECT_TRUE(flux_decision(Flux{}, in).equal(at::ones({3}, at::kDouble)));
}

TEST(Flux, logits_are_those_of_loops_whatever_the_rotation) {
  const at::NoGradGuard no_grad;
  for (const auto& [length, pool] : {std::pair{20, 4}, {20, 15}, {5, 150}, {1, 3}}) {
    const Flux flux{.pool_size = pool, .phase = Flux::Phase::train, .blend = Flux::Blend::soft, .noise = false};
    Inputs in = make_inputs(2, length, nullptr);
    const Learned parts = undecided(flux, in);
    in.learned = &parts;
    for (int64_t b = 0; b < 2; ++b) {
      const at::Tensor raw = in.rotary->rotate(in.q, -at::arange(length, at::kLong)).narrow(0, b, 1);
      const auto a = logits_by_loops(raw, parts, pool);
      EXPECT_NEAR(flux_decision(flux, in)[b].item<double>(), 1 / (1 + std::exp(a[0] - a[1])), 1e-9) << length;
    }
  }
}

TEST(Flux, the_router_reads_the_ends_of_a_prompt_and_no_order_of_heads) {
  const at::NoGradGuard no_grad;
  const at::Tensor q = random_tensor({2, 4, 30, kDim}, 1, at::kDouble);
  const at::Tensor x = flux_pool(q, std::nullopt, Flux::Pooling::ends, 5);
  EXPECT_TRUE(same(flux_pool(q.flip(1), std::nullopt, Flux::Pooling::ends, 5), x, kClose));
  at::Tensor edited = q.clone();
  edited.narrow(2, 5, 20).add_(1);
  EXPECT_TRUE(flux_pool(edited, std::nullopt, Flux::Pooling::ends, 5).equal(x));
  edited.narrow(2, 25, 1).add_(1);
  EXPECT_FALSE(flux_pool(edited, std::nullopt, Flux::Pooling::ends, 5).equal(x));
  EXPECT_TRUE(same(flux_pool(q, std::nullopt, Flux::Pooling::all, 5), q.mean(at::IntArrayRef{1, 2}), kClose));
  EXPECT_TRUE(same(flux_pool(q, std::nullopt, Flux::Pooling::first, 5), q.select(2, 0).mean(1), kClose));
  // a range of a packed batch is a prompt of its own
  const at::Tensor ranges = at::tensor({3, 12, 20, 29}, at::kLong).view({2, 2});
  const at::Tensor parts = flux_pool(q, ranges, Flux::Pooling::ends, 4);
  for (int64_t b = 0; b < 2; ++b) {
    const at::Tensor prompt = q.narrow(0, b, 1).narrow(2, b == 0 ? 3 : 20, 10);
    EXPECT_TRUE(same(parts.narrow(0, b, 1), flux_pool(prompt, std::nullopt, Flux::Pooling::ends, 4), kClose));
  }
  EXPECT_THROW(flux_pool(q, at::tensor({3, 2, 0, 29}, at::kLong).view({2, 2}), Flux::Pooling::ends, 4), Error);
  EXPECT_THROW(flux_pool(q.narrow(2, 0, 0), std::nullopt, Flux::Pooling::ends, 4), Error);
}

TEST(Flux, golden_choice_and_its_gradient) {
  const at::Tensor a = at::tensor({0.2, -0.1}, at::kDouble).view({1, 2}).requires_grad_();
  EXPECT_NEAR(flux_choice(a, std::nullopt, 1.25, Flux::Blend::soft).item<double>(), .440286, 1e-6);
  const at::Tensor z = flux_choice(a, std::nullopt, 1.25, Flux::Blend::straight_through);
  EXPECT_EQ(z.item<double>(), 0);  // the hard choice
  (z * 0.3).sum().backward();
  EXPECT_NEAR(a.grad()[0][0].item<double>(), -.059144, 1e-6);
  EXPECT_NEAR(a.grad()[0][1].item<double>(), .059144, 1e-6);
}

TEST(Flux, gumbel_noise_is_the_same_for_a_seed_and_has_its_mean) {
  const at::Tensor g = gumbel(uniform({4, 5000}, 3, 1));
  EXPECT_TRUE(g.equal(gumbel(uniform({4, 5000}, 3, 1))));
  EXPECT_FALSE(g.equal(gumbel(uniform({4, 5000}, 3, 2))));
  EXPECT_NEAR(g.mean().item<double>(), 0.5772, 0.03);
  const Flux flux{.seed = 1, .phase = Flux::Phase::train, .blend = Flux::Blend::soft};
  Inputs in = make_inputs(2, 9, nullptr);
  const Learned parts = undecided(flux, in);
  in.learned = &parts;
  Flux other = flux;
  other.seed = 2;
  EXPECT_TRUE(flux_decision(flux, in).equal(flux_decision(flux, in)));
  EXPECT_FALSE(flux_decision(flux, in).equal(flux_decision(other, in)));
}

TEST(Flux, golden_temperatures_and_targets) {
  for (const auto& [step, tau] :
       {std::pair{0, 1.5}, {45, 1.426777}, {90, 1.25}, {135, 1.073223}, {180, 1.0}, {299, 1.0}})
    EXPECT_NEAR(flux_temperature(step, 300), tau, 1e-6) << step;
  EXPECT_EQ(warmed_target(0.45, 0, 300, 0), 0.45);
  EXPECT_NEAR(warmed_target(0.45, 15, 300, 0.1), 0.225, 1e-12);
  EXPECT_EQ(warmed_target(0.45, 30, 300, 0.1), 0.45);
}

TEST(Flux, golden_penalty_and_gradients) {
  at::Tensor z = at::zeros({1, 28}, at::kDouble);
  z.narrow(1, 0, 20).fill_(1);
  z.requires_grad_();
  const at::Tensor l1 = at::full({1}, 0.25, at::kDouble).requires_grad_();
  const at::Tensor l2 = at::full({1}, 0.25, at::kDouble).requires_grad_();
  const at::Tensor r = flux_penalty(z, at::full({1}, 0.45, at::kDouble), at::zeros({1}, at::kLong), l1, l2);
  EXPECT_NEAR(1 - z.mean().item<double>(), .285714, 1e-6);
  EXPECT_NEAR(r.item<double>(), .047819, 1e-6);
  r.backward();
  EXPECT_NEAR(z.grad()[0][7].item<double>(), .011862, 1e-6);
  EXPECT_NEAR(l1.grad().item<double>(), .164286, 1e-6);
  EXPECT_NEAR(l2.grad().item<double>(), .026990, 1e-6);
}

TEST(Flux, the_penalty_is_a_mean_over_tasks_of_means_over_samples) {
  const at::Tensor z = at::tensor({1.0, 0.0, 1.0, 1.0, 0.0, 0.0}, at::kDouble).view({3, 2});
  const at::Tensor targets = at::tensor({0.2, 1.0, 0.4}, at::kDouble), tasks = at::tensor({2, 2, 0}, at::kLong);
  const at::Tensor l1 = at::tensor({0.1, 9.0, 0.3}, at::kDouble), l2 = at::tensor({0.2, 9.0, 0.5}, at::kDouble);
  const auto term = [](double a, double b, double d) { return a * std::abs(d) + b * d * d; };
  const double want = (term(0.1, 0.2, 0.6) + (term(0.3, 0.5, 0.3) + term(0.3, 0.5, -1.0)) / 2) / 2;
  EXPECT_NEAR(flux_penalty(z, targets, tasks, l1, l2).item<double>(), want, 1e-12);
  EXPECT_THROW(flux_penalty(z, targets, at::tensor({2, 3, 0}, at::kLong), l1, l2), Error);
}

TEST(Flux, training_blends_both_branches_and_reaches_router_and_inputs) {
  for (const Flux::Blend blend : {Flux::Blend::straight_through, Flux::Blend::soft}) {
    const Flux flux{
        .cheap = "window:size=3,sinks=1", .pool_size = 4, .phase = Flux::Phase::train, .blend = blend, .tau = 1.25};
    Learned parts = as_begun(flux);
    parts["head_out"] = random_tensor({2, kDim}, 8, at::kDouble), parts["head_out_bias"] = at::zeros({2}, at::kDouble);
    for (auto& [name, part] : parts) part.requires_grad_();
    Inputs in = make_inputs(2, 12, &parts);
    in.q.requires_grad_();
    const at::Tensor weight = random_tensor({2, 4, 12, kDim}, 9, at::kDouble);
    const at::Tensor z = flux_decision(flux, in);
    const at::Tensor full = Dense{}.attend(in).out, cheap = Window{.size = 3, .sinks = 1}.attend(in).out;
    const at::Tensor out = flux.attend(in).out;
    EXPECT_TRUE(same(out, z.view({2, 1, 1, 1}) * full + (1 - z).view({2, 1, 1, 1}) * cheap, kClose));
    (out * weight).sum().backward();
    const at::NoGradGuard no_grad;
    // with z held fixed dL/dz = <dL/dout, full - cheap>; the soft choice's slope carries it to every router part
    const at::Tensor slope = ((full - cheap) * weight).sum(at::IntArrayRef{1, 2, 3});
    Flux soft = flux;
    soft.blend = Flux::Blend::soft;
    const auto surrogate = [&] { return (flux_decision(soft, in) * slope).sum().item<double>(); };
    for (const auto& [name, part] : parts) {
      const at::Tensor flat = part.view({-1});
      for (const int64_t i : {int64_t{0}, flat.size(0) / 2}) {
        const double value = flat[i].item<double>();
        flat[i].fill_(value + 1e-5);
        const double up = surrogate();
        flat[i].fill_(value - 1e-5);
        const double down = surrogate();
        flat[i].fill_(value);
        EXPECT_NEAR(part.grad().view({-1})[i].item<double>(), (up - down) / 2e-5, 1e-7) << name;
      }
    }
    EXPECT_GT(in.q.grad().abs().sum().item<double>(), 0);
  }
}

const Flux& routed() {
  static const Flux flux{.cheap = "window:size=5,sinks=2", .pool_size = 6};
  return flux;
}

TEST(Flux, each_sequence_goes_its_own_way) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(6, 40, nullptr);
  const Learned parts = undecided(routed(), in);
  in.learned = &parts;
  const at::Tensor z = flux_decision(routed(), in);
  ASSERT_EQ(z.sum().item<double>(), 3);
  const at::Tensor out = routed().attend(in).out;
  for (int64_t b = 0; b < 6; ++b) {
    const Inputs one = sequence(in, b);
    const at::Tensor want =
        z[b].item<double>() > 0.5 ? Dense{}.attend(one).out : Window{.size = 5, .sinks = 2}.attend(one).out;
    EXPECT_TRUE(same(out.narrow(0, b, 1), want, kClose)) << b;
    for (const double given : {0.0, 1.0}) {  // and by decisions from elsewhere
      const at::Tensor other = at::where(at::arange(6).eq(b), given, z);
      const Attended decided = routed().attend_decided(in, other);
      const at::Tensor alone = given > 0 ? Dense{}.attend(one).out : Window{.size = 5, .sinks = 2}.attend(one).out;
      EXPECT_TRUE(same(decided.out.narrow(0, b, 1), alone, kClose)) << b;
    }
  }
}

TEST(Flux, generation_goes_on_by_the_decision_of_the_prompt) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(6, 70, nullptr);
  const Learned parts = undecided(routed(), rows_of(in, 0, 40));
  in.learned = &parts;
  const at::Tensor z = flux_decision(routed(), rows_of(in, 0, 40));
  ASSERT_EQ(z.sum().item<double>(), 3);
  for (const int64_t step : {40, 13}) {  // in one part and in four
    const auto state = routed().make_state({.rollback = 2});
    for (int64_t first = 0; first < 40; first += step) {
      Inputs part = rows_of(in, first, std::min(step, 40 - first));
      part.ends_prompt = first + step >= 40;
      if (first > 0) {
        EXPECT_THROW(state->decode(part), Error);
      }
      state->prefill(part);
    }
    std::vector<at::Tensor> outs;
    for (int64_t row = 40; row < 70; ++row) {
      outs.push_back(state->decode(rows_of(in, row, 1)).out);
      if (row == 50) {  // saved and loaded, with its decision
        const auto other = routed().make_state({});
        other->load(state->save());
        EXPECT_TRUE(other->decode(rows_of(in, 51, 1)).out.equal(state->decode(rows_of(in, 51, 1)).out));
        state->truncate(51);
      }
    }
    for (int64_t b = 0; b < 6; ++b) {  // one prefill of the longer text with the same decision
      const Inputs one = sequence(in, b);
      const at::Tensor want =
          z[b].item<double>() > 0.5 ? Dense{}.attend(one).out : Window{.size = 5, .sinks = 2}.attend(one).out;
      EXPECT_TRUE(same(at::cat(outs, 2).narrow(0, b, 1), want.narrow(2, 40, 30), kClose)) << b << " step " << step;
    }
  }
}

TEST(Flux, cheap_layers_hold_and_read_a_bounded_number_of_keys) {
  const at::NoGradGuard no_grad;
  const int64_t token = 2 * 2 * kDim * 8;
  const Inputs in = make_inputs(1, 600, nullptr);
  for (const Flux::Route route : {Flux::Route::cheap, Flux::Route::full}) {
    Flux flux = routed();
    flux.route = route;
    const auto state = flux.make_state({});
    state->prefill(rows_of(in, 0, 500));
    for (int64_t row = 500; row < 600; ++row) state->decode(rows_of(in, row, 1));
    EXPECT_EQ(state->read_bytes(), (route == Flux::Route::cheap ? 7 : 600) * token);
    if (route == Flux::Route::cheap) {
      EXPECT_LT(state->bytes(), 200 * token);
    }
  }
}

TEST(Flux, a_fixed_route_holds_one_memory_from_the_first_chunk_on) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(1, 500, nullptr);
  const auto state = make_mechanism(parse_spec("flux:route=cheap,cheap=(window:size=5,sinks=2)")).make_state({}),
             own = make_mechanism(parse_spec("window:size=5,sinks=2")).make_state({});
  for (int64_t first = 0; first < 500; first += 100) {
    Inputs part = rows_of(in, first, 100);
    part.ends_prompt = first == 400;
    EXPECT_TRUE(state->prefill(part).out.equal(own->prefill(part).out));
    EXPECT_EQ(state->bytes(), own->bytes()) << first;
  }
}

TEST(Flux, an_open_prompt_is_kept_as_a_whole_or_forgotten) {
  const at::NoGradGuard no_grad;
  Inputs in = make_inputs(2, 40, nullptr);
  const Learned parts = as_begun(routed());
  in.learned = &parts;
  const auto state = routed().make_state({}), other = routed().make_state({});
  Inputs part = rows_of(in, 0, 20);
  part.ends_prompt = false;
  state->prefill(part);
  EXPECT_EQ(test::message_of([&] { state->truncate(7); }),
            "flux: an open prompt can only be forgotten as a whole, got 7 of 20 tokens; end it first");
  EXPECT_EQ(test::message_of([&] { state->save(); }),
            "flux: a state can be saved when its prompt has ended, got 20 open tokens");
  EXPECT_EQ(test::message_of([&] { state->decode(rows_of(in, 20, 1)); }),
            "flux: a prompt must end before tokens are generated, got 20 open tokens");
  state->truncate(20);
  EXPECT_EQ(state->length(), 20);
  state->truncate(0);
  EXPECT_EQ(state->length(), 0);
  EXPECT_TRUE(state->prefill(in).out.equal(other->prefill(in).out)) << "nothing of the first prompt is left";
}

// z of a soft choice tells what the router read.
TEST(Flux, padding_is_not_read_by_the_router) {
  const at::NoGradGuard no_grad;
  Flux flux = routed();
  flux.phase = Flux::Phase::train, flux.blend = Flux::Blend::soft, flux.noise = false, flux.pool_size = 3;
  Inputs in = make_inputs(2, 12, nullptr);
  Learned parts = as_begun(flux);
  parts["head_out"] = random_tensor({2, kDim}, 8, at::kDouble), parts["head_out_bias"] = at::zeros({2}, at::kDouble);
  in.learned = &parts, in.rotary = nullptr;
  const auto alone = [&](int64_t b, int64_t first, int64_t count) {
    return flux_decision(flux, sequence(rows_of(in, first, count), b)).item<double>();
  };
  const auto expect = [&](const Rule& rule, int64_t first, int64_t count) {  // of the second sequence
    in.rule = rule;
    const at::Tensor z = flux_decision(flux, in);
    in.rule = {};
    EXPECT_NEAR(z[0].item<double>(), alone(0, 0, 12), 1e-12);
    EXPECT_NEAR(z[1].item<double>(), alone(1, first, count), 1e-12);
    EXPECT_GT(std::abs(alone(1, first, count) - alone(1, 0, 12)), 1e-6);
  };
  const auto by_row = [](int64_t first, int64_t second) {
    return at::tensor({first, second}, at::kLong).view({2, 1, 1}).expand({2, 1, 12});
  };
  expect({.row_start = by_row(0, 4)}, 4, 8);
  expect({.row_end = by_row(12, 7)}, 0, 7);
  expect({.row_start = by_row(0, 2), .row_end = by_row(12, 9)}, 2, 7);
  Rule padded;
  padded.key_lengths = at::tensor({12, 5}, at::kLong);
  expect(padded, 0, 5);
}

TEST(Flux, learned_parts_of_nested_mechanisms_have_a_prefix) {
  const at::NoGradGuard no_grad;
  const Flux flux{.full = "nsa:phi=mean,compress=4,stride=2,block=4,blocks=3,window=3", .route = Flux::Route::full};
  const auto wanted = flux.learned_parts({24, 4, 2, kDim, kDim});
  ASSERT_EQ(wanted.size(), 1);
  EXPECT_EQ(wanted[0].name, "full.gate");
  const Learned parts = as_begun(flux), own = {{"gate", parts.at("full.gate")}};
  Inputs in = make_inputs(1, 20, &parts);
  in.hidden = random_tensor({1, 20, 24}, 5, at::kDouble);
  const at::Tensor got = flux.attend(in).out;
  in.learned = &own;
  EXPECT_TRUE(got.equal(make_mechanism(parse_spec(flux.full)).attend(in).out));
}

std::string message_of(const std::string& spec, int64_t length = 5) {
  return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(make_inputs(1, length, nullptr)); });
}

TEST(Flux, says_what_does_not_fit) {
  EXPECT_EQ(message_of("flux"), "flux: has learned parts, got no adapter; give the file that training wrote");
  EXPECT_EQ(message_of("flux:route=full"), "no error");
  EXPECT_EQ(message_of("flux:route=full,cheap=(window:size=0)"), "window: size must be >= 1, got 0");
  EXPECT_EQ(message_of("flux:phase=train,route=cheap"), "flux: phase=train trains a router, so route=learned");
  EXPECT_EQ(message_of("flux:route=full", 0), "flux: a prompt must have tokens, got none");
  const auto made = make_mechanism(parse_spec("flux:cheap=(window:size=7,sinks=1)")).spec();
  EXPECT_EQ(made.text(), "flux:cheap=(window:size=7,sinks=1)");
}

}  // namespace
}  // namespace foveate::attention
