// Full and streaming heads against loops in double; how heads are chosen; what gates are trained with.
#include "foveate/attention/routing/duo.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "foveate/attention/routing/objectives.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::random_tensor;
using test::rows_of;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr test::Bound kClose{1e-12, 1e-12};

Inputs make_inputs(int64_t queries, int64_t keys) {
  return test::random_call(queries, keys, {.heads = 6, .kv_heads = 3});
}

// Query heads 2g and 2g + 1 read key head g.
at::Tensor oracle(const Inputs& in, const std::vector<bool>& full, int64_t size, int64_t sinks) {
  const int64_t start = in.k.size(2) - in.q.size(2);
  const auto visible = [&](int64_t, int64_t h, int64_t i, int64_t j) {
    const int64_t p = start + i;
    if (j > p || (in.rule.window_left && p - j > *in.rule.window_left)) return 0;
    return full[size_t(h / 2)] || p - j < size || j < sinks ? 1 : 0;
  };
  return to_tensor(
      test::oracle_attention(to_array(in.q), to_array(in.k), to_array(in.v), visible, {.scale = 1 / std::sqrt(8.0)})
          .out);
}

TEST(Duo, equals_loops_for_any_heads_and_model_windows) {
  const at::NoGradGuard no_grad;
  const std::pair<const char*, std::vector<bool>> lists[] = {{"all", {true, true, true}},
                                                             {"none", {false, false, false}},
                                                             {"1", {false, true, false}},
                                                             {"0,2", {true, false, true}},
                                                             {"0-1", {true, true, false}}};
  for (const auto& [list, full] : lists)
    for (const std::optional<int64_t> window : {std::optional<int64_t>(), {3}, {12}}) {
      Inputs in = make_inputs(30, 41);
      in.rule.window_left = window;
      const Duo duo{.size = 6, .sinks = 2, .full_heads = list};
      EXPECT_EQ(duo.is_full(in), full) << list;
      // a model's window narrower than `size` is all that streaming heads see
      const int64_t sinks = window && *window < 6 ? 0 : 2;
      EXPECT_TRUE(same(duo.attend(in).out, oracle(in, full, 6, sinks), kClose)) << list;
    }
}

