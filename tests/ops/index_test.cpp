// The indexer and its hierarchical form against plain loops in double, at every level.
#include "foveate/ops/index/index.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "foveate/base/error.h"
#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class IndexAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, IndexAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

using Row = std::vector<double>;
using Rows = std::vector<Row>;

Rows rows_of(const Tensor& t) {  // [n, D]
  const Tensor wide = t.to(at::kDouble).contiguous();
  Rows rows;
  for (int64_t i = 0; i < t.size(0); ++i) {
    const double* from = wide.const_data_ptr<double>() + i * t.size(1);
    rows.emplace_back(from, from + t.size(1));
  }
  return rows;
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Small integers: every sum is exact, so that selections of loops and kernels agree bit by bit, ties included.
Tensor integers(at::IntArrayRef shape, uint64_t seed, int64_t largest = 3) {
  Tensor t = random_tensor(shape, seed).mul(1.3).round().clamp(-double(largest), double(largest));
  return t;
}

struct Ranges {
  std::vector<int64_t> start, end;
  Tensor starts() const { return at::tensor(start, at::kLong); }
  Tensor ends() const { return at::tensor(end, at::kLong); }
};

// Sequences one behind the other, causal in each; some queries see nothing.
Ranges packed(int64_t rows, int64_t keys, uint64_t seed) {
  Random random(seed);
  Ranges r;
  const int64_t cut = int64_t(random.below(uint64_t(keys)));
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t start = random.below(2) ? cut : 0;
    r.start.push_back(start);
    r.end.push_back(start + int64_t(random.below(uint64_t((start ? keys : cut) - start) + 1)));
  }
  return r;
}

double score(const Rows& heads, const Row& weights, const Row& key) {
  double sum = 0;
  for (size_t j = 0; j < heads.size(); ++j) sum += weights[j] * std::max(dot(heads[j], key), 0.0);
  return sum;
}

