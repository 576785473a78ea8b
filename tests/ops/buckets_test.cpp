// Hashing and sorting into buckets against plain loops.
#include "foveate/ops/select/buckets.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/quantise/quantise.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;

TEST(Buckets, gray_places_equal_the_published_tables) {
  EXPECT_EQ(gray_places(3, GrayOrder::exact), (std::vector<int64_t>{0, 1, 3, 2, 7, 6, 4, 5}));
  EXPECT_EQ(gray_places(3, GrayOrder::reference), (std::vector<int64_t>{0, 1, 3, 2, 6, 7, 5, 4}));
  EXPECT_EQ(gray_places(0, GrayOrder::exact), (std::vector<int64_t>{0}));
  EXPECT_THROW(gray_places(17, GrayOrder::exact), Error);
}

// How many pairs of cyclic neighbours differ in 1, 2, .. bits.
std::vector<int> distances(int64_t bits, GrayOrder order) {
  const auto places = gray_places(bits, order);
  std::vector<uint64_t> bins(places.size(), ~uint64_t{0});
  for (size_t bin = 0; bin < places.size(); ++bin) bins[size_t(places[bin])] = bin;
  std::vector<int> counts(size_t(bits + 1));
  for (size_t i = 0; i < bins.size(); ++i) ++counts[size_t(std::popcount(bins[i] ^ bins[(i + 1) % bins.size()]))];
  return counts;
}

TEST(Buckets, neighbours_of_the_exact_order_differ_in_one_bit) {
  for (int64_t bits = 1; bits <= 16; ++bits) EXPECT_EQ(distances(bits, GrayOrder::exact)[1], 1 << bits) << bits;
  EXPECT_EQ(distances(7, GrayOrder::reference), (std::vector<int>{0, 96, 24, 6, 2, 0, 0, 0}));
}

// The place by its definition: the reflected code written out, one bit after the other.
int64_t place_by_reflection(uint64_t bin, int64_t bits) {
  std::vector<uint64_t> codes = {0};
  for (int64_t bit = 0; bit < bits; ++bit)
    for (int64_t i = int64_t(codes.size()) - 1; i >= 0; --i) codes.push_back(codes[size_t(i)] | uint64_t{1} << bit);
  return std::find(codes.begin(), codes.end(), bin) - codes.begin();
}

at::Tensor hash_by_loops(const at::Tensor& x, const at::Tensor& projections) {
  const at::Tensor a = x.to(at::kDouble).contiguous(), p = projections.to(at::kDouble).contiguous();
  const int64_t rows = a.numel() / a.size(3), bits = p.size(1);
  const at::Tensor out = at::empty({a.size(0), a.size(1), a.size(2)}, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t bin = 0;
    for (int64_t c = 0; c < bits; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < a.size(3); ++d)
        sum += a.const_data_ptr<double>()[row * a.size(3) + d] * p.const_data_ptr<double>()[d * bits + c];
      bin |= uint64_t{sum > 0} << c;
    }
    out.mutable_data_ptr<int64_t>()[row] = place_by_reflection(bin, bits);
  }
  return out;
}

TEST(Buckets, hashes_equal_plain_loops_for_every_dtype_and_layout) {
  for (const int64_t bits : {0, 1, 7, 8, 9, 16})
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      const at::Tensor x = random_tensor({2, 37, 3, 12}, 1, type).transpose(1, 2);
      const at::Tensor p = random_tensor({12, bits}, 2, at::kDouble);
      EXPECT_TRUE(angular_buckets(x, p, GrayOrder::exact).equal(hash_by_loops(x, p))) << bits;
    }
  const at::Tensor x = random_tensor({1, 2, 9, 40}, 3), p = random_tensor({40, 5}, 4), codes = quantise_rows(x);
  EXPECT_TRUE(angular_buckets(codes, p, GrayOrder::exact).equal(hash_by_loops(dequantise_rows(codes, at::kFloat), p)));
  EXPECT_THROW(angular_buckets(x, random_tensor({39, 5}, 4), GrayOrder::exact), Error);
  EXPECT_THROW(angular_buckets(x, random_tensor({40, 17}, 4), GrayOrder::exact), Error);
}

TEST(Buckets, rows_collide_as_often_as_their_angle_says) {
  constexpr int64_t kDraws = 4000, kBits = 3;
  const double angle = 0.6;
  const at::Tensor x = at::tensor({1.0, 0.0, std::cos(angle), std::sin(angle)}, at::kDouble).view({1, 1, 2, 2});
  int together = 0, neighbours = 0;
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    const at::Tensor b = angular_buckets(x, random_tensor({2, kBits}, uint64_t(draw) + 10), GrayOrder::exact);
    const int64_t apart = std::abs(b[0][0][0].item<int64_t>() - b[0][0][1].item<int64_t>());
    together += apart == 0, neighbours += apart == 1 || apart == (1 << kBits) - 1;
  }
  const double t = angle / M_PI, same = std::pow(1 - t, kBits), next = 2 * t * std::pow(1 - t, kBits - 1);
  const auto deviation = [](double p) { return 4 * std::sqrt(p * (1 - p) / kDraws); };
  EXPECT_NEAR(double(together) / kDraws, same, deviation(same));
  EXPECT_NEAR(double(neighbours) / kDraws, next, deviation(next));
}

TEST(Buckets, sorting_equals_a_stable_sort_of_each_segment) {
  Random random(5);
  const at::Tensor buckets = at::empty({2, 3, 50}, at::kLong);
  for (int64_t i = 0; i < buckets.numel(); ++i) buckets.mutable_data_ptr<int64_t>()[i] = int64_t(random.below(6));
  const std::vector<Segment> segments = {{0, 13}, {13, 0}, {20, 30}, {5, 16}};
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const at::Tensor order = sort_buckets(buckets, 6, segments, 32);
    ASSERT_EQ(order.sizes(), (std::vector<int64_t>{2, 3, 4, 32}));
    for (int64_t list = 0; list < 6; ++list)
      for (size_t s = 0; s < segments.size(); ++s) {
        const int64_t* bucket = buckets.const_data_ptr<int64_t>() + list * 50;
        std::vector<int64_t> want;
        for (int64_t row = 0; row < segments[s].length; ++row) want.push_back(segments[s].first + row);
        std::stable_sort(want.begin(), want.end(), [&](int64_t a, int64_t b) { return bucket[a] < bucket[b]; });
        want.resize(32, -1);
        const int64_t* got = order.const_data_ptr<int64_t>() + (list * 4 + int64_t(s)) * 32;
        EXPECT_EQ(std::vector<int64_t>(got, got + 32), want);
      }
  }
  at::set_num_threads(1);
}

TEST(Buckets, sorting_refuses_what_does_not_fit) {
  const at::Tensor buckets = at::zeros({1, 1, 8}, at::kLong);
  EXPECT_THROW(sort_buckets(buckets, 1, std::vector<Segment>{{0, 9}}, 16), Error);
  EXPECT_THROW(sort_buckets(buckets, 1, std::vector<Segment>{{0, 8}}, 7), Error);
  EXPECT_THROW(sort_buckets(buckets + 1, 1, std::vector<Segment>{{0, 8}}, 8), Error);
  EXPECT_THROW(sort_buckets(buckets.to(at::kInt), 1, std::vector<Segment>{{0, 8}}, 8), Error);
  EXPECT_EQ(sort_buckets(at::zeros({1, 1, 0}, at::kLong), 1, {}, 4).numel(), 0);
}

}  // namespace
}  // namespace foveate::ops
