// The window against plain loops: the mask, and StreamingLLM's cache in which keys are rotated at their slots.
#include "foveate/attention/window.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr double kBase = 50;

// x[b, h, i] rotated to `position`, rotate-half, written out.
std::vector<double> rotated(const Array& x, int64_t b, int64_t h, int64_t i, double position) {
  const int64_t half = x.shape[3] / 2;
  std::vector<double> out(size_t(x.shape[3]));
  for (int64_t d = 0; d < half; ++d) {
    const double angle = position * std::pow(kBase, -2.0 * double(d) / double(x.shape[3]));
    const double a = x.at(b, h, i, d), c = x.at(b, h, i, d + half);
    out[size_t(d)] = a * std::cos(angle) - c * std::sin(angle);
    out[size_t(d + half)] = c * std::cos(angle) + a * std::sin(angle);
  }
  return out;
}

// For every row: the kept keys in order, rotated at their slots, the query at the last slot.
Array streaming_oracle(const Array& q, const Array& k, const Array& v, int64_t size, int64_t sinks) {
  Array out(q.shape[0], q.shape[1], q.shape[2], v.shape[3]);
  const int64_t group = q.shape[1] / k.shape[1];
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t p = 0; p < q.shape[2]; ++p) {
        std::vector<int64_t> kept;
        for (int64_t j = 0; j <= p; ++j)
          if (j < sinks || j > p - size) kept.push_back(j);
        const auto query = rotated(q, b, h, p, double(kept.size()) - 1);
        std::vector<double> weight;
        double sum = 0;
        for (size_t slot = 0; slot < kept.size(); ++slot) {
          const auto key = rotated(k, b, h / group, kept[slot], double(slot));
          double s = 0;
          for (size_t d = 0; d < key.size(); ++d) s += query[d] * key[d];
          weight.push_back(std::exp(s / std::sqrt(double(q.shape[3]))));
          sum += weight.back();
        }
        for (size_t slot = 0; slot < kept.size(); ++slot)
          for (int64_t d = 0; d < v.shape[3]; ++d)
            out.at(b, h, p, d) += weight[slot] / sum * v.at(b, h / group, kept[slot], d);
      }
  return out;
}

struct Sample {
  at::Tensor q, k, v;  // not rotated
  ops::Rotary rotary{8, kBase};
  Inputs in;
  explicit Sample(int64_t length)
      : q(random_tensor({2, 4, length, 8}, 1, at::kDouble)),
        k(random_tensor({2, 2, length, 8}, 2, at::kDouble)),
        v(random_tensor({2, 2, length, 5}, 3, at::kDouble)) {
    const at::Tensor positions = at::arange(length, at::kLong);
    in.q = rotary.rotate(q, positions), in.k = rotary.rotate(k, positions), in.v = v;
    in.rotary = &rotary;
  }
};

// All rows of a call, decoded one by one.
at::Tensor decoded(State& state, const Inputs& in) {
  std::vector<at::Tensor> outs;
  for (int64_t row = 0; row < in.q.size(2); ++row) outs.push_back(state.decode(test::rows_of(in, row, 1)).out);
  return at::cat(outs, 2);
}

TEST(Window, equals_the_mask) {
  const at::NoGradGuard no_grad;
  const Sample s(50);
  for (const int64_t size : {1, 7, 60})
    for (const int64_t sinks : {0, 3}) {
      const auto want = test::oracle_attention(
          to_array(s.in.q), to_array(s.in.k), to_array(s.v),
          [&](int64_t, int64_t, int64_t i, int64_t j) { return int(j <= i && (i - j < size || j < sinks)); },
          {.scale = 1 / std::sqrt(8.0), .soft_cap = {}, .bias = {}, .sink = {}});
      EXPECT_TRUE(same(Window{.size = size, .sinks = sinks}.attend(s.in).out, to_tensor(want.out), {1e-11, 1e-11}));
    }
}

