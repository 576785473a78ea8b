// UPLiFT learns to enlarge features of a backbone that is a fixed convolution, and its runs go on from checkpoints.
#include "foveate/train/upsampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/models/vision/state_dict.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using at::Tensor;
using test::message_of;
using test::random_tensor;
using test::same;

// Images of 8 x 8 whose halves, at an edge that each has elsewhere, have grey levels of their own.
ImageSet edges(int64_t count, uint64_t seed = 1) {
  const Tensor images = at::empty({count, 1, 8, 8}, at::kByte);
  Random random(seed);
  for (int64_t i = 0; i < count; ++i) {
    const bool across = random.below(2) == 1;
    const auto edge = int64_t(1 + random.below(7));
    images[i].fill_(int64_t(random.below(256)));
    images[i][0].slice(across ? 1 : 0, 0, edge).fill_(int64_t(random.below(256)));
  }
  return {images, at::zeros({count}, at::kLong), 1};
}

// Cells of 2 x 2 pixels, 6 channels.
Backbone convolution(const std::string& identity = "convolution") {
  const Tensor weight = random_tensor({6, 3, 2, 2}, 5);
  return {.channels = 6, .patch = 2, .identity = identity, .features = [weight](const Tensor& x) {
            return at::tanh(at::conv2d(x, weight, {}, 2) + 0.3);
          }};
}

UpsamplerModel small() {
  UpsamplerModel m;
  m.batch = 4, m.image = 16, m.tiles = 2, m.width = 16;
  return m;
}

Trainer trainer_of(const Upsampler& upsampler, const ImageSet& set, int64_t steps) {
  return Trainer(
      upsampler.parameters(), [&](int64_t step, uint64_t seed) { return upsampler.loss(set, step, seed); },
      {.steps = steps, .warmup = 5, .lr = 4e-3}, upsampler.subject(), upsampler.buffers());
}

TEST(Upsampler, comes_nearer_to_the_true_features_than_bilinear_means) {
  const Upsampler upsampler(small(), convolution(), 1);
  const ImageSet set = edges(256), other = edges(64, /*seed=*/2);
  Trainer trainer = trainer_of(upsampler, set, 80);
  while (!trainer.is_done()) trainer.step();
  const std::vector<UpsamplingScore> scores = upsampler.score(other, 16);
  ASSERT_EQ(scores.size(), 2u);
  for (const UpsamplingScore& score : scores) {
    EXPECT_GT(score.uplift.cosine, score.bilinear.cosine + 0.01);
    EXPECT_LT(score.uplift.square, score.bilinear.square);
    EXPECT_LT(score.uplift.cosine, 1);
  }
}

TEST(Upsampler, a_resumed_run_gives_the_same_bits_batch_norms_included) {
  const ImageSet set = edges(64);
  const std::string file = testing::TempDir() + "upsampler.ckpt";
  const Upsampler whole(small(), convolution(), 1), first(small(), convolution(), 1), later(small(), convolution(), 9);
  Trainer all = trainer_of(whole, set, 6), some = trainer_of(first, set, 6), rest = trainer_of(later, set, 6);
  while (!all.is_done()) all.step();
  for (int i = 0; i < 3; ++i) some.step();
  some.save(file);
  rest.load(file);
  while (!rest.is_done()) rest.step();
  for (const auto& [name, parameter] : whole.parameters())
    EXPECT_TRUE(same(later.parameters().at(name).value, parameter.value, {0, 0})) << name;
  const TensorMap buffers = whole.buffers();
  EXPECT_EQ(buffers.size(), 3u * (5 + 2 * 2));  // means, variances and counts of every batch norm
  for (const auto& [name, buffer] : buffers) EXPECT_TRUE(same(later.buffers().at(name), buffer, {0, 0})) << name;
  const Upsampler other(small(), convolution("another"), 1);
  EXPECT_EQ(
      message_of([&] { trainer_of(other, set, 6).load(file); }),
      file +
          ": backbone must be 'another' as in this run, got 'convolution'; resume with the options it was written "
          "with");
}

TEST(Upsampler, of_images_of_one_grey_level_all_means_are_the_true_features) {
  ImageSet set = edges(8);
  set.images.copy_(set.images.narrow(2, 0, 1).narrow(3, 0, 1).expand({8, 1, 8, 8}));
  UpsamplerModel model = small();
  model.tiles = 1;
  const Upsampler upsampler(model, convolution(), 1);
  for (const UpsamplingScore& score : upsampler.score(set, 8)) {
    EXPECT_NEAR(score.nearest.cosine, 1, 1e-6);
    EXPECT_NEAR(score.bilinear.cosine, 1, 1e-6);
    EXPECT_NEAR(score.uplift.cosine, 1, 1e-6);  // a mean of equal features
    EXPECT_NEAR(score.nearest.square, 0, 1e-10);
  }
}