// The best `count` of scores[first, end), by score and then by index.
std::vector<int64_t> best(const std::vector<std::pair<double, int64_t>>& scored, int64_t count) {
  auto order = scored;
  std::ranges::sort(
      order, [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < std::min<int64_t>(count, std::ssize(order)); ++i) ids.push_back(order[size_t(i)].second);
  std::ranges::sort(ids);
  return ids;
}

std::vector<int64_t> flat_by_loops(const Rows& heads, const Row& weights, const Rows& keys, int64_t start, int64_t end,
                                   int64_t topk) {
  std::vector<std::pair<double, int64_t>> scored;
  for (int64_t s = start; s < end; ++s) scored.push_back({score(heads, weights, keys[size_t(s)]), s - start});
  return best(scored, topk);
}

struct Hierarchy {
  int64_t block, block_topk, topk;
  bool force_ends = true;
};

std::vector<int64_t> hisa_by_loops(const Rows& heads, const Row& weights, const Rows& keys, int64_t start, int64_t end,
                                   const Hierarchy& h) {
  const int64_t length = std::ssize(keys);
  if (start == end) return {};
  const int64_t first = start / h.block, last = (end - 1) / h.block;
  std::vector<std::pair<double, int64_t>> blocks;
  for (int64_t b = first; b <= last; ++b) {
    const bool own = b == last && !h.force_ends;
    const int64_t from = b * h.block, to = std::min(own ? end : (b + 1) * h.block, length);
    Row mean(keys[0].size(), 0);
    for (int64_t s = from; s < to; ++s)
      for (size_t d = 0; d < mean.size(); ++d) mean[d] += keys[size_t(s)][d] / double(to - from);
    const bool forced = h.force_ends && (b == first || b == last);
    blocks.push_back({forced ? INFINITY : score(heads, weights, mean), b});
  }
  std::vector<std::pair<double, int64_t>> scored;
  for (const int64_t b : best(blocks, h.block_topk))
    for (int64_t s = std::max(b * h.block, start); s < std::min((b + 1) * h.block, end); ++s)
      scored.push_back({score(heads, weights, keys[size_t(s)]), s - start});
  return best(scored, h.topk);
}

std::vector<int64_t> ids_of(const Tensor& index, int64_t row) {
  std::vector<int64_t> ids;
  const Tensor list = index.select(0, row).to(at::kLong).contiguous();
  bool ended = false;
  for (int64_t i = 0; i < list.numel(); ++i) {
    const int64_t id = list.const_data_ptr<int64_t>()[i];
    EXPECT_FALSE(ended && id >= 0) << "empty entries must stand behind the others";
    ended |= id < 0;
    if (id >= 0) ids.push_back(id);
  }
  return ids;
}

IndexKeys packed_keys(const Tensor& k, IndexType type) {
  IndexKeys keys(k.size(1), {type});
  keys.append(k);
  return keys;
}

TEST_P(IndexAtLevel, logits_equal_plain_loops) {
  for (const int64_t dim : {1, 8, 33, 128})
    for (const int64_t heads : {1, 3, 6, 8, 13})
      for (const int64_t length : {1, 15, 64, 200}) {
        const Tensor q = integers({7, heads, dim}, 1), k = integers({length, dim}, 2), w = integers({7, heads}, 3, 5);
        const Ranges r = packed(7, length, uint64_t(dim * length));
        const Rows keys = rows_of(k), weights = rows_of(w);
        Tensor want = at::full({7, length}, -INFINITY, at::kDouble);
        for (int64_t t = 0; t < 7; ++t)
          for (int64_t s = r.start[size_t(t)]; s < r.end[size_t(t)]; ++s)
            want.index_put_(
                {at::tensor(t), at::tensor(s)},
                at::tensor(score(rows_of(q.select(0, t)), weights[size_t(t)], keys[size_t(s)]), at::kDouble));
        for (const IndexType type : {IndexType::fp32, IndexType::bf16}) {
          const Tensor got = index_logits({q, w, r.starts(), r.ends()}, packed_keys(k, type));
          EXPECT_TRUE(same(got, want, {0, 0})) << dim << " " << heads << " " << length << " " << int(type);
        }
      }
}

TEST_P(IndexAtLevel, the_golden_query) {
  const Tensor k = at::tensor({1., 0., .5, .5, -1., 2., 0., -1., 2., 1., 1., 1., -.5, -.5, .25, 1.}).view({8, 2}),
               q = at::tensor({1., .5, -.5, 1.}).view({1, 2, 2}).to(at::kFloat), w = at::tensor({.7, .3}).view({1, 2});
  const IndexQueries queries{q, w.to(at::kFloat), at::tensor({0}, at::kLong), at::tensor({8}, at::kLong)};
  for (const IndexType type : {IndexType::fp32, IndexType::bf16}) {
    BlockedKeys keys(2, {type}, 2);
    keys.append(k.to(at::kFloat));
    EXPECT_TRUE(same(index_logits(queries, keys.keys()),
                     at::tensor({.7, .6, .75, 0., 1.75, 1.2, 0., .7875}).view({1, 8}), {1e-7, 1e-7}));
    const IndexQueries blocks{q, w.to(at::kFloat), at::tensor({0}, at::kLong), at::tensor({4}, at::kLong)};
    EXPECT_TRUE(
        same(index_logits(blocks, keys.pooled()), at::tensor({.6125, .225, 1.475, .09375}).view({1, 4}), {1e-7, 1e-7}));
    using Ids = std::vector<int64_t>;
    EXPECT_EQ(ids_of(index_top(queries, keys.keys(), 3), 0), (Ids{4, 5, 7}));
    EXPECT_EQ(ids_of(hisa_index(queries, keys, {.block_topk = 2, .topk = 3}), 0), (Ids{0, 1, 7}));
    EXPECT_EQ(ids_of(hisa_index(queries, keys, {.block_topk = 3, .topk = 3}), 0), (Ids{4, 5, 7}));
    EXPECT_EQ(ids_of(hisa_index(queries, keys, {.block_topk = 4, .topk = 3}), 0), (Ids{4, 5, 7}));
  }
}

TEST_P(IndexAtLevel, selections_equal_plain_loops_on_packed_sequences) {
  Random random(7);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t dim = 4, heads = 1 + int64_t(random.below(4)), length = 1 + int64_t(random.below(90)), rows = 5;
    const int64_t block = int64_t{1} << random.below(trial % 4 ? 4 : 6);  // exact means: sums over powers of two
    const Hierarchy h{block, 2 + int64_t(random.below(6)), 1 + int64_t(random.below(20)), trial % 5 != 0};
    const Tensor q = integers({rows, heads, dim}, random.below(1u << 30)),
                 w = integers({rows, heads}, random.below(1u << 30));
    Tensor k = integers({length, dim}, random.below(1u << 30));
    const int64_t tail = length % block;  // and a tail whose count divides: its rows alike
    if (tail) k.narrow(0, length - tail, tail).copy_(k.narrow(0, length - 1, 1).expand({tail, dim}));
    const Ranges r = packed(rows, length, random.below(1u << 30));
    BlockedKeys keys(dim, {IndexType::fp32}, block);
    keys.append(k);
    const IndexQueries queries{q, w, r.starts(), r.ends()};
    const Tensor flat = index_top(queries, keys.keys(), h.topk);
    const Tensor hisa = hisa_index(queries, keys, {h.block_topk, h.topk, h.force_ends});
    const Tensor all = hisa_index(queries, keys, {1000, h.topk, h.force_ends});
    EXPECT_TRUE(all.equal(flat)) << "more blocks than there are must equal flat";
    const Tensor of_logits = index_top(index_logits(queries, keys.keys()), r.starts(), r.ends(), h.topk);
    EXPECT_TRUE(of_logits.equal(flat));
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t a = r.start[size_t(t)], b = r.end[size_t(t)];
      const Rows query = rows_of(q.select(0, t));
      const Row weights = rows_of(w)[size_t(t)];
      EXPECT_EQ(ids_of(flat, t), flat_by_loops(query, weights, rows_of(k), a, b, h.topk)) << trial;
      if (!h.force_ends && (b % block & (b % block - 1)) != 0) continue;  // its own mean is rounded
      EXPECT_EQ(ids_of(hisa, t), hisa_by_loops(query, weights, rows_of(k), a, b, h)) << trial << " row " << t;
    }
  }
}