TEST(Window, inside_a_layers_own_window_sinks_end_with_it) {
  const at::NoGradGuard no_grad;
  Sample s(50);
  s.in.rule.window_left = 20;
  for (const int64_t size : {5, 21, 30}) {
    const auto want = test::oracle_attention(
        to_array(s.in.q), to_array(s.in.k), to_array(s.v),
        [&](int64_t, int64_t, int64_t i, int64_t j) { return int(j <= i && i - j <= 20 && (i - j < size || j < 2)); },
        {.scale = 1 / std::sqrt(8.0), .soft_cap = {}, .bias = {}, .sink = {}});
    const Window window{.size = size, .sinks = 2};
    EXPECT_TRUE(same(window.attend(s.in).out, to_tensor(want.out), {1e-11, 1e-11})) << size;
    const auto state = window.make_state({.rule = s.in.rule});
    EXPECT_TRUE(same(decoded(*state, s.in), to_tensor(want.out), {1e-11, 1e-11})) << "decode, " << size;
  }
}

TEST(Window, blocks_inside_a_layers_own_window_lose_their_sinks_with_it) {
  const at::NoGradGuard no_grad;
  Sample s(50);
  s.in.rule.window_left = 20;
  const auto want = test::oracle_attention(
      to_array(s.in.q), to_array(s.in.k), to_array(s.v),
      [&](int64_t, int64_t, int64_t i, int64_t j) {
        return int(j <= i && i - j <= 20 && (j / 4 > i / 4 - 2 || j < 4));  // two blocks, and the first
      },
      {.scale = 1 / std::sqrt(8.0), .soft_cap = {}, .bias = {}, .sink = {}});
  const Window window{.size = 8, .sinks = 4, .block = 4};
  EXPECT_TRUE(same(window.attend(s.in).out, to_tensor(want.out), {1e-11, 1e-11}));
  const auto state = window.make_state({.rule = s.in.rule});
  EXPECT_TRUE(same(decoded(*state, s.in), to_tensor(want.out), {1e-11, 1e-11})) << "decode";
  const auto chunked = window.make_state({.rule = s.in.rule});
  std::vector<at::Tensor> outs;
  for (int64_t row = 0; row < 50; row += 4)
    outs.push_back(chunked->prefill(test::rows_of(s.in, row, std::min<int64_t>(4, 50 - row))).out);
  EXPECT_TRUE(same(at::cat(outs, 2), to_tensor(want.out), {1e-11, 1e-11})) << "prompt in chunks";
}

TEST(Window, sinks_are_those_of_each_rows_text) {
  const at::NoGradGuard no_grad;
  Sample s(40);
  const std::vector<int64_t> begins = {9, 0};  // padding at the front, by sequence
  s.in.rule.row_start = at::tensor(begins, at::kLong).view({2, 1, 1}).expand({2, 1, 40});
  for (const std::optional<int64_t> own : {std::optional<int64_t>(), std::optional<int64_t>(15)}) {
    s.in.rule.window_left = own;
    const auto shows = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
      const int64_t text = begins[size_t(b)];
      if (j > i || j < text || (own && i - j > *own)) return 0;
      return int(h < 2 || i - j < 5 || j < text + 2);  // heads 0 and 1 see everything
    };
    s.in.score = {.scale = 0.4, .sink = at::tensor({0.3, -1.0, 0.7, 1.1}, at::kDouble)};
    const auto want =
        test::oracle_attention(to_array(s.in.q), to_array(s.in.k), to_array(s.v), shows,
                               {.scale = 0.4, .soft_cap = {}, .bias = {}, .sink = {{0.3, -1.0, 0.7, 1.1}}});
    const Attended got = attend_window({.size = 5, .sinks = 2}, s.in, std::vector<bool>{false, false, true, true});
    EXPECT_TRUE(same(got.out, to_tensor(want.out), {1e-11, 1e-11}));
    double pairs = 0;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 4; ++h)
        for (int64_t i = 0; i < 40; ++i)
          for (int64_t j = 0; j < 40; ++j) pairs += shows(b, h, i, j);
    EXPECT_EQ(visible_pairs(got.plans[0].plan, s.in.q, s.in.k), pairs);
  }
}

