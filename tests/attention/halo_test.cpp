// Halo attention against the formula as plain loops in double, the published golden numbers and its invariants.
#include "foveate/attention/local/halo.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "foveate/ops/neighborhood/neighborhood.h"
#include "tests/support/attend_problems.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace foveate::test;
using at::Tensor;

class HaloAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, HaloAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

struct Inputs {
  Tensor q, k, v;
  RelativeEmbeddings embeddings;
};

struct MapSize {
  int64_t height, width;
};

Inputs make_inputs(const MapSize& map, const Halo& o, int64_t heads = 2, int64_t dim = 3, int64_t value_dim = 5) {
  const int64_t rows = (map.height + o.stride - 1) / o.stride, columns = (map.width + o.stride - 1) / o.stride;
  const auto heads_last = [&](at::IntArrayRef shape, uint64_t seed) {
    return random_tensor(shape, seed, at::kDouble).permute({0, 3, 1, 2, 4});
  };
  return {heads_last({2, rows, columns, heads, dim}, 1),
          heads_last({2, map.height, map.width, heads, dim}, 2),
          heads_last({2, map.height, map.width, heads, value_dim}, 3),
          {random_tensor({2 * o.window() - 1, dim}, 4, at::kDouble),
           random_tensor({2 * o.window() - 1, dim}, 5, at::kDouble)}};
}

struct Oracle {
  Tensor out, lse;
};

// Pixel by pixel, by the words of the paper and its implementations.
Oracle loops(const Inputs& x, const Halo& o) {
  const auto q = x.q.accessor<double, 5>(), k = x.k.accessor<double, 5>(), v = x.v.accessor<double, 5>();
  const auto height = x.embeddings.height.accessor<double, 2>(), width = x.embeddings.width.accessor<double, 2>();
  const int64_t dim = q.size(4), window = o.block + 2 * o.halo;
  const double scale = 1 / std::sqrt(double(dim));
  const Tensor out = at::zeros({q.size(0), q.size(1), q.size(2), q.size(3), v.size(4)}, at::kDouble);
  const Tensor lse = at::zeros({q.size(0), q.size(1), q.size(2), q.size(3)}, at::kDouble);
  const auto first_of = [&](int64_t block, int64_t pixels) {
    const int64_t start = block * o.block - o.halo;
    if (o.padding != HaloPadding::shift) return start;
    return std::max<int64_t>(0, std::min(start, pixels - window));
  };
  for (int64_t b = 0; b < q.size(0); ++b)
    for (int64_t h = 0; h < q.size(1); ++h)
      for (int64_t y = 0; y < q.size(2); ++y)
        for (int64_t xx = 0; xx < q.size(3); ++xx) {
          const int64_t row = y * o.stride, column = xx * o.stride;
          const int64_t top = first_of(row / o.block, k.size(2)), left = first_of(column / o.block, k.size(3));
          const int64_t iy = o.strided_index ? row % o.block / o.stride : row % o.block;
          const int64_t ix = o.strided_index ? column % o.block / o.stride : column % o.block;
          std::vector<double> logits;
          std::vector<std::pair<int64_t, int64_t>> pixels;
          for (int64_t jy = 0; jy < window; ++jy)
            for (int64_t jx = 0; jx < window; ++jx) {
              const int64_t r = top + jy, c = left + jx;
              const bool inside = r >= 0 && r < k.size(2) && c >= 0 && c < k.size(3);
              if (!inside && o.padding != HaloPadding::zero) continue;
              const int64_t ty = o.padding == HaloPadding::shift ? r - row + window - 1 : jy - iy + window - 1;
              const int64_t tx = o.padding == HaloPadding::shift ? c - column + window - 1 : jx - ix + window - 1;
              double product = 0, position = 0;
              for (int64_t e = 0; e < dim; ++e) {
                if (inside) product += q[b][h][y][xx][e] * k[b][h][r][c][e];
                position += q[b][h][y][xx][e] * (height[ty][e] + width[tx][e]);
              }
              logits.push_back(scale * product + (o.scale_positions ? scale * position : position));
              pixels.emplace_back(inside ? r : -1, c);
            }
          double sum = 0;
          for (const double z : logits) sum += std::exp(z);
          lse.accessor<double, 4>()[b][h][y][xx] = std::log(sum);
          for (size_t n = 0; n < logits.size(); ++n)
            for (int64_t e = 0; e < v.size(4) && pixels[n].first >= 0; ++e)
              out.accessor<double, 5>()[b][h][y][xx][e] +=
                  std::exp(logits[n]) / sum * v[b][h][pixels[n].first][pixels[n].second][e];
        }
  return {out, lse};
}

