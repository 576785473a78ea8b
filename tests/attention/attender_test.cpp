// The Local Attender: its sets of offsets and what follows from its definition.
#include "foveate/attention/local/attender.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace foveate::test;
using at::Tensor;

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

Pairs pairs_of(int64_t count) {
  Pairs pairs;
  for (const Offset& o : attender_offsets(count)) pairs.emplace_back(o.row, o.column);
  return pairs;
}

TEST(LocalAttender, offsets_stand_in_the_published_order) {
  EXPECT_EQ(pairs_of(5), (Pairs{{-1, 0}, {0, -1}, {0, 0}, {0, 1}, {1, 0}}));
  EXPECT_EQ(pairs_of(9), (Pairs{{-1, -1}, {-1, 0}, {-1, 1}, {0, -1}, {0, 0}, {0, 1}, {1, -1}, {1, 0}, {1, 1}}));
  EXPECT_EQ(pairs_of(13), (Pairs{{-2, 0},
                                 {-1, -1},
                                 {-1, 0},
                                 {-1, 1},
                                 {0, -2},
                                 {0, -1},
                                 {0, 0},
                                 {0, 1},
                                 {0, 2},
                                 {1, -1},
                                 {1, 0},
                                 {1, 1},
                                 {2, 0}}));
  EXPECT_EQ(pairs_of(17), (Pairs{{-2, -2},
                                 {-2, 0},
                                 {-2, 2},
                                 {-1, -1},
                                 {-1, 0},
                                 {-1, 1},
                                 {0, -2},
                                 {0, -1},
                                 {0, 0},
                                 {0, 1},
                                 {0, 2},
                                 {1, -1},
                                 {1, 0},
                                 {1, 1},
                                 {2, -2},
                                 {2, 0},
                                 {2, 2}}));
  EXPECT_EQ(pairs_of(25).size(), 25u);
  EXPECT_EQ(message_of([] { attender_offsets(7); }),
            "local attender: the number of offsets must be 5, 9, 13, 17 or 25, got 7");
}

TEST(LocalAttender, golden_numbers_of_uniform_weights) {
  const Tensor value = at::arange(1, 10, at::kFloat).view({1, 1, 3, 3});
  const Tensor out = local_attender(at::zeros({1, 17, 3, 3}), value, attender_offsets(17)).flatten();
  const double want[9] = {3.117647, 3.588235, 4.058824, 4.529412, 5, 5.470588, 5.941176, 6.411765, 6.882353};
  for (int64_t n = 0; n < 9; ++n) EXPECT_NEAR(out[n].item<double>(), want[n], 1e-6);
}

TEST(LocalAttender, results_lie_between_the_values_of_the_neighbourhood) {
  const Tensor value = random_tensor({1, 3, 5, 6}, 1), logits = 4 * random_tensor({1, 9, 10, 12}, 2);
  const Tensor out = local_attender(logits, value, attender_offsets(9));
  for (int64_t p = 0; p < 10; ++p)
    for (int64_t q = 0; q < 12; ++q) {
      const int64_t i = p / 2, j = q / 2;
      const Tensor near =
          value.slice(2, std::max<int64_t>(i - 1, 0), i + 2).slice(3, std::max<int64_t>(j - 1, 0), j + 2);
      const Tensor one = out.select(2, p).select(2, q);
      EXPECT_TRUE(one.le(near.amax({2, 3}) + 1e-6).all().item<bool>());
      EXPECT_TRUE(one.ge(near.amin({2, 3}) - 1e-6).all().item<bool>());
    }
}

TEST(LocalAttender, the_middle_alone_is_nearest_upsampling) {
  const Tensor value = random_tensor({1, 3, 3, 4}, 1), logits = at::zeros({1, 5, 9, 12});
  logits.select(1, 2).fill_(200);
  const Tensor nearest = value.repeat_interleave(3, 2).repeat_interleave(3, 3);
  EXPECT_TRUE(local_attender(logits, value, attender_offsets(5)).equal(nearest));
}

TEST(LocalAttender, the_largest_weight_alone_takes_one_value) {
  const Tensor value = random_tensor({1, 3, 3, 4}, 1), logits = random_tensor({1, 9, 6, 8}, 2);
  const Tensor got = local_attender(logits, value, attender_offsets(9), AttenderWeights::largest);
  EXPECT_TRUE(same(got, local_attender(1e7 * logits, value, attender_offsets(9)), {1e-6, 1e-6}));
}

// The same by patches of the padded map: what a user would write in torch.
TEST(LocalAttender, equals_weighted_patches) {
  for (const int64_t count : {9, 25}) {
    const int64_t side = count == 9 ? 3 : 5, reach = side / 2;
    const Tensor value = random_tensor({2, 3, 5, 6}, 1), logits = random_tensor({2, count, 10, 12}, 2);
    const auto clamped = [&](int64_t size) { return at::arange(-reach, size + reach, at::kLong).clamp_(0, size - 1); };
    const Tensor padded = value.index_select(2, clamped(5)).index_select(3, clamped(6));
    const Tensor patches = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4);           // [B, C, H, W, n]
    const Tensor weights = at::softmax(logits, 1).unflatten(3, {6, 2}).unflatten(2, {5, 2});  // [B, n, H, 2, W, 2]
    const Tensor want = (patches.permute({0, 1, 4, 2, 3}).unsqueeze(4).unsqueeze(6) * weights.unsqueeze(1)).sum(2);
    EXPECT_TRUE(
        same(local_attender(logits, value, attender_offsets(count)), want.flatten(4, 5).flatten(2, 3), {1e-5, 1e-5}));
  }
}

}  // namespace
}  // namespace foveate::attention
