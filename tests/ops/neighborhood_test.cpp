// Neighborhood attention against plain loops in double, at every level; the spec's golden numbers and invariants.
#include "foveate/ops/neighborhood/neighborhood.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>

#include "tests/support/messages.h"
#include "tests/support/neighborhood_calls.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class NeighborhoodAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, NeighborhoodAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

void expect_oracle_in_all(const std::vector<GridAxis>& axes, const Sizes& sizes) {
  expect_oracle(axes, sizes, at::kDouble, kDoubleBound);
  expect_oracle(axes, sizes, at::kFloat, kSingleBound);
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_on_one_two_and_three_axes) {
  expect_oracle_in_all({{29, 7}}, {});
  expect_oracle_in_all({{29, 6, 1, 4}}, {.heads_last = true});
  expect_oracle_in_all({{11, 5}, {14, 3}}, {.heads = 4, .kv_heads = 2, .dim = 20, .value_dim = 12});
  expect_oracle_in_all({{11, 5, 2, 2}, {14, 4, 3, 3}}, {.heads_last = true});
  expect_oracle_in_all({{5, 3}, {6, 3, 2}, {9, 4, 1, 2}}, {.heads = 3, .kv_heads = 3, .dim = 3, .value_dim = 17});
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_with_wide_heads) {  // several panels of 64 dims, whole and not
  expect_oracle({{13, 5}, {14, 4}}, {.dim = 128, .value_dim = 72}, at::kFloat, kSingleBound);
  expect_oracle({{29, 7}}, {.dim = 72, .value_dim = 136, .heads_last = true}, at::kFloat, kSingleBound);
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_in_half_precision) {
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    expect_oracle({{19, 7}, {21, 5}}, {.dim = 16, .value_dim = 16}, type, kHalfBound);
    expect_oracle({{13, 5, 2, 2}, {15, 4, 3, 3}}, {.dim = 7, .value_dim = 9, .has_bias = true}, type, kHalfBound);
    expect_oracle({{150, 40, 3, 2, true}}, {.dim = 32, .value_dim = 24, .extra = 3}, type, kHalfBound);
  }
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_with_a_bias_and_its_gradient) {
  expect_oracle_in_all({{23, 7}}, {.has_bias = true});
  expect_oracle_in_all({{9, 3, 1, 2}, {13, 5, 4, 2}},
                       {.heads = 4, .kv_heads = 2, .has_bias = true, .heads_last = true});
  expect_oracle_in_all({{4, 3}, {5, 5, 1}, {9, 3, 2, 3}}, {.has_bias = true});
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_with_keys_that_all_queries_see) {
  expect_oracle_in_all({{17, 5}}, {.extra = 1});
  expect_oracle_in_all({{9, 3, 2, 2, true}, {8, 4}}, {.heads = 4, .kv_heads = 2, .value_dim = 3, .extra = 5});
  expect_oracle_in_all({{9, 3}, {8, 5}}, {.extra = 70, .has_bias = true, .heads_last = true});
}

TEST_P(NeighborhoodAtLevel, equals_plain_loops_where_windows_take_several_passes) {
  expect_oracle({{700, 300, 7}}, {.batch = 1, .dim = 70, .value_dim = 130, .has_bias = true}, at::kFloat, kSingleBound);
  expect_oracle({{1300, 1201}}, {.batch = 1, .has_bias = true}, at::kFloat, kSingleBound);
  expect_oracle({{700, 300, 7, 2, true}}, {.batch = 1}, at::kFloat, kSingleBound);
  expect_oracle({{31, 27, 1, 1, true}, {33, 30}}, {.batch = 1, .value_dim = 66}, at::kFloat, kSingleBound);
  expect_oracle({{7, 6}, {12, 11}, {13, 12}}, {.batch = 1, .has_bias = true}, at::kFloat, kSingleBound);
}

const std::vector<std::vector<GridAxis>> kRanges = {
    {{700, 255}}, {{430, 200, 3, 1, true}}, {{20, 16, 8}, {27, 13, 13}}};  // attend's tiles run these

