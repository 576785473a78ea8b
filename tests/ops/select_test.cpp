#include "foveate/ops/select/select.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/ops/select/pool.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using test::random_tensor;
using test::same;

TEST(Pool, even_cuts_end_with_a_shorter_segment) {
  EXPECT_EQ(even_cuts(10, 4), (std::vector<int64_t>{0, 4, 8, 10}));
  EXPECT_EQ(even_cuts(8, 4), (std::vector<int64_t>{0, 4, 8}));
  EXPECT_EQ(even_cuts(0, 4), (std::vector<int64_t>{0}));
  EXPECT_THROW(even_cuts(3, 0), Error);
}

TEST(Pool, equals_plain_loops_for_ragged_segments) {
  const at::Tensor x = random_tensor({2, 3, 11, 4}, 1);
  const std::vector<int64_t> cuts = {0, 1, 4, 10, 11};
  const at::Tensor mean = pool_segments(x, cuts, Pooling::mean),
                   root = pool_segments(x, cuts, Pooling::mean_times_root), top = pool_segments(x, cuts, Pooling::max);
  for (int64_t c = 0; c < 4; ++c) {
    const int64_t n = cuts[c + 1] - cuts[c];
    const at::Tensor part = x.narrow(2, cuts[c], n);
    EXPECT_TRUE(same(mean.select(2, c), part.mean(2), {1e-6, 1e-6}));
    EXPECT_TRUE(same(root.select(2, c), part.mean(2).mul(std::sqrt(double(n))), {1e-6, 1e-6}));
    EXPECT_TRUE(same(top.select(2, c), part.amax(2), {0, 0}));
  }
  EXPECT_THROW(pool_segments(x, std::vector<int64_t>{0, 4, 4, 11}, Pooling::mean), Error);
  EXPECT_THROW(pool_segments(x, std::vector<int64_t>{0, 4}, Pooling::mean), Error);
}

TEST(Pool, even_segments_and_a_shorter_last_one_equal_ragged_ones) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const at::Tensor x = random_tensor({2, 11, 3, 4}, 1, type).transpose(1, 2);
    for (const Pooling pooling : {Pooling::mean, Pooling::mean_times_root, Pooling::max}) {
      const at::Tensor even = pool_segments(x, std::vector<int64_t>{0, 4, 8, 11}, pooling);
      EXPECT_EQ(even.scalar_type(), type == at::kDouble ? at::kDouble : at::kFloat);
      for (int64_t c = 0; c < 3; ++c) {
        const at::Tensor part = x.narrow(2, 4 * c, c < 2 ? 4 : 3).to(at::kDouble);
        const at::Tensor want = pooling == Pooling::max ? part.amax(2) : part.mean(2);
        const double root = pooling == Pooling::mean_times_root ? std::sqrt(double(part.size(2))) : 1;
        EXPECT_TRUE(same(even.select(2, c), want * root, {1e-6, 1e-6}));
      }
    }
  }
}

TEST(Pool, a_nan_stays_in_its_segment) {
  at::Tensor x = random_tensor({1, 1, 8, 2}, 1);
  x.select(2, 5).fill_(NAN);
  for (const Pooling pooling : {Pooling::mean, Pooling::max}) {
    const at::Tensor pooled = pool_segments(x, std::vector<int64_t>{0, 4, 8}, pooling);
    EXPECT_TRUE(pooled.select(2, 0).isfinite().all().item<bool>());
    EXPECT_TRUE(pooled.select(2, 1).isnan().all().item<bool>());
  }
}

