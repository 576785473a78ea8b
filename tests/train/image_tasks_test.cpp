// Losses and scores of image models, and that the smallest ones learn from them.
#include "foveate/train/image_tasks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/messages.h"
#include "tests/support/real_images.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::random_tensor;
using test::same;

// Images of one number, which says their class.
ImageSet levels(int64_t count) {
  const at::Tensor labels = at::arange(count, at::kLong).remainder(4);
  const at::Tensor images = (labels * 60).to(at::kByte).view({count, 1, 1, 1}).expand({count, 1, 3, 5}).contiguous();
  return {images, labels, 4};
}

TEST(Classification, loss_is_the_cross_entropy_of_soft_targets) {
  const ImageSet set = levels(20);
  const Augment augment{.mixup = 0.8, .cutmix = 0};
  const at::Tensor weight = random_tensor({4, 15}, 1);
  const ImageModel model = [&](const at::Tensor& x) { return at::linear(x.flatten(1), weight); };
  const StepLoss loss = classification_loss(model, set, augment, 6, 2, 9);
  const ClassBatch batch = draw_batch(set, augment, 6, 9, 2);
  const at::Tensor logits = model(batch.images).to(at::kDouble), targets = batch.targets.to(at::kDouble);
  double want = 0, right = 0;
  for (int64_t i = 0; i < 6; ++i) {
    double sum = 0;
    int64_t best = 0;
    const auto logit = [&](int64_t c) { return logits[i][c].item<double>(); };
    for (int64_t c = 0; c < 4; ++c) sum += std::exp(logit(c)), best = logit(c) > logit(best) ? c : best;
    for (int64_t c = 0; c < 4; ++c) want -= targets[i][c].item<double>() * (logit(c) - std::log(sum)) / 6;
    right += best == batch.labels[i].item<int64_t>();
  }
  EXPECT_NEAR(loss.loss.item<double>(), want, 1e-5);
  EXPECT_EQ(loss.notes.at("accuracy"), right / 6);
  EXPECT_EQ(loss.tokens, 6);
}

TEST(Classification, top1_counts_every_image_once) {
  const ImageSet set = levels(10);
  const ImageModel perfect = [](const at::Tensor& x) {
    return at::one_hot(((x.select(2, 0).select(2, 0).select(1, 0) + 1) * 127.5 / 60).round().to(at::kLong), 4)
        .to(at::kFloat);
  };
  const ImageModel first = [](const at::Tensor& x) { return at::zeros({x.size(0), 4}, at::kFloat); };
  for (const int64_t batch : {1, 3, 10, 100}) {
    EXPECT_EQ(top1(perfect, set, batch), 1);
    EXPECT_EQ(top1(first, set, batch), 0.3);
  }
  EXPECT_EQ(message_of([&] { top1([](const at::Tensor& x) { return x; }, set, 4); }),
            "image model: output must be [4, 4], got [4, 1, 3, 5]");
  EXPECT_EQ(message_of([&] { top1(first, set, 0); }), "top1: images and batch must be >= 1, got 10 and 0");
}

TEST(Classification, a_linear_map_learns_fashion_mnist) {
  if (!test::real_image("fashion-mnist")) GTEST_SKIP() << test::no_image("fashion-mnist");
  const ImageSet set = read_mnist("fashion-mnist", ImagePart::train),
                 held_out = read_mnist("fashion-mnist", ImagePart::test);
  const at::Tensor weight = at::zeros({10, 784}, at::kFloat).requires_grad_();
  const ImageModel model = [&](const at::Tensor& x) { return at::linear(x.flatten(1), weight); };
  const TrainOptions options{.steps = 200, .warmup = 10, .lr = 0.003};
  Trainer trainer({{"weight", {.value = weight}}},
                  [&](int64_t step, uint64_t seed) {
                    return classification_loss(model, set, {.pad = 0, .jitter = 0, .erase = 0, .mixup = 0, .cutmix = 0},
                                               128, step, seed);
                  },
                  options, {});
  EXPECT_NEAR(top1(model, held_out, 1000), 0.1, 1e-9);
  run(trainer, {});
  EXPECT_GT(top1(model, held_out, 1000), 0.78);
}

std::vector<PhotoPair> photos() {
  return {make_pair("a", random_tensor({1, 3, 48, 60}, 1).mul_(0.1).add_(0.5), 2),
          make_pair("b", random_tensor({1, 3, 50, 40}, 2).mul_(0.1).add_(0.5), 2)};
}

TEST(Enlarging, loss_is_the_mean_difference_from_the_patches) {
  const auto set = photos();
  const PatchOptions options{.batch = 3, .size = 8};
  const StepLoss loss = enlarging_loss(bicubic(2), set, options, 4, 9);
  const PatchBatch batch = draw_patches(set, options, 9, 4);
  EXPECT_NEAR(loss.loss.item<double>(), (bicubic(2)(batch.low) - batch.high).abs().mean().item<double>(), 1e-7);
  EXPECT_EQ(loss.tokens, 3 * 8 * 8);
  EXPECT_EQ(message_of([&] { enlarging_loss(bicubic(1), set, options, 4, 9); }),
            "image model: output must be [3, 3, 16, 16], got [3, 3, 8, 8]");
}

TEST(Enlarging, score_is_the_mean_over_photos) {
  const auto set = photos();
  const EnlargingScore score = score_enlarging(bicubic(2), set);
  ASSERT_EQ(score.photos.size(), 2u);
  EXPECT_NEAR(score.mean.psnr, (score.photos[0].psnr + score.photos[1].psnr) / 2, 1e-9);
  for (size_t i = 0; i < 2; ++i) {
    const at::Tensor high = set[i].high.to(at::kFloat).div(255).unsqueeze(0), low = set[i].low.to(at::kFloat).div(255);
    const eval::ImageQuality want = eval::luma_quality(bicubic(2)(low.unsqueeze(0)), high, 2);
    EXPECT_NEAR(score.photos[i].psnr, want.psnr, 1e-9);
    EXPECT_NEAR(score.photos[i].ssim, want.ssim, 1e-9);
  }
  EXPECT_EQ(message_of([] { score_enlarging(bicubic(2), {}); }), "score_enlarging: photos are needed, got none");
}

// One convolution that is to become better than bicubic: so it does on photographs, within a few hundred steps.
TEST(Enlarging, a_convolution_learns_to_beat_bicubic) {
  if (!test::real_image("test-photos")) GTEST_SKIP() << test::no_image("test-photos");
  const auto set = read_photos("test-photos", 2);
  const at::Tensor weight = random_tensor({12, 3, 5, 5}, 1).mul_(0.001).requires_grad_();
  const ImageModel model = [&](const at::Tensor& x) {
    return bicubic(2)(x) + at::pixel_shuffle(at::conv2d(x, weight, {}, {1, 1}, {2, 2}), 2);
  };
  const TrainOptions options{.steps = 300, .warmup = 10, .lr = 0.005};
  Trainer trainer(
      {{"weight", {.value = weight}}},
      [&](int64_t step, uint64_t seed) { return enlarging_loss(model, set, {.batch = 8, .size = 32}, step, seed); },
      options, {});
  run(trainer, {});
  EXPECT_GT(score_enlarging(model, set).mean.psnr, score_enlarging(bicubic(2), set).mean.psnr + 0.1);
}

}  // namespace
}  // namespace foveate::train