TEST_P(NeighborhoodAtLevel, equals_plain_loops_where_windows_are_ranges_of_keys) {
  const Sizes grouped{.heads = 4, .kv_heads = 2, .dim = 20, .value_dim = 12, .heads_last = true};
  for (const auto& axes : kRanges) {
    const Call c(axes, grouped, at::kFloat);
    EXPECT_EQ(explain_neighborhood(c.q, c.k, c.v, neighborhood_of(axes)).starts_with("windows as ranges"),
              GetParam() != "definition");
    expect_oracle(axes, grouped, at::kFloat, kSingleBound);
  }
  expect_oracle({{520, 256, 256}}, {.batch = 1, .extra = 3}, at::kFloat, kSingleBound);
  expect_oracle({{430, 200, 3, 1, true}}, {.batch = 1, .clamps = false}, at::kFloat, kSingleBound);
  expect_oracle({{20, 16, 8}, {27, 13, 13}}, {.batch = 1, .extra = 3}, at::kFloat, kSingleBound);
  expect_oracle({{5, 3, 2}, {12, 8, 8}, {13, 9, 6}}, {.batch = 1}, at::kFloat, kSingleBound);
  expect_oracle({{20, 16, 8}, {27, 13, 13}}, {.batch = 1, .dim = 32}, at::kBFloat16, kHalfBound);
}

TEST_P(NeighborhoodAtLevel, streaming_windows_of_causal_strides_do_not_depend_on_the_length) {
  expect_oracle_in_all({{27, 6, 4, 2, true}}, {.clamps = false});
  const auto first = [](int64_t length, int64_t rows, bool clamps) {
    const auto x = [&](uint64_t seed) { return random_tensor({1, 1, 40, 8}, seed).narrow(2, 0, length); };
    return attend_neighborhood(x(1), x(2), x(3), neighborhood_of({{length, 6, 4, 1, true}}, clamps))
        .out.narrow(2, 0, rows);
  };
  EXPECT_TRUE(same(first(22, 22, false), first(40, 22, false), {0, 0}));
  EXPECT_TRUE(same(first(22, 20, true), first(40, 20, true), {0, 0}));  // whole stride groups
  EXPECT_FALSE(same(first(22, 22, true), first(40, 22, true), {1e-3, 0}));
}

// NATTEN's own test cases: grid | kernel | stride | dilation; every combination of causal axes, heads of keys in turn.
void expect_case(std::vector<GridAxis> axes, int64_t dim = 8) {
  const int64_t combinations = int64_t{1} << axes.size();
  for (int64_t causal = 0; causal < combinations; ++causal) {
    for (size_t i = 0; i < axes.size(); ++i) axes[i].is_causal = causal >> i & 1;
    const int64_t kv_heads[] = {4, 2, 1};
    const Sizes sizes{.batch = 1,
                      .heads = 4,
                      .kv_heads = kv_heads[causal % 3],
                      .dim = dim,
                      .value_dim = dim + 4 * (causal % 2),
                      .heads_last = causal % 2 == 0};
    expect_oracle(axes, sizes, at::kFloat, {1e-4, 1e-4});
  }
}

TEST_P(NeighborhoodAtLevel, passes_the_reference_implementations_cases_on_one_axis) {
  expect_case({{256, 255, 82}});
  expect_case({{128, 63, 31}});
  expect_case({{128, 3, 2, 5}});
  expect_case({{128, 8, 7, 5}});
  expect_case({{128, 3, 2, 10}}, 24);
  expect_case({{125, 15}});
  expect_case({{17, 12}});
  expect_case({{128, 61, 33}});
  expect_case({{256, 136, 136}});
}

TEST_P(NeighborhoodAtLevel, passes_the_reference_implementations_cases_on_two_axes) {
  expect_case({{5, 5}, {25, 16, 16}});
  expect_case({{84, 7, 1, 5}, {19, 3}}, 4);
  expect_case({{19, 8, 1, 2}, {29, 8, 1, 3}}, 4);
  expect_case({{33, 24}, {33, 16}}, 4);
  expect_case({{5, 5, 4}, {25, 16, 16}});
}

TEST_P(NeighborhoodAtLevel, passes_the_reference_implementations_cases_on_three_axes) {
  expect_case({{13, 3, 2, 3}, {11, 4, 3, 2}, {9, 3, 3, 2}});
  expect_case({{8, 3, 2, 2}, {8, 3, 1, 2}, {16, 3, 2, 4}}, 4);
  expect_case({{8, 7}, {4, 3}, {8, 7}}, 4);
}

