// The classifier's shape, and that it learns and goes on from checkpoints.
#include "foveate/train/image_classifier.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::same;

// Bright stripes, rows or columns.
ImageSet stripes() {
  ImageSet set{at::zeros({64, 1, 16, 16}, at::kByte), at::arange(64, at::kLong).remainder(2), 2};
  for (int64_t i = 0; i < 64; ++i) set.images[i][0].select(i % 2, (i / 2) % 16).fill_(255);
  return set;
}

ClassifierModel small() {
  ClassifierModel m;
  m.batch = 16, m.embed = 16, m.kernel = 3, m.first_layers = 1, m.second_layers = 2;
  return m;
}

TEST(ImageClassifier, learns_what_a_window_shows) {
  const ImageSet set = stripes();
  const ImageClassifier classifier(small(), set, 1);
  const Augment none{.pad = 0, .flip = 0, .jitter = 0, .erase = 0, .mixup = 0, .cutmix = 0, .smoothing = 0};
  Trainer trainer(
      classifier.parameters(), [&](int64_t step, uint64_t seed) { return classifier.loss(set, none, step, seed); },
      {.steps = 120, .warmup = 5, .lr = 3e-3}, classifier.subject());
  while (!trainer.is_done()) trainer.step();
  EXPECT_GT(classifier.top1(set), 0.95);  // half by chance
}

TEST(ImageClassifier, a_resumed_run_gives_the_same_bits) {
  const ImageSet set = stripes();
  const std::string file = testing::TempDir() + "image_classifier.ckpt";
  const auto weights = [&](bool stops) {
    auto classifier = std::make_unique<ImageClassifier>(small(), set, 1);
    const auto make = [&](const ImageClassifier& c) {
      return Trainer(
          c.parameters(), [&](int64_t step, uint64_t seed) { return c.loss(set, {}, step, seed); },
          {.steps = 6, .warmup = 2}, c.subject());
    };
    Trainer trainer = make(*classifier);
    for (int i = 0; i < (stops ? 3 : 6); ++i) trainer.step();
    if (!stops) return classifier->net()->named_parameters()["head.weight"].detach().clone();
    trainer.save(file);
    const ImageClassifier later(small(), set, 9);
    Trainer again = make(later);
    again.load(file);
    while (!again.is_done()) again.step();
    return later.net()->named_parameters()["head.weight"].detach().clone();
  };
  EXPECT_TRUE(same(weights(true), weights(false), {0, 0}));
}

TEST(ImageClassifier, dilations_are_the_largest_that_fit) {
  ClassifierModel m;
  m.kernel = 3, m.first_layers = 3, m.second_layers = 2;
  EXPECT_EQ(m.config(28, 28, 10).dilations, (std::vector<std::vector<int64_t>>{{1, 4, 1}, {1, 2}}));
  m.dilated = false;
  EXPECT_EQ(m.config(28, 28, 10).dilations, (std::vector<std::vector<int64_t>>{{1, 1, 1}, {1, 1}}));
}

TEST(ImageClassifier, says_what_does_not_fit) {
  const auto refusal = [](int64_t embed, int64_t kernel) {
    ClassifierModel m;
    m.embed = embed, m.kernel = kernel;
    return message_of([&] { m.config(28, 28, 10); });
  };
  EXPECT_EQ(refusal(40, 5), "classifier: embed must be a multiple of 16, got 40");
  EXPECT_EQ(refusal(32, 9), "classifier: kernel must be <= the 7 tokens of a side, got 9");
  EXPECT_EQ(refusal(32, 2), "classifier: kernel must be 3 .. 255, got 2");
}

}  // namespace
}  // namespace foveate::train
