// Keys and values in pages and in 8 bits: attention over them equals attention over what they stand for.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstring>

#include "foveate/base/error.h"
#include "foveate/ops/attend/attend.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/quantise/quantise.h"
#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

class StorageAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, StorageAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

float of_bf16(const uint8_t* bytes) {
  const uint32_t bits = uint32_t{bytes[0]} << 16 | uint32_t{bytes[1]} << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

TEST_P(StorageAtLevel, codes_are_to_the_nearest_of_a_scale_that_the_largest_sets) {
  for (const int64_t dim : {1, 31, 32, 33, 80, 128, 130}) {
    const Tensor x = random_tensor({3, dim}, uint64_t(dim)) * 5;
    const Tensor rows = quantise_rows(x);
    ASSERT_EQ(rows.size(1), dim + 2 * ((dim + 31) / 32));
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t first = 0; first < dim; first += 32) {
        const uint8_t* row = rows[r].const_data_ptr<uint8_t>();
        const float* values = x[r].const_data_ptr<float>();
        const int64_t end = std::min(first + 32, dim);
        double largest = 0;
        for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::abs(double(values[i])));
        const double scale = of_bf16(row + dim + 2 * (first / 32));
        EXPECT_GE(scale, largest / 127 * (1 - 1e-6));
        EXPECT_LE(scale, largest / 127 * (1 + 1.0 / 128));  // bf16 has steps of 1 / 128
        for (int64_t i = first; i < end; ++i)
          EXPECT_LE(std::abs(double(int8_t(row[i])) * scale - values[i]), scale / 2 * (1 + 1e-5)) << dim << " " << i;
      }
    const Tensor back = dequantise_rows(rows, at::kFloat);
    EXPECT_TRUE(same(back, x, {x.abs().max().item<double>() / 253, 0}));
    for (int64_t r = 0; r < 3; ++r)  // at any place in memory
      EXPECT_TRUE(dequantise_rows(rows.narrow(0, r, 1), at::kFloat).equal(back.narrow(0, r, 1)));
  }
}

TEST_P(StorageAtLevel, every_level_quantises_to_the_same_bytes) {
  const Tensor x = random_tensor({40, 200}, 3) * random_tensor({40, 1}, 4).mul(8).exp();
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Tensor here = quantise_rows(x.to(type));
    ::setenv("FOVEATE_BACKEND", "portable", 1);
    EXPECT_TRUE(here.equal(quantise_rows(x.to(type))));
    ::setenv("FOVEATE_BACKEND", GetParam().c_str(), 1);
  }
}

TEST_P(StorageAtLevel, nothing_tiny_or_not_finite_becomes_another_number) {
  const Tensor zeros = at::zeros({1, 64});
  EXPECT_TRUE(dequantise_rows(quantise_rows(zeros), at::kFloat).equal(zeros));
  Tensor x = random_tensor({1, 64}, 5);
  x[0][3] = NAN, x[0][40] = 1e-44;
  const Tensor back = dequantise_rows(quantise_rows(x), at::kFloat)[0];
  EXPECT_TRUE(back.narrow(0, 0, 32).isnan().all().item<bool>());
  EXPECT_TRUE(back.narrow(0, 32, 32).isfinite().all().item<bool>());
  x[0][3] = INFINITY;
  EXPECT_TRUE(dequantise_rows(quantise_rows(x), at::kFloat)[0].narrow(0, 0, 32).isnan().all().item<bool>());
  x = at::full({1, 32}, 1e-42);
  EXPECT_LE(dequantise_rows(quantise_rows(x), at::kFloat).sub(x).abs().max().item<float>(), 1e-41);
  x = at::full({1, 32}, 3e38);
  EXPECT_TRUE(same(dequantise_rows(quantise_rows(x), at::kFloat), x, {0, 1e-2}));
}

std::vector<Problem> problems(int64_t queries, int64_t dim) {
  const Shape s{.queries = queries, .keys = 157, .dim = dim, .value_dim = dim == 8 ? 5 : dim};
  std::vector<Problem> all = {rule_problem(s, Rule{.window_left = 60, .sinks = 3}), rule_problem(s, Rule::full()),
                              block_problem(s, 2, 4, 16, {}), token_problem(s, 4, 1, {}), run_problem(s, 1, 64, {})};
  all[0].score.soft_cap = 2;
  return all;
}

