// Products with weights that stay packed, against the same weights made dense from their codes.
#include "foveate/ops/linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "foveate/ops/parallel.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;
using test::same;

constexpr int64_t kOut = 37, kIn = 96;

int code(int64_t row, int64_t column) { return int((row * 7 + column * 5 + row * column) % 16); }
constexpr uint16_t kScales[] = {0x3000, 0x2c00, 0x3400};  // fp16: 1/8, 1/16, 1/4
constexpr double kScaleValues[] = {0.125, 0.0625, 0.25};
constexpr uint16_t kMinimum = 0xbc00;  // -1

kernels::PackedMatrix packed(int64_t out = kOut) {
  kernels::PackedMemory memory;
  const QuantFormat format{4, 0, 32, 32, true};
  return {format,
          out,
          kIn,
          [](int64_t row, QuantRow& to) {
            for (int64_t i = 0; i < kIn; ++i) to.codes[size_t(i)] = uint8_t(code(row, i));
            for (int64_t b = 0; b < kIn / 32; ++b) {
              to.scales[size_t(b)] = kScales[(row + b) % 3];
              to.minima[size_t(b)] = kMinimum;
            }
          },
          memory,
          torch_pool()};
}

at::Tensor dense() {
  const at::Tensor w = at::empty({kOut, kIn}, at::kDouble);
  for (int64_t row = 0; row < kOut; ++row)
    for (int64_t i = 0; i < kIn; ++i)
      w.mutable_data_ptr<double>()[row * kIn + i] = kScaleValues[(row + i / 32) % 3] * code(row, i) - 1;
  return w;
}

TEST(PackedLinear, few_and_many_rows_equal_the_dense_product) {
  const kernels::PackedMatrix weight = packed();
  const at::Tensor bias = random_tensor({kOut}, 3);
  for (const int64_t rows : {1, 2, 16, 17, 50}) {
    const at::Tensor x = random_tensor({rows, kIn}, uint64_t(rows));
    const at::Tensor want = x.to(at::kDouble).matmul(dense().t());
    const double size = want.abs().max().item<double>();
    EXPECT_TRUE(same(linear(x, weight), want, {2e-5 * size, 0})) << rows;
    EXPECT_TRUE(same(linear(x, weight, bias), want + bias.to(at::kDouble), {2e-5 * size, 0})) << rows;
    const at::Tensor half = x.to(at::kBFloat16);
    const at::Tensor want_half = half.to(at::kDouble).matmul(dense().t());
    const at::Tensor got = linear(half, weight);
    EXPECT_EQ(got.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(same(got, want_half, {1e-5 * size, 4e-3})) << rows;  // bf16 rounds the result
    const at::Tensor half_bias = (bias * 100).to(at::kBFloat16);     // rounded once, after the bias
    EXPECT_TRUE(same(linear(half, weight, half_bias), want_half + half_bias.to(at::kDouble), {1e-5 * size, 4e-3}))
        << rows;
  }
}

TEST(PackedLinear, few_outputs_and_many_rows) {
  const kernels::PackedMatrix weight = packed(5);
  const at::Tensor x = random_tensor({17, kIn}, 9), want = x.to(at::kDouble).matmul(dense().narrow(0, 0, 5).t());
  EXPECT_TRUE(same(linear(x, weight), want, {2e-5 * want.abs().max().item<double>(), 0}));
}

TEST(PackedLinear, several_weights_give_what_each_gives) {
  const kernels::PackedMatrix a = packed(), b = packed(5);
  const at::Tensor bias = random_tensor({5}, 4);
  for (const int64_t rows : {1, 3, 40}) {
    const at::Tensor x = random_tensor({rows, kIn}, uint64_t(rows));
    const PackedAffine both[] = {{&a, {}}, {&b, bias}};
    const std::vector<at::Tensor> got = linear(x, both);
    ASSERT_EQ(got.size(), 2u);
    EXPECT_TRUE(same(got[0], linear(x, a), {}));
    EXPECT_TRUE(same(got[1], linear(x, b, bias), {}));
    const PackedAffine plain[] = {{&b, {}}, {&a, {}}};  // many rows are one product
    const std::vector<at::Tensor> joined = linear(x, plain);
    const at::Tensor want = x.to(at::kDouble).matmul(dense().t());
    const double size = want.abs().max().item<double>();
    EXPECT_TRUE(same(joined[0], want.narrow(1, 0, 5), {2e-5 * size, 0}));
    EXPECT_TRUE(same(joined[1], want, {2e-5 * size, 0}));
  }
}

TEST(PackedLinear, leading_axes_stay) {
  const kernels::PackedMatrix weight = packed();
  const at::Tensor x = random_tensor({2, 3, kIn}, 5);
  const at::Tensor y = linear(x, weight);
  EXPECT_EQ(y.sizes(), (at::IntArrayRef{2, 3, kOut}));
  EXPECT_TRUE(same(y.view({6, kOut}), linear(x.view({6, kIn}), weight), {}));
  EXPECT_EQ(linear(x.narrow(0, 0, 0), weight).sizes(), (at::IntArrayRef{0, 3, kOut}));
}

TEST(PackedLinear, rows_are_the_weights_own) {
  const at::Tensor ids = at::arange(kOut, at::kLong).flip(0).view({1, kOut});
  EXPECT_TRUE(same(packed_rows(packed(), ids).squeeze(0), dense().flip(0), {}));
}

TEST(PackedLinear, what_cannot_be_is_refused_in_one_line) {
  const kernels::PackedMatrix weight = packed();
  const auto error = [&](const at::Tensor& x) -> std::string {
    try {
      linear(x, weight);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(error(random_tensor({2, 95}, 1)), "linear: x must be [.., 96], got [2, 95]");
  EXPECT_EQ(error(random_tensor({2, kIn}, 1).to(at::kDouble)),
            "linear: x must be fp32 or bf16 where the weight is packed, got Double");
  EXPECT_EQ(error(random_tensor({2, kIn}, 1).requires_grad_(true)),
            "linear: packed weights pass no gradient, load them dense to train");
}

}  // namespace
}  // namespace foveate::ops