TEST_P(NeighborhoodAtLevel, passes_the_reference_implementations_large_cases) {
  if (!std::getenv("FOVEATE_EXTENDED")) GTEST_SKIP() << "minutes a level; FOVEATE_EXTENDED=1 runs it";
  expect_case({{32768, 63, 1, 16}}, 4);
  expect_case({{32768, 2048, 256}}, 4);
  expect_case({{57, 19, 13, 2}, {20, 4, 1, 2}, {88, 6, 6, 7}}, 4);
  expect_case({{48, 24, 1, 2}, {17, 16}}, 4);
  expect_case({{67, 12, 8, 5}, {80, 7, 4, 11}}, 4);
  expect_case({{44, 9}, {80, 10}}, 4);
  expect_case({{36, 36, 12}, {40, 40, 13}}, 4);
  expect_case({{32, 7, 5, 1}, {10, 3, 1, 2}, {10, 3, 1, 3}}, 4);
  expect_case({{18, 14, 12}, {37, 16, 12, 2}, {12, 12, 8}}, 4);
  expect_case({{30, 3, 1, 8}, {48, 2, 1, 18}, {18, 8, 1, 2}}, 4);
  expect_case({{16, 16, 2}, {16, 16, 4}, {16, 16, 5}}, 4);
}

// The memory between the heads is never touched: it takes no memory of the machine.
TEST_P(NeighborhoodAtLevel, reads_heads_that_lie_2_31_elements_apart) {
  Call near({{9, 3}, {8, 5}}, {.batch = 1, .kv_heads = 2}, at::kBFloat16), far = near;
  for (Tensor* t : {&far.q, &far.k, &far.v, &far.d_out}) {
    const int64_t apart = (int64_t{1} << 31) + 8, dim = t->size(3);
    const Tensor memory = at::empty({apart + t->size(2) * dim}, t->options());
    *t = memory.as_strided(t->sizes(), {2 * apart, apart, dim, 1}).copy_(*t);
  }
  for (Call* c : {&near, &far}) {
    for (Tensor* t : {&c->q, &c->k, &c->v}) t->requires_grad_();
    torch::autograd::backward({c->run().out}, {c->d_out});
  }
  EXPECT_TRUE(near.run().out.equal(far.run().out));
  EXPECT_TRUE(near.q.grad().equal(far.q.grad()));
  EXPECT_TRUE(near.k.grad().equal(far.k.grad()));
  EXPECT_TRUE(near.v.grad().equal(far.v.grad()));
}

// L = 7, D = 2, scale 1, q_i = (0.1 i, 1), k_j = (1, 0.2 j - 0.5), v_j = (j, j^2).
Attended golden(GridAxis axis, const NeighborhoodScore& more = {}) {
  const Tensor i = at::arange(7, at::kDouble);
  const auto rows = [](const Tensor& a, const Tensor& b) { return at::stack({a, b}, 1).view({1, 1, 7, 2}); };
  NeighborhoodScore score = more;
  score.scale = 1;
  return attend_neighborhood(rows(i * 0.1, at::full({7}, 1.0, at::kDouble)),
                             rows(at::full({7}, 1.0, at::kDouble), i * 0.2 - 0.5), rows(i, i * i),
                             neighborhood_of({axis}), score);
}

void expect_row(const Attended& a, int64_t row, std::array<double, 3> want) {
  EXPECT_NEAR(a.out[0][0][row][0].item<double>(), want[0], 1e-6) << row;
  EXPECT_NEAR(a.out[0][0][row][1].item<double>(), want[1], 1e-6) << row;
  EXPECT_NEAR(a.lse[0][0][row].item<double>(), want[2], 1e-6) << row;
}

TEST(Neighborhood, gives_the_golden_numbers) {
  const Attended plain = golden({7, 3});
  expect_row(plain, 0, {1.132452, 1.935971, 0.811901});
  expect_row(plain, 3, {3.132452, 10.465780, 1.511901});
  expect_row(plain, 6, {5.132452, 26.995588, 2.211901});
  const Attended strided = golden({7, 4, 2});
  expect_row(strided, 2, {2.747209, 8.755719, 1.611154});
  expect_row(strided, 4, {4.747209, 23.744556, 2.211154});
  expect_row(golden({7, 3, 1, 1, true}), 1, {0.549834, 0.549834, 0.398139});
  const Attended causal = golden({7, 4, 2, 1, true});
  expect_row(causal, 4, {3.132452, 10.465780, 1.611901});
  expect_row(causal, 6, {4.747209, 23.744556, 2.411154});
  expect_row(golden({7, 3, 1, 2}), 5, {3.519587, 14.852558, 1.751251});
  NeighborhoodScore extra;
  extra.extra_keys = at::tensor({0.5, 0.5}, at::kDouble).view({1, 1, 1, 2});
  extra.extra_values = at::tensor({10., -1.}, at::kDouble).view({1, 1, 1, 2});
  expect_row(golden({7, 3}, extra), 3, {5.171717, 7.061105, 1.864218});
}