const std::vector<HaloPadding> kPaddings = {HaloPadding::zero, HaloPadding::mask, HaloPadding::shift};

struct Case {
  MapSize map;
  Halo options;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const HaloPadding padding : kPaddings) {
    all.push_back({{4, 6}, {.block = 2, .halo = 1, .padding = padding}});
    all.push_back({{8, 4}, {.block = 4, .halo = 1, .stride = 2, .padding = padding}});
    all.push_back({{4, 8}, {.block = 4, .halo = 2, .stride = 2, .padding = padding, .scale_positions = true}});
    all.push_back({{3, 3}, {.block = 3, .halo = 2, .padding = padding}});  // one block, the window larger than the map
    all.push_back({{5, 7}, {.block = 3, .halo = 1, .padding = padding, .auto_pad = true}});
    all.push_back({{5, 7}, {.block = 4, .halo = 0, .stride = 2, .padding = padding, .auto_pad = true}});
    all.push_back({{3, 4}, {.block = 1, .halo = 1, .padding = padding}});
    if (padding != HaloPadding::shift)
      all.push_back({{8, 4}, {.block = 4, .halo = 1, .stride = 2, .padding = padding, .strided_index = true}});
  }
  return all;
}

TEST_P(HaloAtLevel, equals_plain_loops_in_every_padding) {
  for (const auto& [map, o] : cases()) {
    const Inputs x = make_inputs(map, o);
    const Oracle want = loops(x, o);
    const auto exact = halo_attend(x.q, x.k, x.v, x.embeddings, o);
    EXPECT_TRUE(same(exact.out, want.out, kDoubleBound)) << o.block << " " << o.halo << " " << int(o.padding);
    EXPECT_TRUE(same(exact.lse, want.lse, kDoubleBound));
    const auto f = [](const Tensor& t) { return t.to(at::kFloat); };
    const RelativeEmbeddings single = {f(x.embeddings.height), f(x.embeddings.width)};
    const auto got = halo_attend(f(x.q), f(x.k), f(x.v), single, o);
    EXPECT_TRUE(same(got.out, want.out, kSingleBound)) << o.block << " " << o.halo << " " << int(o.padding);
    EXPECT_TRUE(same(got.lse, want.lse, kSingleBound));
  }
}

TEST(Halo, gradients_equal_finite_differences) {
  for (const auto& [map, o] : cases()) {
    Inputs x = make_inputs(map, o, 1, 2, 2);
    const Tensor weights = random_tensor(x.q.sizes(), 9, at::kDouble);
    const auto loss = [&, &o = o] {
      const auto a = halo_attend(x.q, x.k, x.v, x.embeddings, o);
      return (a.out * weights).sum() + (a.lse * weights.select(4, 0)).sum();
    };
    for (Tensor* t : {&x.q, &x.k, &x.v, &x.embeddings.height, &x.embeddings.width}) {
      const Tensor given = t->contiguous();
      *t = given.clone().requires_grad_();
      loss().backward();
      const Tensor gradient = t->grad();
      for (int64_t at : {int64_t{0}, given.numel() / 3, given.numel() / 2, given.numel() - 1}) {
        const auto moved = [&](double by) {
          *t = given.clone();
          t->flatten()[at] += by;
          return loss().item<double>();
        };
        const double slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        EXPECT_NEAR(gradient.flatten()[at].item<double>(), slope, 1e-7) << o.block << " " << int(o.padding);
      }
      *t = given;
    }
  }
}

TEST_P(HaloAtLevel, gradients_of_fp32_equal_those_of_fp64) {
  for (const auto& [map, o] : cases()) {
    const Inputs x = make_inputs(map, o);
    std::vector<std::vector<Tensor>> gradients;
    for (const auto type : {at::kDouble, at::kFloat}) {
      std::vector<Tensor> t = {x.q, x.k, x.v, x.embeddings.height, x.embeddings.width};
      for (Tensor& each : t) each = each.to(type, false, true).detach().requires_grad_();
      const auto a = halo_attend(t[0], t[1], t[2], RelativeEmbeddings{t[3], t[4]}, o);
      (a.out.sin().sum() + a.lse.square().sum()).backward();
      gradients.emplace_back();
      for (const Tensor& each : t) gradients.back().push_back(each.grad());
    }
    for (size_t i = 0; i < 5; ++i) EXPECT_TRUE(same(gradients[1][i], gradients[0][i], {2e-4, 2e-4})) << i;
  }
}

