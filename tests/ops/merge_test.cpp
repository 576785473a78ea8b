#include "foveate/ops/merge/merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;
using test::same;

TEST(Merge, parts_over_disjoint_keys_give_the_whole_with_its_gradients) {
  at::Tensor q = random_tensor({2, 4, 7, 8}, 1, at::kDouble).requires_grad_();
  at::Tensor k = random_tensor({2, 2, 20, 8}, 2, at::kDouble).requires_grad_();
  at::Tensor v = random_tensor({2, 2, 20, 5}, 3, at::kDouble).requires_grad_();
  const at::Tensor d_out = random_tensor({2, 4, 7, 5}, 4, at::kDouble),
                   d_lse = random_tensor({2, 4, 7}, 5, at::kDouble);
  const auto gradients = [&](const Attended& a) {
    for (at::Tensor* t : {&q, &k, &v}) t->mutable_grad() = at::Tensor();
    ((a.out * d_out).sum() + (a.lse * d_lse).sum()).backward();
    return std::vector<at::Tensor>{a.out, a.lse, q.grad(), k.grad(), v.grad()};
  };
  const auto want = gradients(attend(q, k, v, Rule{}));
  const int64_t cuts[] = {0, 3, 14, 20};
  std::vector<Attended> parts;
  for (int i = 0; i < 3; ++i) {  // query i sits at 13 + i of the whole, so the third part is empty for some rows
    const int64_t first = cuts[i], count = cuts[i + 1] - first;
    parts.push_back(attend(q, k.narrow(2, first, count), v.narrow(2, first, count), Rule{.query_start = 13 - first}));
  }
  const auto got = gradients(merge_by_lse(parts));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(same(got[i], want[i], {1e-12, 1e-12})) << i;
}

TEST(Merge, the_empty_part_changes_nothing_and_all_empty_is_empty) {
  const Attended empty{at::zeros({1, 1, 2, 3}), at::full({1, 1, 2}, -INFINITY)};
  const Attended some{random_tensor({1, 1, 2, 3}, 1), random_tensor({1, 1, 2}, 2)};
  const Attended pair[] = {empty, some}, none[] = {empty, empty};
  EXPECT_TRUE(same(merge_by_lse(pair).out, some.out, {1e-7, 1e-6}));
  EXPECT_TRUE(same(merge_by_lse(pair).lse, some.lse, {1e-7, 1e-6}));
  EXPECT_TRUE(merge_by_lse(none).out.equal(empty.out));
  EXPECT_TRUE(merge_by_lse(none).lse.equal(empty.lse));
}

TEST(Merge, gives_the_same_with_and_without_gradients) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const int64_t dim : {1, 5, 16, 70}) {
      std::vector<Attended> parts, learned;
      for (uint64_t i = 0; i < 3; ++i) {
        parts.push_back({random_tensor({2, 300, 3, dim}, i, type).transpose(1, 2), random_tensor({2, 3, 300}, i + 9)});
        if (i < 2) parts.back().lse.select(2, 7).fill_(-INFINITY);
        learned.push_back({parts.back().out.detach().clone().requires_grad_(), parts.back().lse});
      }
      const Attended a = merge_by_lse(parts), b = merge_by_lse(learned);
      const double unit = type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 8e-3;
      EXPECT_TRUE(same(a.out, b.out.detach().to(at::kDouble), {unit, unit}));
      EXPECT_TRUE(a.lse.equal(b.lse));
      EXPECT_EQ(a.out.scalar_type(), type);
    }
}

TEST(Mix, equals_plain_loops_with_gradients_and_leaves_empty_parts_out) {
  constexpr int64_t kRows = 6, kDim = 3, kParts = 4;
  std::vector<Attended> parts;
  std::vector<at::Tensor> logits;
  for (int64_t i = 0; i < kParts; ++i) {
    const uint64_t seed = uint64_t(10 * i);
    at::Tensor lse = random_tensor({1, 1, kRows}, seed + 2, at::kDouble);
    lse.narrow(2, 0, i == 3 ? 1 : i).fill_(-INFINITY);  // row 0 has part 0 alone
    parts.push_back({random_tensor({1, 1, kRows, kDim}, seed + 1, at::kDouble).requires_grad_(), lse});
    logits.push_back(random_tensor({1, 1, kRows}, seed + 3, at::kDouble).requires_grad_());
  }
  const at::Tensor d = random_tensor({1, 1, kRows, kDim}, 99, at::kDouble), out = mix(parts, logits);
  (out * d).sum().backward();
  const auto at = [](const at::Tensor& t, int64_t row) { return t[0][0][row].item<double>(); };
  for (int64_t row = 0; row < kRows; ++row) {
    double weights[kParts], total = 0, along[kParts] = {}, mean = 0;
    for (int64_t i = 0; i < kParts; ++i) {
      weights[i] = std::isinf(at(parts[size_t(i)].lse, row)) ? 0 : std::exp(at(logits[size_t(i)], row));
      total += weights[i];
    }
    for (int64_t i = 0; i < kParts; ++i) {
      weights[i] /= total;
      for (int64_t e = 0; e < kDim; ++e)
        along[i] += d[0][0][row][e].item<double>() * parts[size_t(i)].out[0][0][row][e].item<double>();
      mean += weights[i] * along[i];
    }
    for (int64_t i = 0; i < kParts; ++i)
      EXPECT_NEAR(at(logits[size_t(i)].grad(), row), weights[i] * (along[i] - mean), 1e-12);
    for (int64_t e = 0; e < kDim; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < kParts; ++i) {
        sum += weights[i] * parts[size_t(i)].out[0][0][row][e].item<double>();
        EXPECT_NEAR(parts[size_t(i)].out.grad()[0][0][row][e].item<double>(),
                    weights[i] * d[0][0][row][e].item<double>(), 1e-12);
      }
      EXPECT_NEAR(out[0][0][row][e].item<double>(), sum, 1e-12);
    }
  }
}

TEST(Mix, of_empty_parts_is_zero_and_wrong_shapes_are_refused) {
  const Attended empty[] = {{at::zeros({1, 1, 2, 3}), at::full({1, 1, 2}, -INFINITY)}};
  const at::Tensor logits[] = {at::zeros({1, 1, 2}).requires_grad_()};
  const at::Tensor out = mix(empty, logits);
  EXPECT_EQ(out.abs().max().item<float>(), 0);
  out.sum().backward();
  EXPECT_TRUE(logits[0].grad().eq(0).all().item<bool>());
  EXPECT_THROW(mix(empty, {}), Error);
  const at::Tensor wrong[] = {at::zeros({1, 1, 3})};
  EXPECT_THROW(mix(empty, wrong), Error);
}

TEST(Merge, refuses_nothing_and_other_shapes) {
  EXPECT_THROW(merge_by_lse({}), Error);
  const Attended parts[] = {{at::zeros({1, 1, 2, 3}), at::zeros({1, 1, 2})},
                            {at::zeros({1, 1, 3, 3}), at::zeros({1, 1, 3})}};
  EXPECT_THROW(merge_by_lse(parts), Error);
}

}  // namespace
}  // namespace foveate::ops