TEST_P(IndexAtLevel, ties_go_to_the_lowest_indices_and_nan_comes_last) {
  const Tensor q = at::zeros({1, 2, 4}), w = at::zeros({1, 2});
  Tensor k = random_tensor({50, 4}, 1);
  const IndexQueries queries{q, w, at::tensor({3}, at::kLong), at::tensor({41}, at::kLong)};
  using Ids = std::vector<int64_t>;
  EXPECT_EQ(ids_of(index_top(queries, packed_keys(k, IndexType::bf16), 4), 0), (Ids{0, 1, 2, 3}));
  k.select(0, 4).fill_(NAN);
  BlockedKeys keys(4, {IndexType::fp32}, 8);
  keys.append(k);
  EXPECT_EQ(ids_of(index_top(queries, keys.keys(), 3), 0), (Ids{0, 2, 3}));
  EXPECT_EQ(std::ssize(ids_of(index_top(queries, keys.keys(), 50), 0)), 38) << "a NaN key is still a key";
  EXPECT_EQ(ids_of(hisa_index(queries, keys, {.block_topk = 2, .topk = 3}), 0), (Ids{0, 2, 3}));
}

TEST_P(IndexAtLevel, bits_depend_neither_on_threads_nor_on_how_keys_came) {
  const int64_t length = 777, dim = 24, rows = 67;
  const Tensor q = random_tensor({rows, 7, dim}, 1), w = random_tensor({rows, 7}, 2),
               k = random_tensor({length, dim}, 3);
  std::vector<int64_t> ends;
  for (int64_t t = 0; t < rows; ++t) ends.push_back(length - rows + t + 1);
  const IndexQueries queries{q, w, at::zeros({rows}, at::kLong), at::tensor(ends, at::kLong)};
  for (const IndexType type : {IndexType::fp32, IndexType::bf16, IndexType::e4m3}) {
    BlockedKeys at_once(dim, {type}, 16), grown(dim, {type}, 16);
    at_once.append(k);
    grown.append(random_tensor({300, dim}, 9));
    grown.truncate(0);
    for (int64_t first = 0, some = 1; first < length; first += some, some = some * 2 % 97)
      grown.append(k.narrow(0, first, std::min(some, length - first)));
    grown.append(random_tensor({40, dim}, 4));
    grown.truncate(length);
    const HisaOptions options{.block_topk = 5, .topk = 40};
    const Tensor logits = index_logits(queries, at_once.keys()), list = hisa_index(queries, at_once, options);
    EXPECT_TRUE(index_logits(queries, grown.keys()).equal(logits));
    EXPECT_TRUE(hisa_index(queries, grown, options).equal(list));
    at::set_num_threads(2);
    EXPECT_TRUE(index_logits(queries, grown.keys()).equal(logits));
    EXPECT_TRUE(hisa_index(queries, grown, options).equal(list));
    at::set_num_threads(1);
    for (int64_t t = 0; t < rows && GetParam() != "definition"; t += 11) {  // one query alone
      const IndexQueries one{q.narrow(0, t, 1), w.narrow(0, t, 1), queries.start.narrow(0, t, 1),
                             queries.end.narrow(0, t, 1)};
      EXPECT_TRUE(index_logits(one, grown.keys()).equal(logits.narrow(0, t, 1)));
      EXPECT_TRUE(hisa_index(one, grown, options).equal(list.narrow(0, t, 1)));
    }
  }
}