// q = 1, k = 0.1 * number, v = number of the pixel, on a map of 4 x 4 with blocks of 2 and a halo of 1.
TEST(Halo, golden_numbers) {
  const Tensor number = at::arange(16, at::kDouble).view({1, 1, 4, 4, 1});
  std::vector<double> height, width;
  for (int t = 0; t < 7; ++t) height.push_back(0.1 * (t * t % 5)), width.push_back(0.07 * (3 * t % 4));
  const RelativeEmbeddings embeddings = {at::tensor(height, at::kDouble).view({7, 1}),
                                         at::tensor(width, at::kDouble).view({7, 1})};
  const auto run = [&](HaloPadding padding) {
    return halo_attend(at::ones({1, 1, 4, 4, 1}, at::kDouble), 0.1 * number, number, embeddings,
                       {.block = 2, .halo = 1, .padding = padding, .scale = 1.0});
  };
  const auto mask = run(HaloPadding::mask), zero = run(HaloPadding::zero);
  const double goldens[4][6] = {{0, 0, 6.178877, 2.947337, 4.039570, 3.372336},
                                {1, 1, 5.664803, 2.984233, 3.665290, 3.419598},
                                {2, 3, 10.566925, 3.449011, 8.143950, 3.709465},
                                {3, 0, 9.734161, 3.547471, 7.758657, 3.774303}};
  for (const auto& g : goldens) {
    const auto at = [&](const Tensor& t) { return t.view({4, 4})[int64_t(g[0])][int64_t(g[1])].item<double>(); };
    EXPECT_NEAR(at(mask.out), g[2], 1e-6);
    EXPECT_NEAR(at(mask.lse), g[3], 1e-6);
    EXPECT_NEAR(at(zero.out), g[4], 1e-6);
    EXPECT_NEAR(at(zero.lse), g[5], 1e-6);
  }
}

// A row of 16 pixels in blocks of 4 with a halo of 1: which pixels each block sees.
TEST(Halo, border_windows_are_cut_or_moved) {
  const std::vector<std::pair<int, int>> mask = {{0, 5}, {3, 9}, {7, 13}, {11, 16}},
                                         shift = {{0, 6}, {3, 9}, {7, 13}, {10, 16}};
  const Tensor values = at::zeros({1, 1, 4, 16, 16}, at::kDouble);
  for (int64_t x = 0; x < 16; ++x) values.select(3, x).select(3, x).fill_(1);  // which column a value comes from
  const Tensor zeros = at::zeros({1, 1, 4, 16, 1}, at::kDouble);
  for (const auto padding : {HaloPadding::mask, HaloPadding::shift}) {
    const Tensor seen = halo_attend(zeros, zeros, values, {}, {.block = 4, .halo = 1, .padding = padding}).out;
    for (int64_t x = 0; x < 16; ++x) {
      const auto [first, end] = (padding == HaloPadding::mask ? mask : shift)[size_t(x / 4)];
      const Tensor want = at::zeros({16}, at::kBool);
      want.slice(0, first, end).fill_(true);
      EXPECT_TRUE(seen[0][0][0][x].gt(0).equal(want)) << x;
    }
  }
}

Tensor attend_dense(const Inputs& x) {
  return ops::attend(x.q.flatten(2, 3), x.k.flatten(2, 3), x.v.flatten(2, 3), Rule::full()).out;
}

TEST(Halo, one_block_without_halo_is_dense_attention) {
  const Halo o{.block = 6, .halo = 0};
  const Inputs x = make_inputs({6, 6}, o);
  EXPECT_TRUE(same(halo_attend(x.q, x.k, x.v, {}, o).out.flatten(2, 3), attend_dense(x), kDoubleBound));
}