TEST(Duo, the_best_gates_are_full) {
  EXPECT_DOUBLE_EQ(duo_threshold({0.1, 0.9, 0.4, 0.6}, 0.5), 0.5);  // numpy.quantile
  EXPECT_DOUBLE_EQ(duo_threshold({0.1, 0.9, 0.4, 0.6}, 0.25), 0.325);
  EXPECT_EQ(duo_threshold({0.1}, 0), -INFINITY);
  EXPECT_EQ(duo_threshold({0.1}, 1), INFINITY);
  Inputs in = make_inputs(4, 4);
  const Learned parts = {{"alpha", at::tensor({0.2, 0.7, 0.4}, at::kDouble)},
                         {"log_alpha", at::tensor({3.0, -1.0, 2.0}, at::kDouble)}};
  in.learned = &parts;
  const auto full = [&](const Duo& duo) { return duo.is_full(in); };
  EXPECT_EQ(full({.sparsity = 0.5}), (std::vector<bool>{false, true, true}));
  EXPECT_EQ(full({.sparsity = 0.7}), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(full({.sparsity = 0}), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(full({.sparsity = 1}), (std::vector<bool>{false, false, false}));
  EXPECT_EQ(full({.sparsity = 0.6, .gate = Duo::Gate::hard_concrete}), (std::vector<bool>{true, false, false}));
}

TEST(Duo, a_pattern_file_ranks_all_layers_together) {
  const auto folder = std::filesystem::temp_directory_path();
  const std::string lines = folder / "foveate_duo_pattern.tsv", json = folder / "foveate_duo_pattern.json",
                    broken = folder / "foveate_duo_broken.tsv";
  std::ofstream(lines) << "0.9\t0.1\t0.8\n0.2\t0.3\t0.25\n";
  std::ofstream(json) << " [[0.9, 0.1, 0.8], [0.2, 0.3, 0.25]]\n";
  Inputs in = make_inputs(4, 4);
  for (const std::string& path : {lines, json}) {
    const Duo duo{.sparsity = 0.5, .pattern = path};  // 0.1 0.2 0.25 | 0.3 0.8 0.9
    in.layer = 0;
    EXPECT_EQ(duo.is_full(in), (std::vector<bool>{true, false, true}));
    in.layer = 1;
    EXPECT_EQ(duo.is_full(in), (std::vector<bool>{false, true, false}));
    for (const int64_t outside : {-1, 2}) {
      in.layer = outside;
      EXPECT_EQ(test::message_of([&] { duo.is_full(in); }),
                fmt::format("duo: pattern must have 3 numbers for layer {}, got 2 layers and 0 numbers", outside));
    }
  }
  in.layer = 0;
  const auto message = [&](const std::string& text) {
    std::ofstream(broken, std::ios::trunc) << text;
    return test::message_of([&] { Duo{.pattern = broken}.is_full(in); });
  };
  EXPECT_EQ(message("0.9\tx\t0.8\n"), "duo: pattern " + broken + " must have numbers, got 'x' in line 1");
  EXPECT_EQ(message("0.9 \x1b\n"), "duo: pattern " + broken + " must have numbers, got '\\x1b' in line 1");
  EXPECT_EQ(message("[0.9]"), "duo: pattern " + broken + " must be a JSON list of lists of numbers");
  EXPECT_NE(message("[[0.9, 1,").find(broken + ": "), std::string::npos) << message("[[0.9, 1,");
  EXPECT_THROW((Duo{.pattern = "/nowhere/at/all"}.is_full(in)), Error);
  EXPECT_THROW((Duo{.pattern = folder}.is_full(in)), Error);
  for (const std::string& path : {lines, json, broken}) std::filesystem::remove(path);
}

TEST(Duo, training_mixes_both_with_gradients_of_gates_and_inputs) {
  for (const Duo::Gate gate : {Duo::Gate::alpha, Duo::Gate::hard_concrete}) {
    const Duo duo{.size = 4, .sinks = 1, .seed = 3, .gate = gate, .phase = Duo::Phase::train};
    Inputs in = make_inputs(17, 17);
    Learned parts = {{"alpha", at::tensor({0.2, 0.7, 1.0}, at::kDouble)},
                     {"log_alpha", at::tensor({0.1, -0.5, 0.4}, at::kDouble)}};
    in.learned = &parts;
    const at::Tensor& gates = parts.at(gate == Duo::Gate::alpha ? "alpha" : "log_alpha");
    const at::Tensor z = gate == Duo::Gate::alpha ? gates : hard_concrete(gates, uniform({3}, 3, 0));
    const at::Tensor by_head = z.repeat_interleave(2).view({1, 6, 1, 1});
    const at::Tensor want =
        by_head * oracle(in, {true, true, true}, 4, 1) + (1 - by_head) * oracle(in, {false, false, false}, 4, 1);
    EXPECT_TRUE(same(duo.attend(in).out, want, kClose));
    const at::Tensor weight = random_tensor({2, 6, 17, 5}, 9, at::kDouble);
    test::expect_gradients([&] { return (duo.attend(in).out * weight).sum(); }, {in.q, in.k, in.v, gates}, 1e-7, 5);
  }
}

TEST(Duo, streaming_heads_hold_and_read_a_bounded_number_of_keys) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(600, 600);
  const int64_t token = 2 * (8 + 5) * 8;  // of one key head: two sequences, fp64
  const auto state_of = [&](const char* list) {
    auto state = Duo{.size = 6, .sinks = 2, .full_heads = list}.make_state({});
    state->prefill(rows_of(in, 0, 300));
    for (int64_t row = 300; row < 600; ++row) state->decode(rows_of(in, row, 1));
    return state;
  };
  EXPECT_EQ(state_of("1")->read_bytes(), 600 * token + 2 * 8 * token);
  EXPECT_EQ(state_of("none")->read_bytes(), 3 * 8 * token);
  EXPECT_LT(state_of("none")->bytes(), 3 * 200 * token);
  EXPECT_EQ(state_of("all")->read_bytes(), 3 * 600 * token);
}

TEST(Duo, a_state_says_which_heads_it_was_made_for) {
  const at::NoGradGuard no_grad;
  const Inputs in = make_inputs(40, 40);
  const Duo duo{.size = 6, .sinks = 2, .full_heads = "1"};
  const auto state = duo.make_state({}), other = duo.make_state({});
  state->prefill(rows_of(in, 0, 30));
  State::Snapshot snapshot = state->save();
  EXPECT_EQ(snapshot.at("full.k").size(1), 1);
  EXPECT_EQ(snapshot.at("streaming.k").size(1), 2);
  State::Snapshot cut = snapshot;
  cut.erase("streaming.k");
  EXPECT_THROW(other->load(cut), Error);
  EXPECT_EQ(other->length(), 0);
  cut = snapshot;
  cut["full_heads"] = at::tensor({1, 1, 0}, at::kLong);
  EXPECT_EQ(test::message_of([&] { other->load(cut); }), "duo: full.k must be of 2 heads, got 4 axes and 1");
  EXPECT_EQ(other->length(), 0);
  cut = snapshot;
  cut.erase("full_heads");
  EXPECT_THROW(other->load(cut), Error);
  other->load(snapshot);
  EXPECT_TRUE(other->decode(rows_of(in, 30, 10)).out.equal(state->decode(rows_of(in, 30, 10)).out));
}

std::string message_of(const std::string& spec) {
  return test::message_of([&] { make_mechanism(parse_spec(spec)).attend(make_inputs(5, 5)); });
}

TEST(Duo, says_what_does_not_fit) {
  EXPECT_EQ(message_of("duo"), "duo: has learned parts, got no adapter; give the file that training wrote");
  EXPECT_EQ(message_of("duo:full_heads=(0,3)"), "duo: full_heads must be key heads 0 .. 2, got 3");
  EXPECT_EQ(message_of("duo:full_heads=(0,x)"),
            "duo: full_heads other than all or none must be numbers or ranges like 0-3,7, got 'x' in '0,x'");
  EXPECT_EQ(message_of("duo:full_heads=(1-0)"),
            "duo: full_heads other than all or none must be ranges that ascend, got 1-0 in '1-0'");
  EXPECT_EQ(message_of("duo:full_heads=(0-99999999999)"), "duo: full_heads must be key heads 0 .. 2, got 99999999999");
  EXPECT_EQ(message_of("duo:full_heads=0,pattern=a"), "duo: full_heads or pattern, got both");
  EXPECT_EQ(message_of("duo:full_heads=0,phase=train"),
            "duo: phase=train learns the gates, so full_heads and pattern must be empty");
  EXPECT_EQ(message_of("duo:sparsity=1.5"), "duo: sparsity must be 0 .. 1, got 1.5");
}

TEST(Objectives, duo_and_distillation) {
  EXPECT_NEAR(duo_penalty(at::tensor({1.0, -0.5, 0.25}, at::kDouble)).item<double>(), 0.05 * 1.75, 1e-15);
  const at::Tensor student = random_tensor({2, 5, 4}, 1, at::kDouble).requires_grad_();
  const at::Tensor teacher = random_tensor({2, 5, 4}, 2, at::kDouble);
  at::Tensor mask = at::zeros({2, 5}, at::kBool);
  mask[0][3] = true, mask[1][0] = true, mask[1][4] = true;
  const at::Tensor loss = distillation(student, teacher, mask);
  double want = 0;
  for (const auto& [b, i] : {std::pair{0, 3}, {1, 0}, {1, 4}})
    for (int64_t d = 0; d < 4; ++d)
      want += std::pow(student[b][i][d].item<double>() - teacher[b][i][d].item<double>(), 2) / 4 / 3;
  EXPECT_NEAR(loss.item<double>(), want, 1e-12);
  loss.backward();
  EXPECT_NEAR(student.grad()[0][3][1].item<double>(), 2 * (student[0][3][1] - teacher[0][3][1]).item<double>() / 12,
              1e-12);
  EXPECT_EQ(student.grad()[0][0].abs().sum().item<double>(), 0);
  EXPECT_THROW(distillation(student, teacher, at::zeros({2, 5}, at::kBool)), Error);
}

TEST(Objectives, hard_concrete_gates_open_as_often_as_they_say) {
  const at::Tensor log_alpha = at::full({20000}, 0.3, at::kDouble);
  const at::Tensor z = hard_concrete(log_alpha, uniform({20000}, 5));
  EXPECT_GE(z.min().item<double>(), 0);
  EXPECT_LE(z.max().item<double>(), 1);
  EXPECT_GT(z.eq(0).sum().item<int64_t>(), 100);  // gates close exactly
  EXPECT_GT(z.eq(1).sum().item<int64_t>(), 100);
  EXPECT_NEAR(z.gt(0).to(at::kDouble).mean().item<double>(), hard_concrete_open(log_alpha)[0].item<double>(), 0.01);
  // u = 1/2: s = sigmoid(1.5 log_alpha), z = 1.2 s - 0.1
  const double half = hard_concrete(at::full({1}, 0.3, at::kDouble), at::full({1}, 0.5, at::kDouble)).item<double>();
  EXPECT_NEAR(half, 1.2 / (1 + std::exp(-0.45)) - 0.1, 1e-14);
  EXPECT_NEAR(hard_concrete_open(at::full({1}, 4.5, at::kDouble)).item<double>(),
              1 / (1 + std::exp(2.0 / 3 * std::log(0.1 / 1.1) - 4.5)), 1e-14);
}

TEST(Objectives, prulong_pushes_sparsity_to_its_target_from_both_sides) {
  const at::Tensor l1 = at::full({}, 0.3, at::kDouble), l2 = at::full({}, 2.0, at::kDouble);
  for (const double s : {0.2, 0.7, 0.9}) {
    const at::Tensor sparsity = at::full({}, s, at::kDouble).requires_grad_();
    const at::Tensor loss = prulong_penalty(sparsity, 0.7, l1, l2);
    EXPECT_NEAR(loss.item<double>(), 0.3 * (s - 0.7) + 2 * (s - 0.7) * (s - 0.7), 1e-14);
    loss.backward();
    EXPECT_NEAR(sparsity.grad().item<double>(), 0.3 + 4 * (s - 0.7), 1e-14);
  }
}

}  // namespace
}  // namespace foveate::attention