// Attention over 8-bit rows is attention over the numbers they stand for, to what sums in another order differ by.
TEST_P(StorageAtLevel, rows_of_8_bits_are_attended_as_what_they_stand_for) {
  for (const int64_t queries : {1, 3, 40})
    for (const int64_t dim : {8, 32, 33, 64, 80, 96, 130, 160, 576})
      for (const Problem& p : problems(queries, dim))
        for (const auto& [type, bound] :
             {std::pair(at::kFloat, Bound{2e-5, 2e-5}), {at::kBFloat16, {1.2e-2, 1.2e-2}}}) {
          const Tensor k = quantise_rows(p.k), v = quantise_rows(p.v);
          const Attended got = attend(p.q.to(type), k, v, p.plan, p.score);
          const Attended want = attend(p.q.to(type).to(at::kDouble), dequantise_rows(k, at::kFloat).to(at::kDouble),
                                       dequantise_rows(v, at::kFloat).to(at::kDouble), p.plan, p.score);
          EXPECT_TRUE(same(got.out, want.out, bound)) << queries << " queries, dim " << dim;
          EXPECT_TRUE(same(got.lse, want.lse, bound)) << queries << " queries, dim " << dim;
        }
}

TEST_P(StorageAtLevel, rows_of_8_bits_cost_little_accuracy) {
  const Tensor q = random_tensor({1, 8, 4, 128}, 1), k = random_tensor({1, 2, 2048, 128}, 2),
               v = random_tensor({1, 2, 2048, 128}, 3);
  const Tensor want = attend(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), Rule{}).out;
  const Tensor got = attend(q.to(at::kBFloat16), quantise_rows(k), quantise_rows(v), Rule{}).out.to(at::kDouble);
  EXPECT_LE((got - want).norm().item<double>(), 1.2e-2 * want.norm().item<double>());
}

// A first key that weighs most, with small values, as models have them: the others together still count.
TEST_P(StorageAtLevel, small_weights_of_8_bits_are_not_lost_beside_a_large_one) {
  constexpr int64_t kKeys = 3000;
  const Tensor q = random_tensor({1, 4, 1, 128}, 1);
  Tensor k = random_tensor({1, 1, kKeys, 128}, 2), v = random_tensor({1, 1, kKeys, 128}, 3) + 1;
  k.narrow(2, 0, 1).copy_(q.mean(1, true));
  v.narrow(2, 0, 1).mul_(1e-3);
  v.narrow(3, 32, 32).mul_(1e-4);  // another block of 32 has small values throughout
  const Tensor rows_k = quantise_rows(k), rows_v = quantise_rows(v);
  const double scale = 0.35;  // the first key weighs about as much as a thousand others, each less than 2^-15 of it
  const auto exact = [](const Tensor& rows) { return dequantise_rows(rows, at::kFloat).to(at::kDouble); };
  const Tensor want =
      attend(q.to(at::kBFloat16).to(at::kDouble), exact(rows_k), exact(rows_v), Rule::full(), {.scale = scale}).out;
  const Tensor got = attend(q.to(at::kBFloat16), rows_k, rows_v, Rule::full(), {.scale = scale}).out.to(at::kDouble);
  for (int64_t block = 0; block < 128; block += 32) {
    const Tensor of_block = want.narrow(3, block, 32);
    EXPECT_LE((got.narrow(3, block, 32) - of_block).norm().item<double>(), 6e-3 * of_block.norm().item<double>());
  }
}

TEST_P(StorageAtLevel, values_of_8_bits_that_are_not_finite_reach_the_rows_that_see_them) {
  const Tensor q = random_tensor({1, 1, 3, 64}, 1, at::kBFloat16), k = random_tensor({1, 1, 80, 64}, 2);
  Tensor v = random_tensor({1, 1, 80, 64}, 3);
  const Rule causal{.query_start = 77};
  const Tensor before = attend(q, quantise_rows(k), quantise_rows(v), causal).out;
  v[0][0][79].narrow(0, 0, 32).fill_(NAN);
  const Tensor after = attend(q, quantise_rows(k), quantise_rows(v), causal).out;
  EXPECT_TRUE(after.narrow(2, 0, 2).equal(before.narrow(2, 0, 2)));
  EXPECT_TRUE(after[0][0][2].narrow(0, 0, 32).isnan().all().item<bool>());
  EXPECT_TRUE(after[0][0][2].narrow(0, 32, 32).equal(before[0][0][2].narrow(0, 32, 32)));
}