TEST(Halo, paddings_agree_where_the_halo_stays_inside) {
  Halo o{.block = 2, .halo = 1};
  const Inputs x = make_inputs({6, 8}, o);
  std::vector<Tensor> inner;
  for (const HaloPadding padding : kPaddings) {
    o.padding = padding;
    Inputs given = x;
    if (padding == HaloPadding::shift) {  // counted from the query, not from the window
      const auto moved = [&](const Tensor& t) { return at::constant_pad_nd(t.slice(0, 1), {0, 0, 0, 1}); };
      given.embeddings = {moved(x.embeddings.height), moved(x.embeddings.width)};
    }
    const Tensor out = halo_attend(given.q, given.k, given.v, given.embeddings, o).out;
    inner.push_back(out.slice(2, 2, 4).slice(3, 2, 6).clone());
  }
  EXPECT_TRUE(same(inner[1], inner[0], kDoubleBound));
  EXPECT_TRUE(same(inner[2], inner[0], kDoubleBound));
}

TEST(Halo, windows_that_move_inside_are_neighborhood_attention) {
  for (const auto& [block, halo] : {std::pair(4, 1), std::pair(2, 3), std::pair(3, 2)}) {
    const Halo o{.block = block, .halo = halo, .padding = HaloPadding::shift};
    const Inputs x = make_inputs({12, 24}, o);
    const auto axis = [&](int64_t length) { return NeighborhoodAxis{length, o.window(), o.block}; };
    const auto places = [](const Tensor& t) { return t.flatten(2, 3); };
    const ops::Attended want =
        ops::attend_neighborhood(places(x.q), places(x.k), places(x.v), Neighborhood{{axis(12), axis(24)}});
    const ops::Attended got = halo_attend(x.q, x.k, x.v, {}, o);
    EXPECT_TRUE(same(places(got.out), want.out, kDoubleBound)) << block;
    EXPECT_TRUE(same(places(got.lse), want.lse, kDoubleBound)) << block;
  }
}

TEST(Halo, without_a_halo_blocks_are_attention_of_their_own) {
  const Halo o{.block = 4, .halo = 0};
  Inputs x = make_inputs({8, 12}, o);
  const auto block = [](const Tensor& t) { return t.slice(2, 4, 8).slice(3, 8, 12); };
  const Tensor want = halo_attend(block(x.q), block(x.k), block(x.v), x.embeddings, o).out;
  EXPECT_TRUE(same(block(halo_attend(x.q, x.k, x.v, x.embeddings, o).out), want, kDoubleBound));
}

TEST(Halo, a_logit_that_all_keys_share_changes_nothing) {
  const Halo o{.block = 4, .halo = 1, .padding = HaloPadding::mask};
  Inputs x = make_inputs({8, 12}, o);
  const Tensor want = halo_attend(x.q, x.k, x.v, {}, o).out;
  x.embeddings.height = x.embeddings.height.slice(0, 0, 1).expand_as(x.embeddings.height);  // the same for every row
  x.embeddings.width = x.embeddings.width.slice(0, 0, 1).expand_as(x.embeddings.width);
  EXPECT_TRUE(same(halo_attend(x.q, x.k, x.v, x.embeddings, o).out, want, kDoubleBound));
}

TEST(Halo, moving_the_map_by_a_block_moves_the_result_and_by_a_pixel_does_not) {
  const Halo o{.block = 2, .halo = 1};
  const Inputs x = make_inputs({12, 12}, o);
  const auto run = [&](int64_t by) {
    const auto roll = [&](const Tensor& t) { return t.roll({by}, {2}); };
    return halo_attend(roll(x.q), roll(x.k), roll(x.v), x.embeddings, o).out.roll({-by}, {2}).slice(2, 4, 8);
  };
  EXPECT_TRUE(same(run(2), run(0), kDoubleBound));
  EXPECT_FALSE(same(run(1), run(0), {1e-3, 1e-3}));
}

TEST(Halo, constant_values_come_back_unless_zeros_take_part) {
  for (const HaloPadding padding : kPaddings) {
    const Halo o{.block = 2, .halo = 1, .padding = padding};
    const Inputs x = make_inputs({6, 6}, o);
    const Tensor out = halo_attend(x.q, x.k, at::full({2, 2, 6, 6, 1}, 3.0, at::kDouble), x.embeddings, o).out;
    const Tensor border = out.select(2, 0);
    if (padding == HaloPadding::zero)
      EXPECT_TRUE(border.lt(3).all().item<bool>());
    else
      EXPECT_TRUE(same(out, at::full(out.sizes(), 3.0, at::kDouble), kDoubleBound));
  }
}

