// Sorted-group attention and its centres against plain loops, the published golden numbers and its invariants.
#include "foveate/attention/local/sorted_groups.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace foveate::test;
using at::Tensor;

Tensor numbers(const std::vector<double>& values, at::IntArrayRef shape) {
  return at::tensor(values, at::kDouble).view(shape);
}

// ---- centres ----

TEST(Centres, golden_numbers_of_one_step) {
  const Tensor x = numbers({2, 0, 1, 1, 0, 3, -1, .1, .5, -.2}, {1, 5, 2}), c = numbers({1, 0, 0, 1, 0, -1}, {3, 2});
  const auto nearest = nearest_centres(x, c);
  EXPECT_TRUE(nearest.equal(at::tensor({0, 0, 1, 1, 0}, at::kLong).view({1, 5})));  // a tie goes to the lower
  const Tensor want = numbers({.991985, .126357, -.671005, .741453, 0, -1}, {3, 2});
  EXPECT_TRUE(same(refine_centres(x, c), want, {1e-6, 0}));
}

TEST(Centres, the_first_are_means_of_parts_over_the_batch) {
  for (const auto& [tokens, count] : std::vector<std::pair<int64_t, int64_t>>{{10, 4}, {12, 4}, {4, 4}, {5, 1}}) {
    const Tensor x = random_tensor({2, tokens, 3}, 1, at::kDouble);
    const int64_t all = tokens + count - tokens % count, part = all / count;
    const Tensor want = at::zeros({count, 3}, at::kDouble);
    for (int64_t i = 0; i < all; ++i) {  // behind the end the last tokens come again, backwards
      const int64_t token = i < tokens ? i : 2 * tokens - 1 - i;
      for (int64_t b = 0; b < 2; ++b) want[i / part] += x[b][token] / double(2 * part);
    }
    EXPECT_TRUE(same(first_centres(x, count), want, {1e-12, 1e-12}));
  }
  EXPECT_EQ(message_of([] {
              first_centres(at::zeros({1, 3, 2}), 4);
            }),
            "centres: there must be as many tokens as centres (4), got 3");
}

TEST(Centres, only_the_last_of_several_steps_has_gradients) {
  const Tensor x = random_tensor({2, 9, 4}, 1, at::kDouble).requires_grad_();
  const Tensor c = random_tensor({3, 4}, 2, at::kDouble);
  Tensor before = c;
  for (int i = 0; i < 4; ++i) before = refine_centres(x.detach(), before);
  const Tensor weights = random_tensor({3, 4}, 3, at::kDouble);
  (refine_centres(x, c, 5) * weights).sum().backward();
  const Tensor got = x.grad().clone();
  x.mutable_grad().zero_();
  (refine_centres(x, before) * weights).sum().backward();
  EXPECT_TRUE(same(got, x.grad(), {1e-12, 1e-12}));
  EXPECT_GT(got.abs().max().item<double>(), 0);
}

TEST(Centres, tokens_of_one_centre_keep_their_order) {
  const Tensor nearest = at::tensor({2, 0, 2, 1, 0, 2, 0}, at::kLong).view({1, 7});
  EXPECT_TRUE(sort_by_centre(nearest).equal(at::tensor({1, 4, 6, 3, 0, 2, 5}, at::kLong).view({1, 7})));
}

// ---- attention ----

TEST(SortedGroups, golden_numbers_of_windows_with_mirrored_tails) {
  const auto run = [](int64_t tokens) {
    const Tensor x = (0.2 * at::arange(tokens, at::kDouble)).view({1, 1, tokens, 1});
    const Tensor order = at::arange(tokens, at::kLong).unsqueeze(0);
    return sorted_group_attention(x, x, x, order, {}, {.group = 4, .scale = 1.0}).flatten();
  };
  EXPECT_TRUE(same(run(6), numbers({.6, .623619, .646395, .668231, .689048, .708793}, {6}), {1e-6, 0}));
  EXPECT_TRUE(
      same(run(8), numbers({.7, .741927, .783423, .824077, 1.139713, 1.149442, 1.159042, 1.168490}, {8}), {1e-6, 0}));
}

struct Inputs {
  Tensor q, k, v, order;
  CentreRows centres;
};

Inputs make_inputs(int64_t tokens, at::ScalarType type = at::kDouble) {
  const Tensor order = random_tensor({2, tokens}, 6).argsort(int64_t{-1});
  return {random_tensor({2, 3, tokens, 4}, 1, type),
          random_tensor({2, 3, tokens, 4}, 2, type),
          random_tensor({2, 3, tokens, 5}, 3, type),
          order,
          {random_tensor({3, 7, 4}, 4, type), random_tensor({3, 7, 5}, 5, type)}};
}

// The keys of a group's window as numbers of the sorted sequence, by the words of the paper's code.
std::vector<int64_t> window_of(int64_t group, int64_t size, int64_t tokens, GroupWindow window) {
  const auto mirrored = [&](int64_t place) {
    if (place < 0) return -1 - place;
    return place < tokens ? place : 2 * tokens - 1 - place;
  };
  std::vector<int64_t> keys;
  const int64_t first = window == GroupWindow::both ? group - 1 : group;
  const int64_t end = window == GroupWindow::own ? group + 1 : group + 2;
  for (int64_t place = first * size; place < end * size; ++place) keys.push_back(mirrored(place));
  return keys;
}