TEST(Pool, weighted_sums_and_their_gradients_equal_plain_loops) {
  for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{{0, 4, 8, 12}, {0, 1, 7, 12}}) {
    const at::Tensor x = random_tensor({2, 3, 12, 4}, 1, at::kDouble).requires_grad_();
    const at::Tensor w = random_tensor({2, 1, 12}, 2, at::kDouble).requires_grad_(),
                     d = random_tensor({2, 3, 3, 4}, 3, at::kDouble);
    const at::Tensor got = weigh_segments(x, w, cuts);
    (got * d).sum().backward();
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t j = 0; j < 12; ++j) {
        const int64_t c = std::upper_bound(cuts.begin(), cuts.end(), j) - cuts.begin() - 1;
        double d_w = 0;
        for (int64_t h = 0; h < 3; ++h)
          for (int64_t e = 0; e < 4; ++e) {
            d_w += d[b][h][c][e].item<double>() * x[b][h][j][e].item<double>();
            EXPECT_NEAR(x.grad()[b][h][j][e].item<double>(), w[b][0][j].item<double>() * d[b][h][c][e].item<double>(),
                        1e-12);
            if (j == cuts[size_t(c)]) {
              double sum = 0;
              for (int64_t i = j; i < cuts[size_t(c) + 1]; ++i)
                sum += w[b][0][i].item<double>() * x[b][h][i][e].item<double>();
              EXPECT_NEAR(got[b][h][c][e].item<double>(), sum, 1e-12);
            }
          }
        EXPECT_NEAR(w.grad()[b][0][j].item<double>(), d_w, 1e-12);
      }
  }
  EXPECT_THROW(weigh_segments(random_tensor({1, 1, 4, 2}, 1), random_tensor({1, 1, 5}, 1), std::vector<int64_t>{0, 4}),
               Error);
}

TEST(Pool, score_blocks_equals_plain_loops) {
  const at::Tensor q = random_tensor({2, 4, 10, 3}, 1, at::kDouble),
                   chunks = random_tensor({2, 2, 5, 3}, 2, at::kDouble);
  const std::vector<int64_t> cuts = {0, 4, 8, 10};
  for (const Pooling pooling : {Pooling::mean, Pooling::max})
    for (const bool by_group : {false, true}) {
      const at::Tensor got = score_blocks(q, chunks, cuts, pooling, by_group);
      ASSERT_EQ(got.sizes(), at::IntArrayRef({2, by_group ? 2 : 4, 3, 5}));
      for (int64_t h = 0; h < got.size(1); ++h)
        for (int64_t block = 0; block < 3; ++block) {
          const at::Tensor rows = by_group ? (q.select(1, 2 * h) + q.select(1, 2 * h + 1)) / 2 : q.select(1, h);
          const at::Tensor part = rows.narrow(1, cuts[size_t(block)], cuts[size_t(block) + 1] - cuts[size_t(block)]);
          const at::Tensor pooled = pooling == Pooling::mean ? part.mean(1) : part.amax(1);
          for (int64_t c = 0; c < 5; ++c)
            EXPECT_TRUE(same(got.select(1, h).select(1, block).select(1, c),
                             (pooled * chunks.select(1, by_group ? h : h / 2).select(1, c)).sum(-1), {1e-12, 1e-12}));
        }
    }
  EXPECT_THROW(score_blocks(q, random_tensor({2, 3, 5, 3}, 2), cuts, Pooling::mean, true), Error);
}

