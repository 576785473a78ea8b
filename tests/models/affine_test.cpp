// What layers do between their matrix products, in one pass and in the plain form with gradients, against formulas in
// double.
#include "foveate/models/language/affine.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "foveate/base/error.h"
#include "tests/support/attend_problems.h"
#include "tests/support/compare.h"

namespace foveate::models {
namespace {

using at::Tensor;
using test::random_tensor;
using test::same;

constexpr NormRule kRule{NormKind::rms, 1e-5};
constexpr int64_t kLengths[] = {0, 1, 2, 17, 300};

// Every level; at "definition" the plain form.
class LayerAtLevel : public test::AttendAtLevel {
  at::NoGradGuard no_grad_;
};
INSTANTIATE_TEST_SUITE_P(Levels, LayerAtLevel, testing::ValuesIn(test::all_levels()),
                         [](const auto& info) { return info.param; });

// One rounding to `type` of what was computed in fp32.
test::Bound rounded(at::ScalarType type) {
  return type == at::kBFloat16 ? test::Bound{2e-6, 0x1.02p-8} : test::Bound{2e-6, 2e-6};
}

Tensor exact_norm(const Tensor& x, const Affine& w) {
  if (!w.defined()) return x;
  return x / (x * x).mean(-1, true).add(1e-5).sqrt() * w.weight.to(at::kDouble);
}

Affine norm_of(int64_t width, uint64_t seed, bool is_there = true) {
  return is_there ? Affine{random_tensor({width}, seed) + 1, {}} : Affine{};
}

TEST_P(LayerAtLevel, the_stream_takes_in_a_branch) {
  uint64_t seed = 1;
  for (const int64_t length : kLengths)
    for (const int64_t width : {1, 24, 72})
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
        for (int variant = 0; variant < 6; ++variant) {  // without a branch, with, normed; the next norm there or not
          SCOPED_TRACE(fmt::format("{} rows of {}, variant {}", length, width, variant));
          Tensor x = random_tensor({2, length, width}, ++seed), wider = random_tensor({2, length, width + 3}, ++seed);
          const Tensor branch = variant < 2 ? Tensor() : wider.to(type).narrow(2, 1, width);
          const Affine branch_norm = norm_of(width, ++seed, variant >= 4), next = norm_of(width, ++seed, variant % 2);
          Tensor want = x.to(at::kDouble);
          if (branch.defined()) want = want + exact_norm(branch.to(at::kDouble), branch_norm);
          const Tensor got = take_in(x, branch, branch_norm, next, kRule, type);
          EXPECT_TRUE(same(x, want, {2e-6, 2e-6}));
          EXPECT_EQ(got.scalar_type(), type);
          EXPECT_TRUE(same(got, exact_norm(x.to(at::kDouble), next), rounded(type)));
        }
}

TEST_P(LayerAtLevel, heads_are_normed_and_rotated) {
  uint64_t seed = 100;
  for (const int64_t length : kLengths)
    for (const auto& [dim, rotated] : {std::pair{8, 8}, {20, 12}, {80, 80}, {64, 0}})
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
        for (const bool is_normed : {false, true}) {
          SCOPED_TRACE(fmt::format("{} rows, {} of {} channels rotated, norm {}", length, rotated, dim, is_normed));
          // as the parts of a product of several matrices lie
          const Tensor rows = random_tensor({2, length, 3 * dim + 9}, ++seed).to(type).narrow(2, 5, 3 * dim);
          const Affine norm = norm_of(dim, ++seed, is_normed);
          const Tensor positions = at::arange(7, 7 + length, at::kLong);
          std::optional<ops::Rotation> rotation;
          Tensor want = rows.to(at::kDouble).unflatten(2, {3, dim}).transpose(1, 2);
          want = exact_norm(want, norm);
          if (rotated > 0) {
            const ops::Rotary rotary(rotated, 1e4);
            rotation = rotary.rotation(positions, at::kFloat);
            want = rotary.rotate(want, positions);
          }
          const Tensor got = rotated_heads(rows, 3, norm, kRule, rotation ? &*rotation : nullptr);
          EXPECT_EQ(got.scalar_type(), type);
          EXPECT_TRUE(same(got, want, rounded(type)));
        }
}

TEST_P(LayerAtLevel, gates_are_activated_and_multiplied) {
  uint64_t seed = 200;
  for (const int64_t length : kLengths)
    for (const int64_t width : {1, 40, 67})
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
        for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu})
          for (const bool has_up : {false, true}) {
            SCOPED_TRACE(fmt::format("{} rows of {}, activation {}", length, width, int(activation)));
            Tensor wide = random_tensor({1, length, 2 * width + 1}, ++seed) * 3;
            if (length > 2) wide[0][1].fill_(-90), wide[0][2].fill_(1e6), wide[0][3].fill_(std::nan(""));
            wide = wide.to(type);
            const Tensor gate = wide.narrow(2, 0, width), x = gate.to(at::kDouble);
            const Tensor up = has_up ? wide.narrow(2, width, width) : Tensor();
            Tensor want = x / (1 + (-x).exp());
            if (activation == Activation::gelu) want = x * 0.5 * (1 + (x * std::sqrt(0.5)).erf());
            if (activation == Activation::gelu_tanh)
              want = x * 0.5 * (1 + ((x + x * x * x * 0.044715) * std::sqrt(2 / M_PI)).tanh());
            if (has_up) want = want * up.to(at::kDouble);
            const test::Bound once = rounded(type);
            const Tensor got = gated(gate, up, activation);
            EXPECT_EQ(got.scalar_type(), type);
            EXPECT_TRUE(same(got, want, {once.atol * 10, once.rtol * (has_up ? 2.01 : 1)}));
          }
}