Tensor loops(const Inputs& x, const SortedGroups& o, bool with_centres) {
  const int64_t tokens = x.q.size(2), size = std::min(o.group, tokens);
  const Tensor out = at::zeros({2, 3, tokens, 5}, at::kDouble);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t place = 0; place < tokens; ++place) {
        const auto token = [&](int64_t p) { return x.order[b][p].item<int64_t>(); };
        const Tensor q = x.q[b][h][token(place)];
        std::vector<Tensor> keys, values;
        for (const int64_t p : window_of(place / size, size, tokens, o.window)) {
          keys.push_back(x.k[b][h][token(p)]);
          values.push_back(x.v[b][h][token(p)]);
        }
        const auto softmax = [&](const std::vector<Tensor>& ks, const std::vector<Tensor>& vs) {
          double sum = 0;
          Tensor mean = at::zeros({5}, at::kDouble);
          for (size_t j = 0; j < ks.size(); ++j) {
            const double e = std::exp((q * ks[j]).sum().item<double>() / 2);
            sum += e;
            mean = mean + e * vs[j];
          }
          return mean / sum;
        };
        std::vector<Tensor> centre_keys, centre_values;
        for (int64_t m = 0; m < 7; ++m) {
          centre_keys.push_back(x.centres.k[h][m]);
          centre_values.push_back(x.centres.v[h][m]);
        }
        Tensor row;
        if (with_centres && o.merge == CentreMerge::joint) {
          keys.insert(keys.end(), centre_keys.begin(), centre_keys.end());
          values.insert(values.end(), centre_values.begin(), centre_values.end());
          row = softmax(keys, values);
        } else {
          row = softmax(keys, values);
          if (with_centres) row = row + softmax(centre_keys, centre_values);
        }
        out[b][h][token(place)] = row;
      }
  return out;
}

TEST(SortedGroups, equal_plain_loops) {
  for (const int64_t tokens : {3, 4, 6, 8, 11})
    for (const auto window : {GroupWindow::own, GroupWindow::next, GroupWindow::both})
      for (const auto merge : {CentreMerge::sum, CentreMerge::joint})
        for (const bool with_centres : {false, true}) {
          const SortedGroups o{.group = 4, .window = window, .merge = merge};
          const Inputs x = make_inputs(tokens);
          const auto centres = with_centres ? std::optional(x.centres) : std::nullopt;
          const Tensor want = loops(x, o, with_centres);
          const std::string at = fmt::format("{} {} {} {}", tokens, int(window), int(merge), with_centres);
          EXPECT_TRUE(same(sorted_group_attention(x.q, x.k, x.v, x.order, centres, o), want, {1e-12, 1e-12})) << at;
          const Inputs y = make_inputs(tokens, at::kFloat);
          const auto rows = with_centres ? std::optional(y.centres) : std::nullopt;
          EXPECT_TRUE(same(sorted_group_attention(y.q, y.k, y.v, y.order, rows, o), want, {3e-5, 3e-5})) << at;
        }
}

TEST(SortedGroups, one_group_is_dense_attention) {
  const Inputs x = make_inputs(9);
  const Tensor dense = ops::attend(x.q, x.k, x.v, Rule::full()).out;
  EXPECT_TRUE(same(sorted_group_attention(x.q, x.k, x.v, x.order, {}, {.group = 100}), dense, {1e-12, 1e-12}));
}

TEST(SortedGroups, gradients_equal_finite_differences) {
  Inputs x = make_inputs(11);
  const Tensor weights = random_tensor({2, 3, 11, 5}, 9, at::kDouble);
  const auto loss = [&] {
    return (sorted_group_attention(x.q, x.k, x.v, x.order, x.centres, {.group = 4}) * weights).sum();
  };
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.centres.k, &x.centres.v}) {
    const Tensor given = t->clone();
    *t = given.clone().requires_grad_();
    loss().backward();
    const Tensor gradient = t->grad();
    for (int64_t n : {int64_t{0}, given.numel() / 3, given.numel() / 2, given.numel() - 1}) {
      const auto moved = [&](double by) {
        *t = given.clone();
        t->flatten()[n] += by;
        return loss().item<double>();
      };
      EXPECT_NEAR(gradient.flatten()[n].item<double>(), (moved(1e-5) - moved(-1e-5)) / 2e-5, 1e-7);
    }
    *t = given;
  }
}

TEST(SortedGroups, refuses_what_does_not_fit) {
  const Inputs x = make_inputs(5);
  const auto message = [&](const SortedGroups& o) {
    return message_of([&] { sorted_group_attention(x.q, x.k, x.v, x.order, {}, o); });
  };
  EXPECT_EQ(message({.group = 4}), "sorted groups: sequences must have up to 4 or at least 6 tokens, got 5");
  EXPECT_EQ(message({.group = 0}), "sorted groups: group must be >= 1, got 0");
  EXPECT_EQ(message_of([&] { sorted_group_attention(x.q, x.k, x.v, x.order.narrow(1, 0, 4)); }),
            "sorted groups: order must be int64 [2, 5], got Long [2, 4]");
}

}  // namespace
}  // namespace foveate::attention