// The definition, token by token: forced keys, then the best of the rest by (score, index).
std::vector<int> select_by_sorting(const std::vector<float>& scores, const std::vector<int64_t>& cuts,
                                   const Candidates& c, int64_t budget) {
  std::vector<int> chosen, rest;
  for (int64_t key = c.first; key < c.last; ++key) {
    const bool is_forced = key < c.first + c.forced_head || key >= c.last - c.forced_tail;
    (is_forced ? chosen : rest).push_back(int(key));
  }
  const auto score = [&](int key) {
    const float s = scores[size_t(std::upper_bound(cuts.begin(), cuts.end(), key) - cuts.begin() - 1)];
    return std::isnan(s) ? -INFINITY : s;
  };
  std::stable_sort(rest.begin(), rest.end(), [&](int a, int b) { return score(a) > score(b); });
  for (const int key : rest)
    if (std::ssize(chosen) < budget) chosen.push_back(key);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

TEST(Select, equals_sorting_every_token) {
  Random random(3);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int64_t> cuts = {0};
    while (cuts.back() < 40) cuts.push_back(cuts.back() + 1 + int64_t(random.below(7)));
    const int64_t keys = cuts.back(), chunks = std::ssize(cuts) - 1;
    std::vector<float> scores;
    for (int64_t i = 0; i < chunks; ++i)
      scores.push_back(random.below(9) == 0 ? NAN : float(random.below(5)));  // many ties
    const int64_t last = int64_t(random.below(uint64_t(keys + 1))),
                  first = last > 0 ? int64_t(random.below(uint64_t(last))) : 0;
    const Candidates c{first, last, int64_t(random.below(4)), int64_t(random.below(4))};
    const int64_t budget = 6 + int64_t(random.below(20));
    const at::Tensor index =
        select_tokens(at::tensor(scores, at::kFloat).view({1, 1, 1, chunks}), cuts, {&c, 1}, budget);
    std::vector<int> got;
    for (int64_t i = 0; i < index.size(3); ++i)
      if (index[0][0][0][i].item<int>() >= 0) got.push_back(index[0][0][0][i].item<int>());
    EXPECT_EQ(got, select_by_sorting(scores, cuts, c, budget)) << "trial " << trial;
  }
}

// Entries by (forced, score, index), the best first.
std::vector<int> top_by_sorting(const std::vector<float>& scores, const std::vector<bool>& forced,
                                const std::vector<bool>& banned, int64_t count) {
  std::vector<int> order;
  for (int i = 0; i < int(scores.size()); ++i)
    if (!banned[size_t(i)] && (forced[size_t(i)] || scores[size_t(i)] != -INFINITY)) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const auto x = size_t(a), y = size_t(b);
    if (forced[x] != forced[y]) return bool(forced[x]);
    if (std::isnan(scores[x]) || std::isnan(scores[y])) return !std::isnan(scores[x]) && std::isnan(scores[y]);
    return scores[x] > scores[y];
  });
  order.resize(std::min(order.size(), size_t(count)));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(Select, the_best_entries_equal_sorting_all_of_them) {
  Random random(9);
  for (int trial = 0; trial < 400; ++trial) {
    const size_t entries = 1 + random.below(40);
    std::vector<float> scores;
    std::vector<bool> forced, banned;
    const float special[] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, -1e-40f};
    for (size_t i = 0; i < entries; ++i) {
      scores.push_back(random.below(5) == 0 ? special[random.below(6)] : float(random.below(7)) - 3);
      forced.push_back(random.below(12) == 0), banned.push_back(random.below(6) == 0);
    }
    int64_t least = 0;
    for (size_t i = 0; i < entries; ++i) least += forced[i] && !banned[i];
    const int64_t count = least + int64_t(random.below(20));
    const auto mask = [&](const std::vector<bool>& bits) {
      const at::Tensor t = at::zeros({int64_t(entries)}, at::kBool);
      for (size_t i = 0; i < entries; ++i) t.mutable_data_ptr<bool>()[i] = bits[i];
      return t;
    };
    const at::Tensor index = select_top(at::tensor(scores, at::kFloat).view({1, -1}), count,
                                        {.forced = mask(forced), .banned = mask(banned)});
    ASSERT_EQ(index.size(1), std::min<int64_t>(count, int64_t(entries)));
    std::vector<int> got;
    for (int64_t i = 0; i < index.size(1); ++i)
      if (index[0][i].item<int>() >= 0) got.push_back(index[0][i].item<int>());
    EXPECT_EQ(got, top_by_sorting(scores, forced, banned, count)) << "trial " << trial;
  }
}

