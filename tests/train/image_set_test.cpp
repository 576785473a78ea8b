// Images with classes: every image once an epoch, and that what is changed at random is what the options say.
#include "foveate/train/image_set.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "foveate/train/augment.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/idx_writer.h"
#include "tests/support/messages.h"
#include "tests/support/real_images.h"

namespace foveate::train {
namespace {

using test::idx_file;
using test::message_of;
using test::same;

constexpr Augment kPlain{.pad = 0, .flip = 0, .jitter = 0, .erase = 0, .mixup = 0, .cutmix = 0, .smoothing = 0};

// Noise between a quarter and three quarters of the range, so that jitter clamps nothing; classes by number.
ImageSet noise(int64_t count, int64_t channels, int64_t height = 10, int64_t width = 12) {
  const at::Tensor images = at::empty({count, channels, height, width}, at::kByte);
  Random random(1);
  for (int64_t i = 0; i < images.numel(); ++i) images.mutable_data_ptr<uint8_t>()[i] = uint8_t(64 + random.below(128));
  return {images, at::arange(count, at::kLong).remainder(5), 5};
}

// The image of each row of the batch of a step.
std::vector<int64_t> indices(const ImageSet& set, int64_t batch, int64_t step) {
  return draw_indices(set.size(), batch, 7, step);
}

TEST(DrawIndices, gives_every_image_once_an_epoch_in_orders_of_their_own) {
  std::vector<int64_t> first, second;
  for (int64_t step = 0; step < 20; ++step)  // four epochs
    for (const int64_t i : draw_indices(35, 7, 3, step)) (step < 5 ? first : second).push_back(i);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 35u);
  EXPECT_EQ(first.size(), 35u);
  EXPECT_NE(first, std::vector<int64_t>(second.begin(), second.begin() + 35));
  std::vector<int64_t> across;  // batches that begin in one epoch and end in another
  for (int64_t step = 0; step < 10; ++step)
    for (const int64_t i : draw_indices(35, 21, 3, step)) across.push_back(i);
  EXPECT_EQ(std::vector<int64_t>(across.begin(), across.begin() + 35), first);
  for (int64_t i = 0; i < 35; ++i) EXPECT_EQ(std::ranges::count(across, i), 6);
  EXPECT_EQ(draw_indices(3, 10, 3, 0).size(), 10u);  // more than an epoch at once
  EXPECT_NE(draw_indices(35, 35, 4, 0), first);
  EXPECT_EQ(message_of([] { draw_indices(0, 1, 0, 0); }),
            "draw_indices: size and batch must be >= 1 and step >= 0, got 0, 1 and 0");
}

TEST(DrawBatch, without_changes_gives_the_images) {
  const ImageSet set = noise(11, 3);
  const auto drawn = indices(set, 6, 4);
  const ClassBatch batch = draw_batch(set, kPlain, 6, 7, 4), plain = plain_batch(set, drawn);
  for (int64_t i = 0; i < 6; ++i) {
    const at::Tensor want = set.images[drawn[size_t(i)]].to(at::kDouble) / 127.5 - 1;
    EXPECT_TRUE(same(batch.images[i], want, {1e-6, 0}));
    EXPECT_TRUE(same(plain.images[i], want, {1e-6, 0}));
    EXPECT_EQ(batch.labels[i].item<int64_t>(), drawn[size_t(i)] % 5);
    EXPECT_EQ(batch.targets[i].argmax().item<int64_t>(), drawn[size_t(i)] % 5);
    EXPECT_EQ(batch.targets[i].sum().item<float>(), 1);
  }
  EXPECT_TRUE(plain.targets.equal(batch.targets));
}

TEST(DrawBatch, is_the_same_for_the_same_step_and_no_other) {
  const ImageSet set = noise(40, 3);
  const Augment all{};
  const ClassBatch a = draw_batch(set, all, 8, 7, 3), b = draw_batch(set, all, 8, 7, 3);
  EXPECT_TRUE(a.images.equal(b.images));
  EXPECT_TRUE(a.targets.equal(b.targets));
  EXPECT_FALSE(a.images.equal(draw_batch(set, all, 8, 7, 4).images));
  EXPECT_FALSE(a.images.equal(draw_batch(set, all, 8, 8, 3).images));
}

TEST(DrawBatch, cuts_windows_out_of_padded_images_and_mirrors_some) {
  const ImageSet set = noise(64, 2);
  Augment augment = kPlain;
  augment.pad = 3, augment.flip = 0.5;
  const ClassBatch batch = draw_batch(set, augment, 64, 7, 0);
  const auto drawn = indices(set, 64, 0);
  std::set<std::pair<int64_t, int64_t>> places;
  int64_t mirrored = 0;
  for (int64_t i = 0; i < 64; ++i) {
    const at::Tensor padded = at::full({2, 16, 18}, -1, at::kFloat);
    padded.slice(1, 3, 13).slice(2, 3, 15).copy_(set.images[drawn[size_t(i)]].to(at::kFloat) / 127.5 - 1);
    int64_t found = 0;
    for (int64_t top = 0; top <= 6; ++top)
      for (int64_t left = 0; left <= 6; ++left)
        for (const bool flips : {false, true}) {
          const at::Tensor window = padded.slice(1, top, top + 10).slice(2, left, left + 12);
          if (!same(batch.images[i], flips ? window.flip({2}) : window, {1e-6, 0})) continue;
          ++found, mirrored += flips, places.insert({top, left});
        }
    EXPECT_EQ(found, 1) << i;
  }
  EXPECT_GT(places.size(), 25u);
  EXPECT_GT(mirrored, 20);
  EXPECT_LT(mirrored, 44);
}

// Brightness b and contrast k make of v: k b v + (1 - k) b mean.
TEST(DrawBatch, changes_brightness_and_contrast_within_the_jitter) {
  const ImageSet set = noise(50, 1);
  Augment augment = kPlain;
  augment.jitter = 0.2;
  const ClassBatch batch = draw_batch(set, augment, 50, 7, 0);
  const auto drawn = indices(set, 50, 0);
  double least = 1, most = 1;
  for (int64_t i = 0; i < 50; ++i) {
    const at::Tensor v = set.images[drawn[size_t(i)]].to(at::kDouble) / 255,
                     got = (batch.images[i].to(at::kDouble) + 1) / 2;
    const double b = (got.mean() / v.mean()).item<double>();
    const double k = ((got[0][0][0] - got.mean()) / (v[0][0][0] - v.mean())).item<double>() / b;
    EXPECT_TRUE(same(got, (v - v.mean()) * (b * k) + v.mean() * b, {1e-5, 0}));
    for (const double factor : {b, k}) {
      EXPECT_GE(factor, 0.8 - 1e-4);
      EXPECT_LE(factor, 1.2 + 1e-4);
      least = std::min(least, factor), most = std::max(most, factor);
    }
  }
  EXPECT_LT(least, 0.85);
  EXPECT_GT(most, 1.15);
}

// What saturation leaves as it is: the grey of every pixel, and the ratio of distances from it.
TEST(DrawBatch, changes_saturation_of_colours_within_the_jitter) {
  const ImageSet set = noise(20, 3);
  Augment augment = kPlain;
  augment.jitter = 0.2;
  const ClassBatch batch = draw_batch(set, augment, 20, 7, 0);
  const auto drawn = indices(set, 20, 0);
  const auto grey = [](const at::Tensor& x) { return x[0] * 0.299 + x[1] * 0.587 + x[2] * 0.114; };
  for (int64_t i = 0; i < 20; ++i) {
    const at::Tensor v = set.images[drawn[size_t(i)]].to(at::kDouble) / 255,
                     got = (batch.images[i].to(at::kDouble) + 1) / 2;
    const at::Tensor g = grey(v), h = grey(got);
    const double b = (h.mean() / g.mean()).item<double>();
    const double k = ((h[0][0] - h.mean()) / (g[0][0] - g.mean())).item<double>() / b;
    const double s = ((got[0][0][0] - h[0][0]) / (v[0][0][0] - g[0][0])).item<double>() / (b * k);
    EXPECT_TRUE(same(h, (g - g.mean()) * (b * k) + g.mean() * b, {1e-5, 0}));
    EXPECT_TRUE(same(got - h, (v - g) * (b * k * s), {1e-5, 0}));
    EXPECT_TRUE(s >= 0.8 - 1e-3 && s <= 1.2 + 1e-3) << s;
  }
}

TEST(DrawBatch, erases_a_rectangle_of_some_images) {
  const ImageSet set = noise(400, 1, 28, 28);
  Augment augment = kPlain;
  augment.erase = 0.25;
  const ClassBatch batch = draw_batch(set, augment, 400, 7, 0), plain = draw_batch(set, kPlain, 400, 7, 0);
  int64_t erased = 0;
  for (int64_t i = 0; i < 400; ++i) {
    const at::Tensor changed = (batch.images[i] != plain.images[i])[0];
    const int64_t area = changed.sum().item<int64_t>();
    if (area == 0) continue;
    ++erased;
    const int64_t rows = changed.any(1).sum().item<int64_t>(), columns = changed.any(0).sum().item<int64_t>();
    EXPECT_EQ(area, rows * columns);
    EXPECT_GE(double(area), 0.012 * 784);  // sides are rounded
    EXPECT_LE(double(area), 0.37 * 784);
    EXPECT_LE(double(std::max(rows, columns)), 4.5 * double(std::min(rows, columns)) + 1);
  }
  EXPECT_GT(erased, 70);
  EXPECT_LT(erased, 130);
}

TEST(DrawBatch, mixes_images_and_targets_by_the_same_share) {
  const ImageSet set = noise(20, 1);
  Augment augment = kPlain;
  augment.mixup = 0.8;
  std::set<int64_t> shares;
  for (int64_t step = 0; step < 10; ++step) {
    const ClassBatch batch = draw_batch(set, augment, 6, 7, step), plain = draw_batch(set, kPlain, 6, 7, step);
    const at::Tensor difference = plain.images[0] - plain.images[5];
    const double share = ((batch.images[0] - plain.images[5]) * difference).sum().item<double>() /
                         difference.square().sum().item<double>();
    const auto mixed = [&](const at::Tensor& x) { return x * share + x.flip({0}) * (1 - share); };
    EXPECT_TRUE(same(batch.images, mixed(plain.images), {1e-5, 0}));
    EXPECT_TRUE(same(batch.targets, mixed(plain.targets), {1e-5, 0}));
    EXPECT_TRUE(batch.labels.equal(plain.labels));
    shares.insert(std::llround(share * 1000));
  }
  EXPECT_GT(shares.size(), 8u);
}

TEST(DrawBatch, pastes_rectangles_and_mixes_targets_by_their_area) {
  const ImageSet set = noise(20, 1, 20, 30);
  Augment augment = kPlain;
  augment.cutmix = 1;
  std::set<int64_t> areas;
  for (int64_t step = 0; step < 30; ++step) {
    const ClassBatch batch = draw_batch(set, augment, 6, 7, step), plain = draw_batch(set, kPlain, 6, 7, step);
    const at::Tensor is_other = (batch.images != plain.images).any(0)[0];
    EXPECT_TRUE(batch.images.eq(plain.images).logical_or(batch.images.eq(plain.images.flip({0}))).all().item<bool>());
    const int64_t area = is_other.any(1).sum().item<int64_t>() * is_other.any(0).sum().item<int64_t>();
    areas.insert(area);
    const double share = 1 - double(area) / 600;
    EXPECT_TRUE(same(batch.targets, plain.targets * share + plain.targets.flip({0}) * (1 - share), {1e-6, 0}));
  }
  EXPECT_GT(areas.size(), 15u);
}

TEST(DrawBatch, chooses_one_of_both_ways_to_mix) {
  const ImageSet set = noise(20, 1, 20, 30);
  Augment augment = kPlain;
  augment.mixup = augment.cutmix = 1;
  int64_t mixed = 0;
  for (int64_t step = 0; step < 60; ++step) {
    const ClassBatch batch = draw_batch(set, augment, 6, 7, step), plain = draw_batch(set, kPlain, 6, 7, step);
    mixed += !batch.images.eq(plain.images).logical_or(batch.images.eq(plain.images.flip({0}))).all().item<bool>();
  }
  EXPECT_GT(mixed, 18);
  EXPECT_LT(mixed, 42);
}

TEST(DrawBatch, smooths_targets) {
  Augment augment = kPlain;
  augment.smoothing = 0.1;
  const ClassBatch batch = draw_batch(noise(10, 1), augment, 4, 7, 0);
  EXPECT_TRUE(same(batch.targets.gather(1, batch.labels.unsqueeze(1)), at::full({4, 1}, 0.92, at::kFloat), {1e-6, 0}));
  EXPECT_TRUE(same(batch.targets.sum(1), at::full({4}, 1.0, at::kFloat), {1e-6, 0}));
  EXPECT_EQ(message_of([&] { draw_batch(noise(10, 1), {.smoothing = 2}, 4, 7, 0); }),
            "augment: smoothing must be 0 .. 1, got 2");
}

TEST(DrawBeta, has_the_mean_and_the_variance) {
  for (const double a : {0.001, 0.2, 0.8, 1.0, 3.0}) {
    Random random(1);
    double sum = 0, squares = 0;
    constexpr int kCount = 20000;
    for (int i = 0; i < kCount; ++i) {
      const double x = draw_beta(random, a);
      ASSERT_TRUE(x >= 0 && x <= 1);
      sum += x, squares += (x - 0.5) * (x - 0.5);
    }
    EXPECT_NEAR(sum / kCount, 0.5, 0.012) << a;
    EXPECT_NEAR(squares / kCount, 1 / (4 * (2 * a + 1)), 0.005) << a;
  }
  Random random(1);
  EXPECT_EQ(message_of([&] { draw_beta(random, 0); }), "draw_beta: a must be in (0, 4], got 0");
}

TEST(Mnist, is_read_from_a_folder_and_refused_where_it_does_not_fit) {
  test::TemporaryFolder folder("mnist");
  folder.add("train-images-idx3-ubyte", idx_file({2, 2, 3}, "abcdefghijkl"))
      .add("train-labels-idx1-ubyte", idx_file({2}, "\3\7"));
  const ImageSet set = read_mnist(folder.path(), ImagePart::train);
  EXPECT_EQ(set.images.sizes(), (at::IntArrayRef{2, 1, 2, 3}));
  EXPECT_EQ(set.images[1][0][0][1].item<int64_t>(), 'h');
  EXPECT_EQ(set.labels[1].item<int64_t>(), 7);
  const auto refused = [&](ImagePart part) { return message_of([&] { read_mnist(folder.path(), part); }); };
  EXPECT_EQ(refused(ImagePart::test),
            folder.file("t10k-images-idx3-ubyte.gz") + ": cannot be opened: No such file or directory");
  folder.add("train-labels-idx1-ubyte", idx_file({2}, "\3\12"));
  EXPECT_EQ(refused(ImagePart::train), folder.path() + ": labels must be 0 .. 9, got 10");
  folder.add("train-labels-idx1-ubyte", idx_file({3}, "\3\1\1"));
  EXPECT_EQ(refused(ImagePart::train),
            folder.path() + ": images must be [N, H, W] and labels [N], got [2, 2, 3] and [3]");
}

TEST(Mnist, fashion_mnist_has_its_images_and_classes) {
  if (!test::real_image("fashion-mnist")) GTEST_SKIP() << test::no_image("fashion-mnist");
  for (const auto& [part, count, first] : {std::tuple{ImagePart::train, 6000, 9}, {ImagePart::test, 1000, 9}}) {
    const ImageSet set = read_mnist("fashion-mnist", part);
    EXPECT_EQ(set.images.sizes(), (at::IntArrayRef{10 * count, 1, 28, 28}));
    EXPECT_TRUE(at::bincount(set.labels).equal(at::full({10}, count, at::kLong)));
    EXPECT_EQ(set.labels[0].item<int64_t>(), first);
  }
  const ImageSet set = read_mnist("fashion-mnist", ImagePart::train);
  EXPECT_NEAR(set.images.to(at::kDouble).mean().item<double>() / 255, 0.2860, 1e-4);
}

}  // namespace
}  // namespace foveate::train
