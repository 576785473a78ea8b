// Weighted values at offsets against plain loops in double, at every level.
#include "foveate/ops/offsets/weigh_offsets.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tests/support/attend_problems.h"
#include "tests/support/messages.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class OffsetsAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, OffsetsAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

struct Case {
  int64_t batch, channels, height, width, factor;
  std::vector<int64_t> rows, columns;
};

const std::vector<int64_t> kCrossRows = {-1, 0, 0, 0, 1}, kCrossColumns = {0, -1, 0, 1, 0};

std::vector<Case> cases() {
  const std::vector<int64_t> wide_rows = {-2, -2, 0, 0, 1, 2, 5}, wide_columns = {-2, 2, 0, -1, 3, 2, -7};
  std::vector<Case> all;
  for (const int64_t factor : {1, 2, 3, 4})
    for (const int64_t channels : {1, 7, 16, 70}) {
      all.push_back({2, channels, 3, 4, factor, kCrossRows, kCrossColumns});
      all.push_back({1, channels, 4, 3, factor, wide_rows, wide_columns});  // beyond the grid, on both sides
    }
  all.push_back({1, 5, 1, 1, 2, wide_rows, wide_columns});
  all.push_back({1, 5, 1, 6, 2, kCrossRows, kCrossColumns});
  all.push_back({1, 5, 3, 2, 2, {0}, {0}});
  return all;
}

struct Loops {
  Array out, d_value, d_logits;
};

Loops loops(const Case& c, const Tensor& value, const Tensor& logits, const Tensor& d_out) {
  const Array v = to_array(value), z = to_array(logits), d = to_array(d_out);
  Loops r{Array(c.batch, c.channels, c.height * c.factor, c.width * c.factor),
          Array(c.batch, c.channels, c.height, c.width), Array(z.shape[0], z.shape[1], z.shape[2], z.shape[3])};
  const auto offsets = int64_t(c.rows.size());
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t p = 0; p < c.height * c.factor; ++p)
      for (int64_t q = 0; q < c.width * c.factor; ++q) {
        double sum = 0, mean = 0;
        for (int64_t k = 0; k < offsets; ++k) sum += std::exp(z.at(b, k, p, q));
        std::vector<double> weight, gradient;
        for (int64_t k = 0; k < offsets; ++k) {
          const int64_t i = std::clamp<int64_t>(p / c.factor + c.rows[size_t(k)], 0, c.height - 1);
          const int64_t j = std::clamp<int64_t>(q / c.factor + c.columns[size_t(k)], 0, c.width - 1);
          weight.push_back(std::exp(z.at(b, k, p, q)) / sum);
          gradient.push_back(0);
          for (int64_t e = 0; e < c.channels; ++e) {
            r.out.at(b, e, p, q) += weight.back() * v.at(b, e, i, j);
            r.d_value.at(b, e, i, j) += weight.back() * d.at(b, e, p, q);
            gradient.back() += v.at(b, e, i, j) * d.at(b, e, p, q);
          }
          mean += weight.back() * gradient.back();
        }
        for (int64_t k = 0; k < offsets; ++k)
          r.d_logits.at(b, k, p, q) = weight[size_t(k)] * (gradient[size_t(k)] - mean);
      }
  return r;
}

struct Inputs {
  Tensor value, logits, d_out;
};

Inputs make_inputs(const Case& c, at::ScalarType type) {
  const int64_t rows = c.height * c.factor, columns = c.width * c.factor;
  return {random_tensor({c.batch, c.channels, c.height, c.width}, 1, type).requires_grad_(),
          random_tensor({c.batch, int64_t(c.rows.size()), rows, columns}, 2, type).requires_grad_(),
          random_tensor({c.batch, c.channels, rows, columns}, 3, type)};
}

TEST_P(OffsetsAtLevel, equal_plain_loops_with_gradients) {
  const std::pair<at::ScalarType, Bound> types[] = {{at::kDouble, {1e-12, 1e-12}},
                                                    {at::kFloat, {3e-5, 1e-5}},
                                                    {at::kBFloat16, {4e-2, 2e-2}},
                                                    {at::kHalf, {5e-3, 3e-3}}};
  for (const Case& c : cases())
    for (const auto& [type, bound] : types) {
      const Inputs x = make_inputs(c, type);
      const Tensor out = weigh_offsets(x.value, x.logits, c.rows, c.columns);
      EXPECT_EQ(out.scalar_type(), type);
      out.backward(x.d_out);
      const Loops want = loops(c, x.value, x.logits, x.d_out);
      const std::string at = fmt::format("{} {} {} {} {}", c.channels, c.height, c.width, c.factor, int(type));
      EXPECT_TRUE(same(out, to_tensor(want.out), bound)) << at;
      EXPECT_TRUE(same(x.value.grad(), to_tensor(want.d_value), bound)) << at;
      EXPECT_TRUE(same(x.logits.grad(), to_tensor(want.d_logits), bound)) << at;
    }
}