TEST_P(IndexAtLevel, decoding_equals_one_call_without_forced_ends) {  // what a row sees of its own block alone counts
  const int64_t length = 150, dim = 16;
  const Tensor q = random_tensor({length, 3, dim}, 1), w = random_tensor({length, 3}, 2).abs(),
               k = random_tensor({length, dim}, 3);
  std::vector<int64_t> ends;
  for (int64_t t = 0; t < length; ++t) ends.push_back(t + 1);
  BlockedKeys all(dim, {IndexType::bf16}, 8), grown(dim, {IndexType::bf16}, 8);
  all.append(k);
  const HisaOptions options{.block_topk = 3, .topk = 10, .force_ends = false};
  const Tensor want = hisa_index({q, w, at::zeros({length}, at::kLong), at::tensor(ends, at::kLong)}, all, options);
  for (int64_t t = 0; t < length; ++t) {
    grown.append(k.narrow(0, t, 1));
    const IndexQueries one{q.narrow(0, t, 1), w.narrow(0, t, 1), at::tensor({int64_t{0}}), at::tensor({t + 1})};
    ASSERT_TRUE(hisa_index(one, grown, options).equal(want.narrow(0, t, 1))) << t;
  }
}

TEST(Index, kept_tokens_lie_in_kept_blocks_and_beat_the_others) {
  const int64_t length = 500, dim = 16, rows = 40, block = 16;
  const Tensor q = random_tensor({rows, 4, dim}, 1), w = random_tensor({rows, 4}, 2),
               k = random_tensor({length, dim}, 3);
  const Ranges r = packed(rows, length, 4);
  BlockedKeys keys(dim, {IndexType::e4m3}, block);
  keys.append(k);
  const IndexQueries queries{q, w, r.starts(), r.ends()};
  const Tensor logits = index_logits(queries, keys.keys());
  const Tensor all = hisa_index(queries, keys, {.block_topk = 4, .topk = 64});  // all tokens of the kept blocks
  const Tensor some = hisa_index(queries, keys, {.block_topk = 4, .topk = 9});
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t start = r.start[size_t(t)];
    const auto candidates = ids_of(all, t), kept = ids_of(some, t);
    std::set<int64_t> blocks;
    for (const int64_t id : candidates) blocks.insert((id + start) / block);
    EXPECT_LE(blocks.size(), 4u);
    EXPECT_EQ(std::ssize(kept), std::min<int64_t>(9, std::ssize(candidates)));
    const std::set<int64_t> chosen(kept.begin(), kept.end());
    double worst = INFINITY, best_left = -INFINITY;
    for (const int64_t id : candidates) {
      EXPECT_LT(id, r.end[size_t(t)] - start);
      const double value = logits[t][id + start].item<double>();
      (chosen.contains(id) ? worst = std::min(worst, value) : best_left = std::max(best_left, value));
    }
    EXPECT_GE(worst, best_left);
  }
}