// q = k = 0, v the place, k = 3, bias[a][b] = 0.1 ((3 a + 2 b) mod 5).
void expect_bias_golden(int64_t size, int64_t dilation, std::vector<std::array<double, 4>> rows) {
  const Tensor zero = at::zeros({1, 1, size * size, 1}, at::kDouble);
  const Tensor a = at::arange(5, at::kDouble);
  NeighborhoodScore score;
  score.bias = (a.view({5, 1}) * 3 + a * 2).remainder(5).mul(0.1).view({1, 5, 5});
  const Attended got = attend_neighborhood(zero, zero, at::arange(size * size, at::kDouble).view(zero.sizes()),
                                           neighborhood_of({{size, 3, 1, dilation}, {size, 3, 1, dilation}}), score);
  for (const auto& [y, x, out, lse] : rows) {
    const int64_t place = int64_t(y) * size + int64_t(x);
    EXPECT_NEAR(got.out[0][0][place][0].item<double>(), out, 1e-6) << y << " " << x;
    EXPECT_NEAR(got.lse[0][0][place].item<double>(), lse, 1e-6) << y << " " << x;
  }
}

TEST(Neighborhood, gives_the_golden_numbers_of_a_relative_position_bias) {
  expect_bias_golden(5, 1,
                     {{0, 0, 5.903833, 2.373930},
                      {0, 4, 8.129540, 2.417723},
                      {2, 2, 11.903833, 2.373930},
                      {4, 1, 15.910965, 2.407205}});
  expect_bias_golden(7, 2,
                     {{0, 0, 15.711498, 2.373930},
                      {0, 6, 18.388620, 2.417723},
                      {3, 3, 23.711498, 2.373930},
                      {6, 1, 30.755758, 2.440474}});
}

TEST_P(NeighborhoodAtLevel, is_dense_attention_where_the_window_is_the_grid) {
  const Call c({{6, 6}, {7, 7}}, {.heads = 4, .kv_heads = 2}, at::kFloat);
  const Attended dense = attend(c.q, c.k, c.v, Rule::full(), {.scale = 0.4});
  EXPECT_TRUE(same(c.run().out, dense.out, {1e-5, 1e-5}));
  EXPECT_TRUE(same(c.run().lse, dense.lse, {1e-5, 1e-5}));
  const Call line({{50, 9, 1, 1, true}}, {}, at::kFloat);
  EXPECT_TRUE(
      same(line.run().out, attend(line.q, line.k, line.v, Rule{.window_left = 8}, {.scale = 0.4}).out, {1e-5, 1e-5}));
}

TEST_P(NeighborhoodAtLevel, dilation_is_the_same_on_interleaved_grids) {
  const Call c({{14, 3, 2, 2}, {15, 4, 1, 3}}, {}, at::kFloat);
  const Attended all = c.run();
  const auto part = [](const Tensor& t, int64_t a, int64_t b) {
    return t.view({2, t.size(1), 14, 15, -1}).slice(2, a, {}, 2).slice(3, b, {}, 3).flatten(2, 3);
  };
  for (int64_t a = 0; a < 2; ++a)
    for (int64_t b = 0; b < 3; ++b) {
      const Attended one = attend_neighborhood(part(c.q, a, b), part(c.k, a, b), part(c.v, a, b),
                                               neighborhood_of({{7, 3, 2}, {5, 4}}), c.score);
      EXPECT_TRUE(same(part(all.out, a, b), one.out, {1e-6, 1e-6}));
    }
}

TEST_P(NeighborhoodAtLevel, has_the_same_bits_on_any_number_of_threads) {
  if (GetParam() == "definition") GTEST_SKIP() << "torch's sums depend on threads";
  const int before = at::get_num_threads();
  std::vector<std::vector<Tensor>> results;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      Call c({{40, 5}, {23, 7, 1, 2}}, {.heads = 4, .kv_heads = 2, .dim = 16, .has_bias = true}, type);
      for (Tensor* t : {&c.q, &c.k, &c.v, &*c.score.bias}) t->requires_grad_();
      const Attended got = c.run();
      (got.out * c.d_out).sum().backward();
      results.push_back({got.out, got.lse, c.q.grad(), c.k.grad(), c.v.grad(), c.score.bias->grad()});
    }
  }
  at::set_num_threads(before);
  for (size_t i = 0; i < results[0].size(); ++i)
    for (size_t type = 0; type < 2; ++type) EXPECT_TRUE(at::equal(results[type][i], results[2 + type][i])) << i;
}