TEST_P(StorageAtLevel, what_is_invisible_of_8_bits_changes_no_bit) {
  for (const int64_t queries : {1, 70}) {
    const Tensor q = random_tensor({1, 2, queries, 32}, 1, at::kBFloat16);
    Tensor k = random_tensor({1, 1, 100, 32}, 2), v = random_tensor({1, 1, 100, 32}, 3);
    const Rule rule{.query_start = 5, .key_lengths = longs({90}, {1})};
    const Tensor want = attend(q, quantise_rows(k), quantise_rows(v), rule).out;
    k.narrow(2, 90, 10).fill_(NAN), v.narrow(2, 90, 10).fill_(INFINITY);
    EXPECT_TRUE(attend(q, quantise_rows(k), quantise_rows(v), rule).out.equal(want));
  }
  const Tensor q = random_tensor({1, 2, 3, 32}, 1, at::kBFloat16);  // the last row alone sees the last key
  Tensor k = random_tensor({1, 1, 70, 32}, 2), v = random_tensor({1, 1, 70, 32}, 3);
  const Rule causal{.query_start = 67};
  const Tensor want = attend(q, quantise_rows(k), quantise_rows(v), causal).out.narrow(2, 0, 2);
  k.narrow(2, 69, 1).mul_(9), v.narrow(2, 69, 1).mul_(1e6);
  EXPECT_TRUE(attend(q, quantise_rows(k), quantise_rows(v), causal).out.narrow(2, 0, 2).equal(want));
}

// With rows of nothing up to a multiple of `size`.
Tensor padded(const Tensor& t, int64_t size) {
  const int64_t keys = t.size(2), all = (keys + size - 1) / size * size;
  const Tensor more = at::empty({t.size(0), t.size(1), all, t.size(3)}, t.options());
  more.fill_(7);  // full blocks show them, whatever key_lengths says
  more.narrow(2, 0, keys).copy_(t);
  return more;
}

// Pages of `size` keys in a random order, between pages of NaN that nobody may read.
struct Paged {
  Tensor k, v, pages;
  // k and v: of a multiple of `size` keys.
  Paged(const Tensor& whole_k, const Tensor& whole_v, int64_t size) {
    const int64_t batch = whole_k.size(0), each = whole_k.size(2) / size, count = batch * each + 3;
    const auto nothing = [&](const Tensor& t) {
      const Tensor all = at::empty({count, t.size(1), size, t.size(3)}, t.options());
      return t.is_floating_point() ? all.fill_(NAN) : all.fill_(255);
    };
    k = nothing(whole_k), v = nothing(whole_v);
    const Tensor order = random_tensor({count}, uint64_t(size)).argsort();
    pages = order.narrow(0, 0, batch * each).view({batch, each}).to(at::kInt);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < each; ++i) {
        const int64_t page = pages[b][i].item<int64_t>();
        k[page].copy_(whole_k[b].narrow(1, i * size, size));
        v[page].copy_(whole_v[b].narrow(1, i * size, size));
      }
  }
};

TEST_P(StorageAtLevel, pages_equal_whole_keys_bit_for_bit) {
  for (const int64_t queries : {1, 3, 40})
    for (const int64_t size : {1, 7, 16, 64, 100, 157, 200})
      for (Problem p : problems(queries, 64))
        for (const bool quantised : {false, true}) {
          Rule& rule = std::visit(
              [](auto& plan) -> Rule& {
                if constexpr (std::is_same_v<std::decay_t<decltype(plan)>, Rule>)
                  return plan;
                else
                  return plan.rule;
              },
              p.plan);
          if (rule.query_start.has_value()) continue;
          rule.query_start = p.k.size(2) - p.q.size(2);
          rule.key_lengths = longs({157, 120}, {2});
          const auto type = quantised || queries == 3 ? at::kBFloat16 : at::kFloat;
          const Tensor q = p.q.to(type), k = padded(quantised ? quantise_rows(p.k) : p.k.to(type), size),
                       v = padded(quantised ? quantise_rows(p.v) : p.v.to(type), size);
          const Paged paged(k, v, size);
          const Attended want = attend(q, k, v, p.plan, p.score);
          const Attended got = attend(q, paged.k, paged.v, p.plan, p.score, {}, paged.pages);
          const bool bit_for_bit = GetParam() != "definition";  // whose products depend on how memory lies
          EXPECT_TRUE(same(got.out, want.out, {bit_for_bit ? 0 : 1e-2, 0})) << queries << " queries, pages of " << size;
          EXPECT_EQ(explain(q, paged.k, paged.v, p.plan, p.score, Pass::forward, {}, paged.pages),
                    explain(q, k, v, p.plan, p.score));
          EXPECT_TRUE(same(got.lse, want.lse, {bit_for_bit ? 0 : 1e-2, 0})) << queries << " queries, pages of " << size;
        }
}