TEST(Index, refuses_what_does_not_fit) {
  const Tensor q = at::zeros({2, 1, 4}), w = at::zeros({2, 1}), zero = at::zeros({2}, at::kLong);
  BlockedKeys keys(4, {IndexType::fp32}, 4);
  keys.append(at::zeros({6, 4}));
  const IndexQueries good{q, w, zero, zero + 6};
  EXPECT_NO_THROW(hisa_index(good, keys, {}));
  EXPECT_THROW(index_top(good, keys.keys(), 0), Error);
  EXPECT_THROW(hisa_index(good, keys, {.block_topk = 2, .topk = 0}), Error);
  EXPECT_THROW(hisa_index(good, keys, {.block_topk = 1}), Error);
  EXPECT_NO_THROW(hisa_index(good, keys, {.block_topk = 1, .force_ends = false}));
  EXPECT_THROW(index_logits({q, w, zero, zero + 7}, keys.keys()), Error);
  EXPECT_THROW(index_logits({q, w, zero + 3, zero + 2}, keys.keys()), Error);
  EXPECT_THROW(index_logits({q, w, zero - 1, zero + 2}, keys.keys()), Error);
  EXPECT_THROW(index_logits({q.narrow(2, 0, 3), w, zero, zero}, keys.keys()), Error);
  EXPECT_THROW(index_logits({q.narrow(1, 0, 0), w.narrow(1, 0, 0), zero, zero}, keys.keys()), Error);
  EXPECT_THROW(index_logits({q, w.t(), zero, zero}, keys.keys()), Error);
  EXPECT_THROW(BlockedKeys(4, {}, 0), Error);
  EXPECT_THROW(IndexKeys(0, {}), Error);
  EXPECT_THROW(keys.append(at::zeros({1, 5})), Error);
  EXPECT_THROW(keys.append(quantise_float8(at::zeros({1, 4}))), Error);
  EXPECT_THROW(keys.truncate(7), Error);
}

TEST(Index, no_keys_and_no_queries_are_limits_not_errors) {
  BlockedKeys keys(4, {IndexType::e4m3}, 4);
  const Tensor none = at::zeros({2}, at::kLong);
  const IndexQueries queries{at::zeros({2, 1, 4}), at::zeros({2, 1}), none, none};
  EXPECT_EQ(index_logits(queries, keys.keys()).numel(), 0);
  EXPECT_TRUE(hisa_index(queries, keys, {.topk = 3}).eq(-1).all().item<bool>());
  EXPECT_TRUE(index_top(queries, keys.keys(), 3).eq(-1).all().item<bool>());
  const Tensor nothing = at::zeros({0}, at::kLong);
  EXPECT_EQ(hisa_index({at::zeros({0, 1, 4}), at::zeros({0, 1}), nothing, nothing}, keys, {.topk = 3}).size(0), 0);
}