TEST(Halo, the_first_rows_of_embeddings_have_no_gradient_unless_windows_move) {
  for (const HaloPadding padding : kPaddings) {
    const Halo o{.block = 2, .halo = 2, .padding = padding};
    Inputs x = make_inputs({6, 6}, o);
    x.embeddings.height.requires_grad_();
    halo_attend(x.q, x.k, x.v, x.embeddings, o).out.square().sum().backward();
    const bool none = x.embeddings.height.grad().narrow(0, 0, o.window() - o.block).eq(0).all().item<bool>();
    EXPECT_EQ(none, padding != HaloPadding::shift);
  }
}

TEST(Halo, strided_queries_are_those_of_every_second_pixel) {
  for (const HaloPadding padding : kPaddings) {
    Halo o{.block = 4, .halo = 1, .padding = padding};
    const Inputs x = make_inputs({8, 12}, o);
    const auto even = [](const Tensor& t) { return t.slice(2, 0, {}, 2).slice(3, 0, {}, 2); };
    const Tensor whole = halo_attend(x.q, x.k, x.v, x.embeddings, o).out;
    o.stride = 2;
    EXPECT_TRUE(same(halo_attend(even(x.q), x.k, x.v, x.embeddings, o).out, even(whole), kDoubleBound));
  }
}

// Of a map that ends inside of blocks: zeros appended, and the result cut.
TEST(Halo, auto_pad_is_a_padded_map_cut_off) {
  Halo o{.block = 4, .halo = 1, .auto_pad = true};
  const Inputs x = make_inputs({6, 9}, o);
  const Tensor got = halo_attend(x.q, x.k, x.v, x.embeddings, o).out;
  const auto padded = [](const Tensor& t) { return at::constant_pad_nd(t, {0, 0, 0, 3, 0, 2}); };
  o.auto_pad = false;
  const Tensor whole = halo_attend(padded(x.q), padded(x.k), padded(x.v), x.embeddings, o).out;
  EXPECT_TRUE(same(got, whole.narrow(2, 0, 6).narrow(3, 0, 9), kDoubleBound));
}

TEST_P(HaloAtLevel, half_precision_is_as_exact_as_its_inputs) {
  const Halo o{.block = 8, .halo = 3};
  const Inputs x = make_inputs({16, 24}, o, 2, 16, 16);
  const Oracle want = loops(x, o);
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    const auto low = [&](const Tensor& t) { return t.to(type); };
    const auto got = halo_attend(low(x.q), low(x.k), low(x.v),
                                 RelativeEmbeddings{low(x.embeddings.height), low(x.embeddings.width)}, o);
    EXPECT_EQ(got.out.scalar_type(), type);
    EXPECT_TRUE(same(got.out, want.out, type == at::kHalf ? Bound{1e-2, 1e-2} : Bound{6e-2, 6e-2}));
  }
}

TEST(Halo, refuses_what_does_not_fit) {
  const Inputs x = make_inputs({4, 6}, {.block = 2, .halo = 1});
  const auto message = [&](const Halo& o) { return message_of([&] { halo_attend(x.q, x.k, x.v, x.embeddings, o); }); };
  EXPECT_EQ(message({.block = 4, .halo = 0}),
            "halo: H and W must be multiples of block (4), got 4 x 6; a rest needs auto_pad");
  EXPECT_EQ(message({.block = 2, .halo = -1}), "halo: halo must be >= 0, got -1");
  EXPECT_EQ(message({.block = 0, .halo = 1}), "halo: block must be >= 1, got 0");
  EXPECT_EQ(message({.block = 2, .halo = 1, .stride = 3}), "halo: stride must be 1 or 2, got 3");
  EXPECT_EQ(message({.block = 1, .halo = 1, .stride = 2}), "halo: block must be a multiple of stride, got 1 and 2");
  EXPECT_EQ(message({.block = 2, .halo = 1, .stride = 2}),
            "halo: q must have 2 x 3 pixels (stride 2), got [2, 2, 4, 6, 3]");
  EXPECT_EQ(message({.block = 2, .halo = 2}), "halo: embeddings must be [11, 3], got [7, 3]");
  EXPECT_EQ(message_of([&] { halo_attend(x.q, x.k, x.v.narrow(2, 0, 2), x.embeddings, {.block = 2, .halo = 1}); }),
            "halo: v must have the pixels of k, 4 x 6, got [2, 2, 2, 6, 5]");
}

}  // namespace
}  // namespace foveate::attention