TEST_P(NeighborhoodAtLevel, ranges_have_the_same_bits_on_any_number_of_threads) {
  if (GetParam() == "definition") GTEST_SKIP() << "torch's sums depend on threads";
  const int before = at::get_num_threads();
  for (const auto& axes : kRanges) {
    std::vector<std::vector<Tensor>> results;
    for (const int threads : {1, 3}) {
      at::set_num_threads(threads);
      Call c(axes, {.heads = 4, .kv_heads = 2, .dim = 16}, at::kFloat);
      for (Tensor* t : {&c.q, &c.k, &c.v}) t->requires_grad_();
      const Attended got = c.run();
      (got.out * c.d_out).sum().backward();
      results.push_back({got.out, got.lse, c.q.grad(), c.k.grad(), c.v.grad()});
    }
    for (size_t i = 0; i < results[0].size(); ++i) EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << i;
  }
  at::set_num_threads(before);
}

// As in the definition, whatever is not finite: forward by which rows are, backward by which elements are.
TEST_P(NeighborhoodAtLevel, ranges_give_nan_and_inf_to_those_who_see_them) {
  const auto finite = [](const std::vector<GridAxis>& axes, int which, double bad) {
    Call c(axes, {.batch = 1, .heads = 1}, at::kFloat);
    Tensor* all[] = {&c.q, &c.k, &c.v, &c.d_out};
    all[which]->select(2, 150).fill_(bad);
    for (Tensor* t : {&c.q, &c.k, &c.v}) t->requires_grad_();
    const Attended got = c.run();
    (got.out * c.d_out).sum().backward();
    return std::vector<Tensor>{at::isfinite(got.out).all(-1), at::isfinite(c.q.grad()).all(-1),
                               at::isfinite(c.k.grad()).all(-1), at::isfinite(c.v.grad()).all(-1)};
  };
  for (const auto& axes : kRanges)
    for (const double bad : {double(NAN), double(INFINITY)})
      for (int which = 0; which < 4; ++which) {
        const std::vector<Tensor> got = finite(axes, which, bad);
        ::setenv("FOVEATE_BACKEND", "definition", 1);
        const std::vector<Tensor> want = finite(axes, which, bad);
        ::setenv("FOVEATE_BACKEND", GetParam().c_str(), 1);
        for (size_t i = 0; i < got.size(); ++i)
          EXPECT_TRUE(at::equal(got[i], want[i])) << "input " << which << ", result " << i << ", " << bad;
      }
}

TEST_P(NeighborhoodAtLevel, nan_and_inf_reach_only_those_who_see_them) {
  for (const double bad : {double(NAN), double(INFINITY)})
    for (const int which : {0, 1, 2}) {
      Call c({{9, 3}, {10, 3}}, {.batch = 1, .heads = 1}, at::kFloat);
      const Attended clean = c.run();
      Tensor* inputs[] = {&c.q, &c.k, &c.v};
      inputs[which]->select(2, 44).fill_(bad);  // row 4, column 4
      for (Tensor* t : inputs) t->requires_grad_();
      const Attended got = c.run();
      got.out.narrow(2, 0, 20).sum().backward();  // rows 0 and 1: none sees it, nor who shares keys with them
      for (int64_t y = 0; y < 9; ++y)
        for (int64_t x = 0; x < 10; ++x) {
          const bool sees = which == 0 ? y == 4 && x == 4 : std::abs(y - 4) <= 1 && std::abs(x - 4) <= 1;
          const Tensor row = got.out[0][0][y * 10 + x].detach();
          EXPECT_EQ(at::isfinite(row).all().item<bool>(), !sees) << y << " " << x;
          if (!sees) {
            EXPECT_TRUE(same(row, clean.out[0][0][y * 10 + x], {1e-6, 1e-6}));
          }
        }
      for (Tensor* t : inputs) EXPECT_TRUE(at::isfinite(t->grad().narrow(2, 0, 20)).all().item<bool>()) << which;
    }
}