TEST(Select, the_best_entries_of_many_rows_are_each_rows_own) {
  const at::Tensor scores = random_tensor({3, 5, 200}, 4, at::kBFloat16);  // bf16: many ties
  const at::Tensor index = select_top(scores, 17);
  for (int64_t row = 0; row < 15; ++row)
    EXPECT_TRUE(index.view({15, 17})[row].equal(select_top(scores.view({15, 200})[row], 17)));
  EXPECT_EQ(select_top(scores, 0).sizes(), at::IntArrayRef({3, 5, 0}));
  EXPECT_EQ(select_top(scores.narrow(2, 0, 0), 4).sizes(), at::IntArrayRef({3, 5, 0}));
  EXPECT_THROW(select_top(scores, -1), Error);
  EXPECT_THROW(select_top(scores, 1, {.forced = at::ones({200}, at::kBool), .banned = {}}), Error);
  EXPECT_THROW(select_top(scores, 1, {.forced = at::ones({7}, at::kBool), .banned = {}}), Error);
}

TEST(Select, rows_may_take_counts_of_their_own) {
  const at::Tensor scores = random_tensor({2, 3, 50}, 5, at::kBFloat16);
  const at::Tensor counts = at::tensor({4, 0, 17, 1, 60, 9}, at::kLong).view({2, 3});
  const at::Tensor index = select_top(scores, counts);
  ASSERT_EQ(index.sizes(), at::IntArrayRef({2, 3, 50}));
  for (int64_t row = 0; row < 6; ++row) {
    const int64_t count = std::min<int64_t>(counts.view({6})[row].item<int64_t>(), 50);
    const at::Tensor own = index.view({6, 50})[row];
    EXPECT_TRUE(own.narrow(0, 0, count).equal(select_top(scores.view({6, 50})[row], count)));
    EXPECT_TRUE(own.narrow(0, count, 50 - count).eq(-1).all().item<bool>());
  }
  EXPECT_TRUE(select_top(scores, at::tensor({2, 5}, at::kLong).view({2, 1}))[1][2].equal(select_top(scores[1][2], 5)));
  EXPECT_THROW(select_top(scores, at::tensor({2, 5}, at::kLong)), Error) << "no axis of 2 at the end";
  EXPECT_THROW(select_top(scores, counts.to(at::kInt)), Error);
  const at::Tensor forced = at::zeros({2, 3, 50}, at::kBool);
  forced[0][1][7] = true;  // of a row that may take none
  EXPECT_THROW(select_top(scores, counts, {.forced = forced, .banned = {}}), Error);
}

TEST(Select, tokens_of_sequences_have_candidates_of_their_own) {
  const std::vector<int64_t> cuts = {0, 4, 8, 12};
  const at::Tensor scores = random_tensor({2, 3, 2, 3}, 6);
  const std::vector<Candidates> all = {{0, 6, 1, 1}, {0, 12, 1, 2}, {3, 6, 0, 1}, {3, 12, 2, 0}};
  const at::Tensor index = select_tokens(scores, cuts, all, 5);
  for (int64_t b = 0; b < 2; ++b) {
    const at::Tensor own = select_tokens(scores.narrow(0, b, 1), cuts, std::span(all).subspan(size_t(2 * b), 2), 5);
    EXPECT_TRUE(index.narrow(0, b, 1).narrow(3, 0, own.size(3)).equal(own));
  }
}