TEST(Window, cache_positions_equal_streaming_llm) {
  const at::NoGradGuard no_grad;
  const Sample s(60);
  for (const int64_t size : {1, 5, 16, 100})
    for (const int64_t sinks : {0, 1, 4}) {
      const Window window{.size = size, .sinks = sinks, .positions = Window::Positions::cache};
      const at::Tensor want = to_tensor(streaming_oracle(to_array(s.q), to_array(s.k), to_array(s.v), size, sinks));
      EXPECT_TRUE(same(window.attend(s.in).out, want, {1e-10, 1e-10})) << size << " " << sinks;
      const auto state = window.make_state({});
      EXPECT_TRUE(same(decoded(*state, s.in), want, {1e-10, 1e-10})) << "decode, " << size << " " << sinks;
    }
}

TEST(Window, state_holds_a_bounded_number_of_keys) {
  const at::NoGradGuard no_grad;
  const Sample s(900);
  const Window window{.size = 10, .sinks = 2};
  const auto state = window.make_state({});
  state->prefill(s.in);
  const int64_t token = 2 * 2 * (8 + 5) * 8;  // batch, key heads, dims, fp64
  EXPECT_LE(state->bytes(), (2 + 2 * 10 + 64) * token);
  EXPECT_EQ(state->read_bytes(), 12 * token);
  EXPECT_EQ(state->length(), 900);
  EXPECT_THROW(state->truncate(500), Error);
}

TEST(Window, cache_positions_need_rotary_embedding) {
  Sample s(20);
  s.in.rotary = nullptr;
  const Window window{.size = 4, .sinks = 2, .positions = Window::Positions::cache};
  EXPECT_THROW(window.attend(s.in), Error);
  EXPECT_THROW((Window{.size = 0}.attend(s.in)), Error);
}

TEST(Window, golden_blocks_of_flux_attentions_streaming) {
  const at::NoGradGuard no_grad;
  const std::vector<std::vector<int64_t>> golden = {{0}, {0, 1}, {0, 1, 2}, {0, 2, 3}, {0, 3, 4}, {0, 4, 5}};
  Inputs in;
  in.q = random_tensor({1, 2, 24, 6}, 1, at::kDouble);
  in.k = random_tensor({1, 1, 24, 6}, 2, at::kDouble);
  in.v = random_tensor({1, 1, 24, 3}, 3, at::kDouble);
  const auto visible = [&](int64_t, int64_t, int64_t i, int64_t j) {
    const auto& blocks = golden[size_t(i / 4)];
    return j <= i && std::ranges::count(blocks, j / 4) > 0 ? 1 : 0;
  };
  const at::Tensor want = to_tensor(
      test::oracle_attention(to_array(in.q), to_array(in.k), to_array(in.v), visible, {.scale = 1 / std::sqrt(6.0)})
          .out);
  const Window window{.size = 8, .sinks = 4, .block = 4};  // S = 1, W = 2
  EXPECT_TRUE(same(window.attend(in).out, want, {1e-12, 1e-12}));
  const auto state = window.make_state({});
  std::vector<at::Tensor> outs;
  for (const auto& [first, count] : {std::pair{0, 6}, {6, 3}, {9, 1}, {10, 1}, {11, 1}, {12, 9}, {21, 1}, {22, 2}}) {
    Inputs part = in;
    part.q = in.q.narrow(2, first, count), part.k = in.k.narrow(2, first, count);
    part.v = in.v.narrow(2, first, count);
    outs.push_back(state->prefill(part).out);
  }
  EXPECT_TRUE(same(at::cat(outs, 2), want, {1e-12, 1e-12}));
  EXPECT_THROW((Window{.size = 8, .sinks = 2, .block = 4}.validate()), Error);
  EXPECT_THROW((Window{.size = 8, .sinks = 4, .block = 4, .positions = Window::Positions::cache}.validate()), Error);
}

}  // namespace
}  // namespace foveate::attention