TEST(Index, no_rows_have_no_scales) {
  IndexKeys keys(4, {IndexType::e4m3});
  keys.append(random_tensor({9, 4}, 1));
  for (const int64_t first : {0, 5, 9}) {
    EXPECT_EQ(keys.rows(first, 0).codes.sizes(), (std::vector<int64_t>{0, 4}));
    EXPECT_EQ(keys.rows(first, 0).scales.numel(), 0);
    EXPECT_EQ(keys.values(first, 0).sizes(), (std::vector<int64_t>{0, 4}));
  }
}

// 1 - 2 <a, b> / (|a|^2 + |b|^2)
double difference(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return (1 - 2 * (x * y).sum() / (x.square() + y.square()).sum()).item<double>();
}

TEST_P(IndexAtLevel, logits_of_8_bits_are_near_and_exact_for_what_was_rounded) {
  const int64_t rows = 24, heads = 8, dim = 128, length = 300;
  const Tensor q = random_tensor({rows, heads, dim}, 1), k = random_tensor({length, dim}, 2),
               w = random_tensor({rows, heads}, 3);
  const Tensor zero = at::zeros({rows}, at::kLong);
  for (const bool power_of_two : {false, true}) {
    const Float8Rows codes = quantise_float8(q, {.power_of_two = power_of_two});
    IndexKeys keys(dim, {IndexType::e4m3, {.power_of_two = power_of_two}});
    keys.append(k);
    const Tensor got = index_logits({codes.codes, w * codes.scales, zero, zero + length}, keys);
    const auto by_formula = [&](const Tensor& x, const Tensor& y) {
      return (x.to(at::kDouble).matmul(y.to(at::kDouble).t()).relu() * w.to(at::kDouble).unsqueeze(2)).sum(1);
    };
    EXPECT_LT(difference(got, by_formula(q, k)), 1e-3);
    EXPECT_LT(difference(got, by_formula(codes.values(), keys.values(0, length))), 5e-6);
    EXPECT_TRUE(same(got, by_formula(codes.values(), keys.values(0, length)), {2e-3, 1e-5}));
    const Float8Rows same_keys = quantise_float8(k, {.power_of_two = power_of_two});
    IndexKeys given(dim, {IndexType::e4m3});
    given.append(same_keys);
    EXPECT_TRUE(index_logits({codes.codes, w * codes.scales, zero, zero + length}, given).equal(got));
  }
}

TEST(Float8, codes_are_the_nearest_of_all_and_scales_as_defined) {
  std::vector<double> all;  // magnitudes of e4m3: seven bits, 0x7f is NaN
  for (int bits = 0; bits < 0x7f; ++bits) {
    const int exponent = bits >> 3, fraction = bits & 7;
    all.push_back(exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9));
  }
  const Tensor x =
      at::cat({random_tensor({20, 64}, 1), random_tensor({20, 64}, 2) * 1e-6, random_tensor({1, 64}, 3) * 1e6});
  for (const bool power_of_two : {false, true}) {
    const Float8Rows rows = quantise_float8(x, {.power_of_two = power_of_two});
    const Rows from = rows_of(x), codes = rows_of(rows.codes.to(at::kFloat));
    for (size_t r = 0; r < from.size(); ++r) {
      double largest = 0;
      for (const double v : from[r]) largest = std::max(largest, std::abs(v));
      double scale = std::max(largest, 1e-4) / 448;
      if (power_of_two) scale = std::exp2(std::ceil(std::log2(scale)));
      const double got = rows.scales[int64_t(r)].item<double>();
      EXPECT_NEAR(got, scale, 1e-6 * scale);
      for (size_t i = 0; i < from[r].size(); ++i) {
        const double target = std::abs(double(float(from[r][i]) / float(got)));
        double nearest = INFINITY;
        for (const double v : all) nearest = std::min(nearest, std::abs(v - target));
        EXPECT_NEAR(std::abs(std::abs(codes[r][i]) - target), nearest, 1e-6 * target + 1e-9);
        EXPECT_TRUE(codes[r][i] == 0 || (codes[r][i] < 0) == (from[r][i] < 0));
      }
    }
  }
  EXPECT_EQ(quantise_float8(at::full({1, 4}, 448.0), {.power_of_two = true}).scales.item<double>(), 1);
  EXPECT_EQ(quantise_float8(at::full({1, 4}, 449.0), {.power_of_two = true}).scales.item<double>(), 2);
  Tensor bad = at::zeros({2, 4});
  bad[0][1] = INFINITY;
  const Tensor values = quantise_float8(bad).values();
  EXPECT_TRUE(values[0].isnan().all().item<bool>());
  EXPECT_TRUE(values[1].eq(0).all().item<bool>());
}