// Entries by (forced, score, index) as long as the mass is wanted, summed in double.
std::vector<int> mass_by_sorting(const std::vector<float>& scores, const std::vector<bool>& forced,
                                 const std::vector<bool>& banned, double share, bool crossing) {
  const auto mass = [&](int i) { return std::isnan(scores[size_t(i)]) ? 0.0 : double(scores[size_t(i)]); };
  std::vector<int> order;
  double total = 0, held = 0;
  for (int i = 0; i < int(scores.size()); ++i)
    if (!banned[size_t(i)]) order.push_back(i), total += mass(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const auto x = size_t(a), y = size_t(b);
    if (forced[x] != forced[y]) return bool(forced[x]);
    if (std::isnan(scores[x]) || std::isnan(scores[y])) return !std::isnan(scores[x]) && std::isnan(scores[y]);
    return scores[x] > scores[y];
  });
  std::vector<int> taken;
  for (const int i : order) {
    const bool fits = share == 1 || (crossing ? held < share * total : held + mass(i) <= share * total);
    if (!forced[size_t(i)] && !fits) break;
    taken.push_back(i), held += mass(i);
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

TEST(Select, a_share_of_the_mass_equals_sorting_all_of_it) {
  Random random(11);
  for (int trial = 0; trial < 400; ++trial) {
    const size_t entries = 1 + random.below(40);
    std::vector<float> scores;  // eighths: sums are exact in any order
    std::vector<bool> forced, banned;
    for (size_t i = 0; i < entries; ++i) {
      scores.push_back(random.below(9) == 0 ? NAN : float(random.below(17)) / 8);
      forced.push_back(random.below(12) == 0), banned.push_back(random.below(6) == 0);
    }
    const auto mask = [&](const std::vector<bool>& bits) {
      const at::Tensor t = at::zeros({int64_t(entries)}, at::kBool);
      for (size_t i = 0; i < entries; ++i) t.mutable_data_ptr<bool>()[i] = bits[i];
      return t;
    };
    for (const double share : {0.0, 0.25, 0.5, 0.875, 1.0})
      for (const bool crossing : {true, false}) {
        const at::Tensor index = select_mass(at::tensor(scores, at::kFloat).view({1, -1}), share,
                                             {.forced = mask(forced), .banned = mask(banned), .crossing = crossing});
        std::vector<int> got;
        for (int64_t i = 0; i < index.size(1); ++i) got.push_back(index[0][i].item<int>());
        EXPECT_EQ(got, mass_by_sorting(scores, forced, banned, share, crossing)) << "trial " << trial << ", " << share;
      }
  }
}

TEST(Select, the_mass_of_many_rows_is_each_rows_own_and_of_its_own_share) {
  const at::Tensor scores = random_tensor({3, 5, 200}, 4, at::kBFloat16).abs();
  const at::Tensor share = at::tensor({0.2, 0.0, 0.9, 0.5, 1.0}, at::kDouble).view({5, 1});
  const at::Tensor index = select_mass(scores, share);
  ASSERT_EQ(index.size(2), 200);  // of share 1
  for (int64_t row = 0; row < 15; ++row) {
    const at::Tensor own = select_mass(scores.view({15, 200})[row], share[row % 5].item<double>());
    const at::Tensor got = index.view({15, 200})[row];
    EXPECT_TRUE(got.narrow(0, 0, own.size(0)).equal(own));
    EXPECT_TRUE(got.narrow(0, own.size(0), 200 - own.size(0)).eq(-1).all().item<bool>());
  }
  EXPECT_EQ(select_mass(scores.narrow(2, 0, 0), 0.5).sizes(), at::IntArrayRef({3, 5, 0}));
  EXPECT_THROW(select_mass(scores, 1.5), Error);
  EXPECT_THROW(select_mass(scores, NAN), Error);
  EXPECT_THROW(select_mass(scores.neg(), 0.5), Error);
  EXPECT_THROW(select_mass(scores, at::ones({7, 1})), Error);
  EXPECT_THROW(select_mass(scores, at::ones({200})), Error);
  EXPECT_THROW(select_mass(scores, 0.5, {.forced = at::ones({7}, at::kBool), .banned = {}}), Error);
}

TEST(Select, refuses_forced_keys_over_budget) {
  const Candidates c{0, 20, 5, 6};
  const std::vector<int64_t> cuts = {0, 20};
  EXPECT_THROW(select_tokens(at::tensor({1.0f}).view({1, 1, 1, 1}), cuts, {&c, 1}, 10), Error);
  EXPECT_NO_THROW(select_tokens(at::tensor({1.0f}).view({1, 1, 1, 1}), cuts, {&c, 1}, 11));
}

}  // namespace
}  // namespace foveate::ops