// A ring: the pages of a window in a row, each reused when its keys have left the window.
TEST_P(StorageAtLevel, a_ring_of_pages_equals_a_whole_cache_bit_for_bit) {
  constexpr int64_t kPage = 16, kWindow = 40, kPages = kWindow / kPage + 2, kTokens = 150;
  const Tensor q = random_tensor({1, 4, kTokens, 64}, 1), k = random_tensor({1, 2, kTokens, 64}, 2),
               v = random_tensor({1, 2, kTokens, 64}, 3);
  const Tensor ring_k = at::zeros({kPages, 2, kPage, 64}), ring_v = at::zeros({kPages, 2, kPage, 64});
  for (int64_t token = 0; token < kTokens; ++token) {
    for (const auto& [ring, whole] : {std::pair(ring_k, k), {ring_v, v}})
      ring[token / kPage % kPages].narrow(1, token % kPage, 1).copy_(whole[0].narrow(1, token, 1));
    const int64_t last = token / kPage, first = std::max<int64_t>(0, last - kPages + 1);
    const Tensor pages = at::arange(first, last + 1, at::kLong).remainder(kPages).to(at::kInt).unsqueeze(0);
    const Tensor one = q.narrow(2, token, 1);
    const Rule rule{.query_start = token - first * kPage, .window_left = kWindow - 1};
    const Attended got = attend(one, ring_k, ring_v, rule, {}, {}, pages);
    // the same keys from the same panel on: sums in the same order
    const int64_t start = first * kPage;
    const Attended want = attend(one, k.narrow(2, start, token + 1 - start), v.narrow(2, start, token + 1 - start),
                                 Rule{.window_left = kWindow - 1});
    ASSERT_TRUE(got.out.equal(want.out) && got.lse.equal(want.lse)) << token;
  }
}

TEST(Storage, errors_name_the_rule_and_the_values) {
  const Tensor q = random_tensor({1, 2, 1, 32}, 1), k = random_tensor({4, 2, 16, 32}, 2);
  const auto message = [&](const Tensor& keys, const Tensor& values, const Rule& rule, std::optional<Tensor> pages) {
    try {
      attend(q, keys, values, rule, {}, {}, pages);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto table = [](std::vector<int64_t> pages) { return longs(pages, {1, 3}).to(at::kInt); };
  EXPECT_EQ(message(k, k, {}, table({0, 4, 1})), "attend: pages that hold keys must be 0 .. 3, got 4");
  EXPECT_EQ(message(k, k, {.key_lengths = longs({16}, {1})}, table({0, -1, 99})), "");
  EXPECT_EQ(message(k, k, {}, table({0, 1, 2}).to(at::kLong)),
            "attend: pages must be int32 [1, pages], got Long [1, 3]");
  const Tensor rows = quantise_rows(k);
  EXPECT_EQ(message(rows, k, {}, table({0, 1, 2})),
            "attend: k and v must both be 8-bit rows or neither, got Byte and Float");
  EXPECT_EQ(message(rows.narrow(3, 0, 1), rows, {}, table({0, 1, 2})),
            "attend: 8-bit rows must have D + 2 * ceil(D / 32) bytes, got 1");
  const Tensor asking = q.clone().set_requires_grad(true);
  const auto loss = attend(asking, rows.narrow(0, 0, 1), rows.narrow(0, 0, 1), Rule{}).out.sum();
  try {
    loss.backward();
    FAIL() << "8-bit keys gave a gradient";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("attend_backward: 8-bit keys have no gradient"), std::string::npos);
  }
}

}  // namespace
}  // namespace foveate::ops