TEST_P(NeighborhoodAtLevel, results_lie_in_memory_as_queries_do) {
  std::vector<std::vector<GridAxis>> all = kRanges;
  all.push_back({{5, 3}, {6, 3}});
  for (const auto& axes : all) {
    Call c(axes, {.heads_last = true}, at::kFloat);
    for (Tensor* t : {&c.q, &c.k, &c.v}) t->requires_grad_();
    const Tensor out = c.run().out;
    EXPECT_TRUE(out.transpose(1, 2).is_contiguous());
    for (const Tensor& g : torch::autograd::grad({out.sum()}, {c.q, c.k, c.v}))
      EXPECT_TRUE(g.transpose(1, 2).is_contiguous());
  }
  const Call last({{5, 3}, {6, 3}}, {.heads_last = true}, at::kFloat);
  const Call first({{5, 3}, {6, 3}}, {}, at::kFloat);
  EXPECT_TRUE(first.run().out.is_contiguous());
  EXPECT_TRUE(same(last.run().out,
                   attend_neighborhood(last.q.contiguous(), last.k, last.v, neighborhood_of(last.axes), last.score).out,
                   {0, 0}));
}

TEST(Neighborhood, extra_keys_join_before_results_are_rounded) {
  ::setenv("FOVEATE_BACKEND", "portable", 1);  // which multiplies bf16 in fp32
  for (const std::vector<GridAxis>& axes : {std::vector<GridAxis>{{40, 9}}, {{20, 16, 8}, {27, 13, 13}}, {{4, 3}}}) {
    Call c(axes, {.extra = 5}, at::kBFloat16);
    const Tensor rounded = c.run().out.to(at::kFloat);
    for (Tensor* t : {&c.q, &c.k, &c.v, &*c.score.extra_keys, &*c.score.extra_values}) *t = t->to(at::kFloat);
    EXPECT_TRUE(same(rounded, c.run().out, {1e-6, 1.01 / 256}));  // half of the last of 8 bits
  }
  ::unsetenv("FOVEATE_BACKEND");
}

TEST(Neighborhood, a_scale_of_zero_is_zero) {
  Call c({{9, 3}}, {.batch = 1, .heads = 1}, at::kFloat);
  c.score.scale = 0;
  EXPECT_TRUE(same(c.run().lse, at::full({1, 1, 9}, std::log(3.0)), {1e-6, 0}));
}

TEST(Neighborhood, empty_batches_give_empty_results) {
  const Tensor none = at::zeros({0, 2, 9, 4});
  EXPECT_EQ(attend_neighborhood(none, none, none, neighborhood_of({{9, 3}})).out.size(0), 0);
}

Tensor zeros(at::IntArrayRef sizes, at::ScalarType type = at::kFloat) { return at::zeros(sizes, type); }

std::string refusal(const std::vector<GridAxis>& axes, const NeighborhoodScore& score = {}) {
  int64_t n = 1;
  for (const GridAxis& a : axes) n *= a.length;
  const Tensor x = zeros({1, 2, n, 4});
  return message_of([&] { attend_neighborhood(x, x, x, neighborhood_of(axes), score); });
}
std::string refusal(const Tensor& q, const Tensor& k, const Tensor& v) {
  return message_of([&] { attend_neighborhood(q, k, v, neighborhood_of({{9, 3}})); });
}

TEST(Neighborhood, says_which_windows_do_not_fit) {
  const std::string more = " on axis 0; pad the grid or take less";
  EXPECT_EQ(refusal({{9, 0}}), "neighborhood: kernel must be >= 1, got 0 on axis 0");
  EXPECT_EQ(refusal({{9, 3}, {9, 3, 4}}), "neighborhood: stride must be 1 .. kernel = 3, got 4 on axis 1");
  EXPECT_EQ(refusal({{9, 3, 0}}), "neighborhood: stride must be 1 .. kernel = 3, got 0 on axis 0");
  EXPECT_EQ(refusal({{9, 3, 1, 0}}), "neighborhood: dilation must be >= 1, got 0 on axis 0");
  EXPECT_EQ(refusal({{9, 3, 1, 4}}), "neighborhood: kernel * dilation must be <= length, got 3 * 4 > 9" + more);
  EXPECT_EQ(refusal({{9, 11}}), "neighborhood: kernel * dilation must be <= length, got 11 * 1 > 9" + more);
  EXPECT_EQ(refusal({{2, 1}, {2, 1}, {2, 1}, {2, 1}}), "neighborhood: axes must be 1 .. 3, got 4");
}

