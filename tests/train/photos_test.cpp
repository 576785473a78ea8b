// Photographs and patches: both sizes show the same, in all eight ways, and the step alone decides.
#include "foveate/train/photos.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <set>

#include "foveate/eval/image_tensor.h"
#include "foveate/ops/resize.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"
#include "tests/support/real_images.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::random_tensor;
using test::same;

at::Tensor noise(int64_t height, int64_t width, uint64_t seed) {
  return random_tensor({1, 3, height, width}, seed).mul_(0.15).add_(0.5);
}

TEST(PhotoPair, is_cut_to_multiples_and_reduced) {
  const at::Tensor image = noise(23, 31, 1);
  const PhotoPair pair = make_pair("p", image, 3);
  EXPECT_EQ(pair.high.sizes(), (at::IntArrayRef{3, 21, 30}));
  EXPECT_EQ(pair.low.sizes(), (at::IntArrayRef{3, 7, 10}));
  const at::Tensor cut = eval::round_to_8_bits(image.slice(2, 0, 21).slice(3, 0, 30));
  EXPECT_TRUE(same(pair.high.to(at::kFloat) / 255, cut[0], {1e-6, 0}));
  EXPECT_TRUE(
      same(pair.low.to(at::kFloat) / 255, eval::round_to_8_bits(ops::resize_bicubic(cut, 7, 10))[0], {1e-6, 0}));
  EXPECT_TRUE(make_pair("p", image, 1).low.equal(make_pair("p", image, 1).high));
  EXPECT_EQ(message_of([&] { make_pair("p", image, 24); }),
            "p: the image must be [1, 3, H, W], H and W >= scale >= 1, got [1, 3, 23, 31] and scale 24");
}

TEST(Patches, show_one_place_of_one_photo_in_both_sizes) {
  const std::vector<PhotoPair> photos = {make_pair("a", noise(40, 30, 1), 2), make_pair("b", noise(24, 64, 2), 2)};
  const PatchBatch batch = draw_patches(photos, {.batch = 40, .size = 9}, 5, 3);
  EXPECT_EQ(batch.low.sizes(), (at::IntArrayRef{40, 3, 9, 9}));
  EXPECT_EQ(batch.high.sizes(), (at::IntArrayRef{40, 3, 18, 18}));
  std::set<std::pair<int64_t, bool>> ways;  // turns, and whether mirrored
  std::set<std::string> names;
  for (int64_t i = 0; i < 40; ++i) {
    int64_t found = 0;
    for (const PhotoPair& photo : photos)
      for (int64_t top = 0; top + 9 <= photo.low.size(1); ++top)
        for (int64_t left = 0; left + 9 <= photo.low.size(2); ++left)
          for (int64_t turns = 0; turns < 4; ++turns)
            for (const bool flips : {false, true}) {
              const auto patch = [&](const at::Tensor& x, int64_t s) {
                const at::Tensor p = x.narrow(1, s * top, 9 * s).narrow(2, s * left, 9 * s).rot90(turns, {1, 2});
                return (flips ? p.flip({2}) : p).to(at::kFloat).div(255);
              };
              if (!patch(photo.low, 1).equal(batch.low[i])) continue;
              ++found;
              EXPECT_TRUE(patch(photo.high, 2).equal(batch.high[i]));
              ways.insert({turns, flips});
              names.insert(photo.name);
            }
    EXPECT_EQ(found, 1) << i;
  }
  EXPECT_EQ(ways.size(), 8u);
  EXPECT_EQ(names.size(), 2u);
  EXPECT_TRUE(batch.low.equal(draw_patches(photos, {.batch = 40, .size = 9}, 5, 3).low));
  EXPECT_FALSE(batch.low.equal(draw_patches(photos, {.batch = 40, .size = 9}, 5, 4).low));
}

TEST(Patches, photos_that_do_not_fit_are_refused) {
  const std::vector<PhotoPair> photos = {make_pair("a", noise(40, 30, 1), 2), make_pair("b", noise(24, 64, 2), 2)};
  EXPECT_EQ(message_of([&] { draw_patches(photos, {.size = 13}, 0, 0); }),
            "b: must be 13 x 13 pixels or more when reduced, got 12 x 32");
  EXPECT_EQ(message_of([&] {
              draw_patches({photos[0], make_pair("c", noise(90, 90, 1), 3)}, {.size = 4}, 0, 0);
            }),
            "c: scale must be 2 as of the first photo");
  EXPECT_EQ(message_of([&] { draw_patches({}, {}, 0, 0); }), "patches: photos are needed, got none");
  EXPECT_EQ(message_of([&] { draw_patches(photos, {.batch = 0}, 0, 0); }),
            "patches: batch must be 1 .. 1048576, got 0");
}

TEST(Photos, are_read_in_the_order_of_names_and_jpegs_at_half_their_size) {
  test::TemporaryFolder folder("photos");
  EXPECT_EQ(message_of([&] { read_photos(folder.path(), 2); }),
            folder.path() + ": must have files .png, .jpg or .jpeg, got none");
  const io::Image image = eval::to_image(noise(20, 26, 3));
  io::write_image(folder.file("b.png"), image);
  io::write_image(folder.file("a.jpg"), image);
  folder.add("notes.txt", "no image");
  const std::vector<PhotoPair> photos = read_photos(folder.path(), 2);
  ASSERT_EQ(photos.size(), 2u);
  EXPECT_EQ(photos[0].name, folder.file("a.jpg"));
  EXPECT_EQ(photos[0].high.sizes(), (at::IntArrayRef{3, 10, 12}));
  EXPECT_EQ(photos[1].high.sizes(), (at::IntArrayRef{3, 20, 26}));
  EXPECT_TRUE(photos[1].high.equal(make_pair("", eval::to_tensor(image), 2).high));
  folder.add("c.png", "broken");
  EXPECT_EQ(message_of([&] { read_photos(folder.path(), 2); }),
            folder.file("c.png") + ": must be a PNG or JPEG file, got 6 bytes that start with 'broken'");
}

TEST(Photos, those_that_are_fetched_can_be_read) {
  if (!test::real_image("test-photos")) GTEST_SKIP() << test::no_image("test-photos");
  const std::vector<PhotoPair> photos = read_photos("test-photos", 4);
  ASSERT_EQ(photos.size(), 3u);
  EXPECT_EQ(photos[0].low.sizes(), (at::IntArrayRef{3, 128, 128}));
  const PatchBatch batch = draw_patches(photos, {.batch = 4}, 0, 0);
  EXPECT_EQ(batch.high.sizes(), (at::IntArrayRef{4, 3, 192, 192}));
}

}  // namespace
}  // namespace foveate::train