// The same functions with gradients recorded are the plain form; a stream that was given stays as it is.
TEST(Layer, gradients_flow_and_nothing_changes_in_place) {
  const Tensor first = random_tensor({1, 5, 24}, 1).set_requires_grad(true);
  const Tensor branch = random_tensor({1, 5, 24}, 2).set_requires_grad(true);
  Tensor x = first;
  const Tensor h = take_in(x, branch, norm_of(24, 3), norm_of(24, 4), kRule, at::kFloat);
  const ops::Rotation rotation = ops::Rotary(8, 1e4).rotation(at::arange(5, at::kLong), at::kFloat);
  const Tensor heads = rotated_heads(h, 3, norm_of(8, 5), kRule, &rotation);
  gated(heads, heads, Activation::silu).sum().backward();
  EXPECT_TRUE(first.equal(random_tensor({1, 5, 24}, 1)));
  for (const Tensor& t : {first, branch}) EXPECT_GT(t.grad().abs().min().item<double>(), 0);
}

TEST(Layer, rows_do_not_depend_on_other_rows_nor_on_threads) {
  const at::NoGradGuard no_grad;
  const Tensor stream = random_tensor({1, 300, 136}, 1), branch = random_tensor({1, 300, 136}, 2);
  const Affine norm = norm_of(136, 3), head_norm = norm_of(34, 4);
  const ops::Rotation rotation = ops::Rotary(32, 1e4).rotation(at::arange(300, at::kLong), at::kFloat);
  const auto all = [&](int64_t first, int64_t count) {
    Tensor x = stream.narrow(1, first, count).clone();
    const Tensor rows = branch.narrow(1, first, count);
    const ops::Rotation turned{rotation.cos.narrow(0, first, count), rotation.sin.narrow(0, first, count)};
    return std::vector<Tensor>{take_in(x, rows, norm, norm, kRule, at::kBFloat16), x,
                               rotated_heads(rows, 4, head_norm, kRule, &turned).transpose(1, 2),
                               gated(rows, x, Activation::gelu_tanh)};
  };
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const auto together = all(0, 300), one = all(299, 1);
  at::set_num_threads(1);
  const auto alone = all(0, 300);
  at::set_num_threads(threads);
  for (size_t i = 0; i < together.size(); ++i) {
    EXPECT_TRUE(together[i].equal(alone[i])) << i;
    EXPECT_TRUE(together[i].narrow(1, 299, 1).equal(one[i])) << i;
  }
}

TEST(Layer, what_does_not_fit_is_refused) {
  const at::NoGradGuard no_grad;
  Tensor x = random_tensor({1, 3, 8}, 1);
  EXPECT_THROW(take_in(x, random_tensor({1, 3, 7}, 1), {}, {}, kRule, at::kFloat), Error);
  EXPECT_THROW(take_in(x, {}, {}, norm_of(7, 1), kRule, at::kFloat), Error);
  EXPECT_THROW(rotated_heads(x, 3, {}, kRule, nullptr), Error);
  const ops::Rotation rotation = ops::Rotary(4, 1e4).rotation(at::arange(2, at::kLong), at::kFloat);
  EXPECT_THROW(rotated_heads(x, 2, {}, kRule, &rotation), Error);
  EXPECT_THROW(gated(x, random_tensor({1, 3, 7}, 1), Activation::silu), Error);
}

}  // namespace
}  // namespace foveate::models