TEST(Neighborhood, says_which_tensors_do_not_fit) {
  const Tensor x = zeros({1, 2, 9, 4});
  EXPECT_EQ(
      refusal(x, zeros({1, 2, 9, 4}, at::kDouble), x),
      "neighborhood: q, k, v must share a dtype, got Float [1, 2, 9, 4], Double [1, 2, 9, 4], Float [1, 2, 9, 4]");
  EXPECT_EQ(refusal(x, zeros({1, 2, 8, 4}), x),
            "neighborhood: q, k, v must have the 9 places of the grid, got 9, 8, 9");
  EXPECT_EQ(refusal(zeros({1, 3, 9, 4}), x, x),
            "neighborhood: heads of q must be a multiple of those of k, got 3 and 2");
  const std::string rule =
      "neighborhood: batches, dims of q and k, heads of k and v must agree, got Float [1, 2, 9, 4], ";
  EXPECT_EQ(refusal(x, zeros({1, 2, 9, 5}), x), rule + "Float [1, 2, 9, 5], Float [1, 2, 9, 4]");
  EXPECT_EQ(refusal(x, x, zeros({1, 1, 9, 4})), rule + "Float [1, 2, 9, 4], Float [1, 1, 9, 4]");
  EXPECT_EQ(refusal(x, zeros({2, 2, 9, 4}), x), rule + "Float [2, 2, 9, 4], Float [1, 2, 9, 4]");
  EXPECT_EQ(refusal(zeros({9, 4}), zeros({9, 4}), zeros({9, 4})),
            "neighborhood: q, k, v must be [B, heads, places of the grid, dim], got Float [9, 4], Float [9, 4], Float "
            "[9, 4]");
}

TEST(Neighborhood, says_which_biases_and_extra_keys_do_not_fit) {
  NeighborhoodScore score;
  score.bias = zeros({2, 5});
  EXPECT_EQ(refusal({{9, 3, 1, 1, true}}, score),
            "neighborhood: a bias needs axes that are not causal, got a causal one");
  score.bias = zeros({2, 6});
  EXPECT_EQ(refusal({{9, 3}}, score),
            "neighborhood: bias must be floating point [2, 5] (heads, 2 kernel - 1 of each axis), got Float [2, 6]");
  score.bias = {}, score.extra_keys = zeros({1, 2, 3, 4});
  EXPECT_EQ(refusal({{9, 3}}, score),
            "neighborhood: extra_keys and extra_values must come together, got extra_keys alone");
  score.extra_values = zeros({1, 1, 3, 4});
  EXPECT_EQ(
      refusal({{9, 3}}, score),
      "neighborhood: extra_keys and extra_values must be Float [1, 2, M, 4 and 4], got Float [1, 2, 3, 4] and Float "
      "[1, 1, 3, 4]");
}

TEST(Neighborhood, explains_what_runs) {
  const Call c({{56, 7}, {56, 7}}, {}, at::kFloat);
  ::setenv("FOVEATE_BACKEND", "portable", 1);
  EXPECT_EQ(explain_neighborhood(c.q, c.k, c.v, neighborhood_of(c.axes)),
            "portable: fp32 products, 196 tiles of 4 x 4 queries a head, boxes of 1.87 keys for each one that is seen");
  const Call grouped({{32, 16, 16}, {32, 16, 16}}, {.heads_last = true}, at::kFloat);
  EXPECT_TRUE(explain_neighborhood(grouped.q, grouped.k, grouped.v, neighborhood_of(grouped.axes))
                  .starts_with("windows as ranges of keys, portable: fp32 products, 32 tiles of up to 192 rows, 128 "
                               "panels of 64 gathered keys (0 checked)"));
  ::unsetenv("FOVEATE_BACKEND");
  const Tensor none = zeros({0, 2, 3136, 8});
  EXPECT_EQ(explain_neighborhood(none, none, none, neighborhood_of(c.axes)), "nothing to do: there is no query");
  const Tensor wide = c.q.to(at::kDouble);
  EXPECT_EQ(explain_neighborhood(wide, c.k.to(at::kDouble), c.v.to(at::kDouble), neighborhood_of(c.axes)),
            "definition: fp64 runs in the definition");
}

}  // namespace
}  // namespace foveate::ops