TEST(Float8, hadamard_keeps_products) {
  for (const int64_t dim : {1, 2, 16, 128}) {
    const Tensor a = random_tensor({9, dim}, 1, at::kDouble), b = random_tensor({9, dim}, 2, at::kDouble);
    EXPECT_TRUE(same(hadamard(a).matmul(hadamard(b).t()), a.matmul(b.t()), {1e-12, 1e-12}));
    EXPECT_TRUE(same(hadamard(hadamard(a)), a, {1e-12, 1e-12}));
  }
  EXPECT_TRUE(same(hadamard(at::tensor({1., 0., 0., 0.})), at::tensor({.5, .5, .5, .5}), {0, 0}));
  EXPECT_THROW(hadamard(at::zeros({2, 12})), Error);
}

TEST(Float8, pages_of_index_keys_come_back) {
  for (const int64_t keys : {0, 1, 64, 100}) {
    const Float8Rows rows = quantise_float8(random_tensor({keys, 128}, 1));
    const Tensor pages = to_index_pages(rows);
    EXPECT_EQ(pages.size(0), (keys + 63) / 64);
    EXPECT_EQ(pages.size(1), 64 * 132);
    const Float8Rows back = from_index_pages(pages, keys);
    EXPECT_TRUE(back.values().equal(rows.values()));
    EXPECT_THROW(from_index_pages(pages, pages.size(0) * 64 + 1), Error);
  }
  const Float8Rows rows = quantise_float8(random_tensor({70, 128}, 1));
  const Tensor pages = to_index_pages(rows);  // the layout: 64 rows of codes, then 64 scales
  EXPECT_TRUE(
      pages[1].narrow(0, 5 * 128, 128).view(at::kFloat8_e4m3fn).to(at::kFloat).equal(rows.codes[69].to(at::kFloat)));
  EXPECT_TRUE(pages[1].narrow(0, 64 * 128 + 4 * 5, 4).clone().view(at::kFloat).equal(rows.scales.narrow(0, 69, 1)));
}

TEST(Float8, latent_rows_of_656_bytes_come_back) {
  const Tensor kv = random_tensor({3, 5, 576}, 1);
  const Tensor rows = quantise_latent(kv);
  EXPECT_EQ(rows.size(-1), 656);
  const Tensor back = dequantise_latent(rows, at::kFloat);
  EXPECT_TRUE(same(back.narrow(2, 0, 512), kv.narrow(2, 0, 512), {1e-3, 1.0 / 16}));
  EXPECT_TRUE(back.narrow(2, 512, 64).equal(kv.narrow(2, 512, 64).to(at::kBFloat16).to(at::kFloat)));
  const Tensor scales = rows.narrow(2, 512, 16).contiguous().view(at::kFloat), exponent = scales.log2();
  EXPECT_TRUE(exponent.equal(exponent.round())) << "powers of two";
  EXPECT_TRUE(quantise_latent(dequantise_latent(rows, at::kFloat)).equal(rows));
  EXPECT_THROW(quantise_latent(kv.narrow(2, 0, 575)), Error);
  EXPECT_THROW(dequantise_latent(rows.narrow(2, 0, 655), at::kFloat), Error);
}

}  // namespace
}  // namespace foveate::ops