TEST(Upsampler, loss_adds_the_steps_of_every_depth) {
  const ImageSet set = edges(32);
  UpsamplerModel model = small();
  const auto loss_of = [&](int64_t doublings, double cosine) {
    model.doublings = doublings, model.cosine = cosine;
    return Upsampler(model, convolution(), 1).loss(set, 0, 3).loss.item<double>();
  };
  const double both = loss_of(2, 1), squares = loss_of(2, 0), half = loss_of(2, 0.5);
  EXPECT_GT(both, squares);
  EXPECT_NEAR(half, (both + squares) / 2, 1e-6);
  EXPECT_GT(squares, loss_of(1, 0));  // two depths and three terms instead of one
  EXPECT_EQ(Upsampler(model, convolution(), 1).loss(set, 0, 3).tokens, 4);
}

TEST(Upsampler, loss_is_of_the_difference_and_the_depths_that_are_chosen) {
  using Difference = UpsamplerModel::Difference;
  const ImageSet set = edges(32);
  UpsamplerModel model = small();
  const auto loss_of = [&](int64_t doublings, Difference difference, double cosine, bool deepest) {
    model.doublings = doublings, model.difference = difference, model.cosine = cosine, model.deepest = deepest;
    return Upsampler(model, convolution(), 1).loss(set, 0, 3).loss.item<double>();
  };
  const double squares = loss_of(2, Difference::squares, 0, false), alone = loss_of(2, Difference::none, 1, false);
  EXPECT_NEAR(loss_of(2, Difference::squares, 1, false), squares + alone, 1e-5);
  const double magnitudes = loss_of(2, Difference::magnitudes, 0, false);
  EXPECT_GT(std::abs(magnitudes - squares), 1e-3);
  // One term of each, whose mean of magnitudes is at most the root of its mean of squares.
  EXPECT_LE(loss_of(1, Difference::magnitudes, 0, true), std::sqrt(loss_of(1, Difference::squares, 0, true)));
  const double deepest = loss_of(2, Difference::squares, 0, true);
  EXPECT_GT(deepest, 0);
  EXPECT_LT(deepest, squares);  // without the depth of one
  EXPECT_EQ(loss_of(1, Difference::squares, 0, true), loss_of(1, Difference::squares, 0, false));
  EXPECT_EQ(message_of([&] { loss_of(1, Difference::none, 0, false); }),
            "upsampler: cosine must be > 0 where difference is none, got 0");
}

TEST(Upsampler, mosaics_lie_row_by_row_in_three_equal_channels) {
  ImageSet set = edges(8);
  for (int64_t i = 0; i < 8; ++i) set.images[i].fill_(30 * i);
  const Tensor mosaics = make_mosaics(set.images, 2, 6);
  ASSERT_EQ(mosaics.sizes(), (at::IntArrayRef{2, 3, 6, 6}));
  for (int64_t m = 0; m < 2; ++m)
    for (int64_t y = 0; y < 6; ++y)
      for (int64_t x = 0; x < 6; ++x)
        for (int64_t c = 0; c < 3; ++c) {
          const double level = double(30 * (4 * m + 2 * (y / 3) + x / 3));
          EXPECT_NEAR(mosaics[m][c][y][x].item<double>(), level / 127.5 - 1, 1e-5);
        }
}

TEST(Upsampler, saved_weights_load_for_their_backbone_alone) {
  const std::string file = testing::TempDir() + "uplift.safetensors";
  const Upsampler upsampler(small(), convolution(), 1);
  upsampler.save(file);
  models::Uplift loaded = load_upsampler(file, convolution());
  const Tensor image = random_tensor({1, 3, 6, 10}, 2), features = random_tensor({1, 6, 3, 5}, 3);
  models::Uplift net = upsampler.net();
  net->eval();
  EXPECT_TRUE(same(loaded->forward(image, features), net->forward(image, features), {0, 0}));
  EXPECT_EQ(message_of([&] { load_upsampler(file, convolution("another")); }),
            file + ": the backbone must be the one it was trained with, convolution, got another");
  models::save_state_dict(*net, file);
  EXPECT_EQ(message_of([&] { load_upsampler(file, convolution()); }),
            file + ": must be weights that foveate train upsampler wrote, got none that say their model");
}

TEST(Upsampler, says_what_does_not_fit) {
  const auto refusal = [](auto&& change) {
    UpsamplerModel m = small();
    change(m);
    return message_of([&] { Upsampler(m, convolution(), 1); });
  };
  EXPECT_EQ(refusal([](UpsamplerModel& m) { m.width = 20; }), "upsampler: width must be a multiple of 8, got 20");
  EXPECT_EQ(refusal([](UpsamplerModel& m) { m.image = 20; }),
            "upsampler: image must be a multiple of tiles and of 8, the pixels of a cell at the smallest scale, got 20 "
            "and 2 tiles");
  EXPECT_EQ(refusal([](UpsamplerModel& m) { m.batch = 0; }), "upsampler: batch must be 1 .. 65536, got 0");
  EXPECT_NE(refusal([](UpsamplerModel& m) { m.offsets = 7; }), "no error");
  EXPECT_EQ(message_of([&] { Upsampler(small(), convolution(), 1).score(edges(3), 5); }),
            "upsampler: the images to score with must be a mosaic's 4 or more, got 3");
}

}  // namespace
}  // namespace foveate::train