// n 5, two pixels a cell and axis, value [[1, 2], [3, 4]], logits 0.5 ((k + p + 2 q) mod 3).
TEST_P(OffsetsAtLevel, golden_numbers_of_a_cross) {
  const Tensor value = at::zeros({1, 1, 2, 2}), logits = at::zeros({1, 5, 4, 4});
  for (int64_t n = 0; n < 4; ++n) value.flatten()[n] = n + 1;
  for (int64_t k = 0; k < 5; ++k)
    for (int64_t p = 0; p < 4; ++p)
      for (int64_t q = 0; q < 4; ++q) logits[0][k][p][q] = 0.5 * double((k + p + 2 * q) % 3);
  const double want[16] = {1.536127, 1.519332, 2.279256, 2.205686, 1.727890, 1.536127, 2.110068, 2.279256,
                           2.700804, 2.830623, 3.544805, 3.291540, 2.875245, 2.700804, 3.381989, 3.544805};
  const Tensor out = weigh_offsets(value, logits, kCrossRows, kCrossColumns).flatten();
  for (int64_t n = 0; n < 16; ++n) EXPECT_NEAR(out[n].item<double>(), want[n], 1e-6);
}

TEST_P(OffsetsAtLevel, constant_values_stay_and_gradients_of_values_keep_their_sum) {
  const Case c{2, 20, 3, 5, 2, kCrossRows, kCrossColumns};
  const Inputs x = make_inputs(c, at::kFloat);
  EXPECT_TRUE(same(weigh_offsets(at::full_like(x.value, 3), x.logits, c.rows, c.columns), at::full_like(x.d_out, 3),
                   {1e-6, 1e-6}));
  weigh_offsets(x.value, x.logits, c.rows, c.columns).backward(x.d_out);
  EXPECT_TRUE(same(x.value.grad().sum({0, 2, 3}), x.d_out.sum({0, 2, 3}), {1e-4, 1e-4}));
}

TEST_P(OffsetsAtLevel, any_strides_give_the_same_bits_on_any_number_of_threads) {
  const Case c{2, 33, 9, 7, 2, kCrossRows, kCrossColumns};
  const Inputs x = make_inputs(c, at::kFloat);
  const int before = at::get_num_threads();
  std::vector<std::vector<Tensor>> results;
  for (const int threads : {1, 2})
    for (const bool last : {false, true}) {
      at::set_num_threads(threads);
      const auto laid = [&](const Tensor& t) {
        return t.detach().contiguous(last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
      };
      const Tensor value = laid(x.value).requires_grad_(), logits = laid(x.logits).requires_grad_();
      const Tensor out = weigh_offsets(value, logits, c.rows, c.columns);
      EXPECT_TRUE(out.is_contiguous(at::MemoryFormat::ChannelsLast));
      out.backward(laid(x.d_out));
      results.push_back({out.detach(), value.grad()});
    }
  at::set_num_threads(before);
  for (size_t i = 1; i < results.size(); ++i)
    for (size_t n = 0; n < 2; ++n) EXPECT_TRUE(results[i][n].equal(results[0][n])) << i;
}

TEST_P(OffsetsAtLevel, only_the_gradients_that_are_wanted_are_made_and_none_twice) {
  const Case c{1, 5, 3, 4, 2, kCrossRows, kCrossColumns};
  const Inputs x = make_inputs(c, at::kFloat);
  const Tensor out = weigh_offsets(x.value, x.logits.detach(), c.rows, c.columns);
  const auto first = torch::autograd::grad({out.square().sum()}, {x.value}, {}, std::nullopt, /*create_graph=*/true);
  EXPECT_ANY_THROW(first[0].square().sum().backward());
  const Inputs y = make_inputs(c, at::kFloat);
  weigh_offsets(y.value.detach(), y.logits, c.rows, c.columns).sum().backward();
  EXPECT_TRUE(y.logits.grad().defined());
}

TEST(WeighOffsets, results_may_have_more_than_2_31_elements) {
  if (!std::getenv("FOVEATE_EXTENDED")) GTEST_SKIP() << "10 GB of memory and a minute; FOVEATE_EXTENDED=1 runs it";
  const int64_t cells = 1025, channels = 512;  // 2,050 x 2,050 pixels
  const Tensor value = random_tensor({1, channels, cells, cells}, 1, at::kBFloat16);
  const Tensor logits = random_tensor({1, 5, 2 * cells, 2 * cells}, 2, at::kBFloat16);
  const Tensor out = weigh_offsets(value, logits, kCrossRows, kCrossColumns);
  ASSERT_GT(out.numel(), int64_t{1} << 31);
  const Tensor end = weigh_offsets(value.slice(2, -8), logits.slice(2, -16), kCrossRows, kCrossColumns);
  EXPECT_TRUE(out.slice(2, -14).equal(end.slice(2, -14)));  // but for the rows that see where the part begins
}

TEST(WeighOffsets, refuses_what_does_not_fit) {
  const Case c{1, 5, 3, 4, 2, kCrossRows, kCrossColumns};
  const Inputs x = make_inputs(c, at::kFloat);
  const auto message = [&](const Tensor& value, const Tensor& logits, std::vector<int64_t> rows) {
    return message_of([&] { weigh_offsets(value, logits, rows, kCrossColumns); });
  };
  EXPECT_EQ(message(x.value, x.logits.narrow(3, 0, 7), kCrossRows),
            "weigh_offsets: logits must have I x I pixels for each cell of 3 x 4, I whole, got 6 x 7");
  EXPECT_EQ(message(x.value, x.logits.narrow(2, 0, 3), kCrossRows),
            "weigh_offsets: logits must have I x I pixels for each cell of 3 x 4, I whole, got 3 x 8");
  EXPECT_EQ(message(x.value, x.logits.narrow(1, 0, 4), kCrossRows),
            "weigh_offsets: rows, columns and logits must have as many offsets, >= 1, got 5, 5 and 4");
  EXPECT_NE(message(x.value[0], x.logits, kCrossRows).find("must be floating point"), std::string::npos);
}

}  // namespace
}  // namespace foveate::ops
