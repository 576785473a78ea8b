// The enlarging model's shape, and that it learns and goes on from checkpoints, its centres too.
#include "foveate/train/super_resolution.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;

// Checks of three pixels a side, each photo at another place and in another colour: bicubic means blur their edges.
std::vector<PhotoPair> checks(int64_t count) {
  std::vector<PhotoPair> photos;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor place = at::arange(64, at::kLong);
    const at::Tensor down = ((place + i) / 6).floor().remainder(2), across = ((place + 3 * i) / 6).floor().remainder(2);
    at::Tensor image = at::zeros({1, 3, 64, 64});
    for (int64_t c = 0; c < 3; ++c)
      image[0][c].copy_((down.unsqueeze(1) + across.unsqueeze(0)).remainder(2) * (0.9 - 0.2 * double((c + i) % 3)));
    photos.push_back(make_pair("checks", image, 2));
  }
  return photos;
}

SuperResolutionModel small() {
  SuperResolutionModel m;
  m.dim = 8, m.heads = 2, m.blocks = 2, m.patch = 4, m.centres = 2;
  return m;
}

constexpr PatchOptions kPatches{.batch = 4, .size = 12};

TEST(SuperResolution, begins_as_bilinear_and_learns_to_beat_bicubic) {
  const auto photos = checks(4), held_out = checks(6);
  const SuperResolution learner(small(), kPatches, 1);
  const ImageModel bilinear = [](const at::Tensor& x) {
    return at::upsample_bilinear2d(x, {2 * x.size(2), 2 * x.size(3)}, false);
  };
  EXPECT_DOUBLE_EQ(learner.score(held_out).mean.psnr, score_enlarging(bilinear, held_out).mean.psnr);
  Trainer trainer(
      learner.parameters(), [&](int64_t step, uint64_t seed) { return learner.loss(photos, step, seed); },
      {.steps = 120, .warmup = 5, .lr = 5e-3}, learner.subject(), learner.buffers());
  const double first = trainer.step().loss;
  double last = 0;
  while (!trainer.is_done()) last = trainer.step().loss;
  EXPECT_LT(last, first / 2);
  EXPECT_GT(learner.score(held_out).mean.psnr, score_enlarging(bicubic(2), held_out).mean.psnr + 1);
}

TEST(SuperResolution, a_resumed_run_gives_the_same_bits_of_weights_and_centres) {
  const auto photos = checks(2);
  const test::TemporaryFolder folder("super_resolution");
  const auto make = [&](const SuperResolution& learner) {
    return Trainer(
        learner.parameters(), [&](int64_t step, uint64_t seed) { return learner.loss(photos, step, seed); },
        {.steps = 6, .warmup = 2}, learner.subject(), learner.buffers());
  };
  const SuperResolution whole(small(), kPatches, 1), stopped(small(), kPatches, 1), later(small(), kPatches, 9);
  Trainer a = make(whole), b = make(stopped), c = make(later);
  run(a, {});
  for (int i = 0; i < 3; ++i) b.step();
  b.save(folder.file("x"));
  stopped.score(photos);  // changes nothing
  run(c, {.checkpoint = folder.file("x"), .resumes = true});
  const auto want = whole.net()->named_parameters(), got = later.net()->named_parameters();
  for (const auto& item : want) EXPECT_TRUE(item.value().equal(got[item.key()])) << item.key();
  const TensorMap centres = whole.buffers(), resumed = later.buffers();
  EXPECT_EQ(centres.size(), 4u);
  for (const auto& [name, tensor] : centres) EXPECT_TRUE(tensor.equal(resumed.at(name))) << name;
  EXPECT_FALSE(stopped.buffers().at("blocks.0.0.means").equal(resumed.at("blocks.0.0.means")));
}

TEST(SuperResolution, shape_is_the_published_one_at_the_published_size) {
  SuperResolutionModel m;
  m.dim = 40, m.blocks = 8, m.patch = 16, m.centres = 16, m.decay = 0.999;
  const models::CataNetConfig c = m.config(64), published;
  EXPECT_EQ(c.qk_dim, published.qk_dim);
  EXPECT_EQ(c.mlp_dim, published.mlp_dim);
  EXPECT_EQ(c.patches, published.patches);
  EXPECT_EQ(c.centres, published.centres);
  EXPECT_EQ(c.groups, published.groups);
  EXPECT_EQ(SuperResolutionModel().config(32).groups, (std::vector<int64_t>{128, 64, 32, 16}));
}

TEST(SuperResolution, without_aggregation_it_has_no_centres_and_fewer_parameters) {
  SuperResolutionModel m = small();
  const SuperResolution with(m, kPatches, 1);
  m.aggregates = false;
  const SuperResolution without(m, kPatches, 1);
  EXPECT_TRUE(without.buffers().empty());
  EXPECT_LT(without.parameters().size(), with.parameters().size());
  for (const auto& [name, parameter] : without.parameters())
    EXPECT_EQ(parameter.value.sizes(), with.parameters().at(name).value.sizes()) << name;
  EXPECT_LT(without.macs(), with.macs());
  EXPECT_NE(with.subject(), without.subject());
}

TEST(SuperResolution, says_what_does_not_fit) {
  const auto refusal = [](const auto& change, int64_t size = 32) {
    SuperResolutionModel m;
    change(m);
    return message_of([&] { m.config(size); });
  };
  EXPECT_EQ(refusal([](auto& m) { m.dim = 30; }), "super-resolution: dim must be a multiple of heads (4), got 30");
  EXPECT_EQ(refusal([](auto& m) { m.scale = 5; }), "super-resolution: scale must be 2 .. 4, got 5");
  EXPECT_EQ(refusal([](auto& m) { m.patch = 20; }),
            "super-resolution: size must be >= the 35 pixels of the largest patch of attention, got 32");
  EXPECT_EQ(refusal([](auto& m) { m.centres = 200; }),
            "super-resolution: centres of a block must be <= the 1024 pixels of a patch, got 1600");
}

}  // namespace
}  // namespace foveate::train
