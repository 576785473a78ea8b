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

// Bright stripes of 24 x 24, rows or columns.
ImageSet stripes() {
  ImageSet set{at::zeros({64, 1, 24, 24}, at::kByte), at::arange(64, at::kLong).remainder(2), 2};
  for (int64_t i = 0; i < 64; ++i) set.images[i][0].select(i % 2, (i / 2) % 24).fill_(255);
  return set;
}

using Kind = ClassifierModel::Kind;

ClassifierModel small(Kind kind = Kind::dinat) {
  ClassifierModel m;
  m.kind = kind;
  m.batch = 16, m.embed = 16, m.kernel = 3, m.first_layers = 0, m.second_layers = 1, m.third_layers = 2;
  return m;
}

class EveryKind : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(ImageClassifier, EveryKind,
                         testing::Values(Kind::nat, Kind::dinat, Kind::halonet, Kind::hybrid, Kind::convnet),
                         [](const auto& info) { return std::string(enum_names(info.param)[size_t(info.param)]); });

TEST_P(EveryKind, learns_what_a_window_shows) {
  const ImageSet set = stripes();
  const ImageClassifier classifier(small(GetParam()), set, 1);
  const Augment none{.pad = 0, .flip = 0, .jitter = 0, .erase = 0, .mixup = 0, .cutmix = 0, .smoothing = 0};
  Trainer trainer(
      classifier.parameters(), [&](int64_t step, uint64_t seed) { return classifier.loss(set, none, step, seed); },
      {.steps = 120, .warmup = 5, .lr = 3e-3}, classifier.subject(), classifier.buffers());
  while (!trainer.is_done()) trainer.step();
  EXPECT_GT(classifier.top1(set), 0.95);  // half by chance
}

TEST_P(EveryKind, a_resumed_run_gives_the_same_bits) {
  const ImageSet set = stripes();
  const std::string file = testing::TempDir() + "image_classifier.ckpt";
  const auto trainer_of = [&](const ImageClassifier& c) {
    return Trainer(
        c.parameters(), [&](int64_t step, uint64_t seed) { return c.loss(set, {}, step, seed); },
        {.steps = 6, .warmup = 2}, c.subject(), c.buffers());
  };
  const ImageClassifier whole(small(GetParam()), set, 1), stopped(small(GetParam()), set, 1),
      later(small(GetParam()), set, 9);
  Trainer a = trainer_of(whole), b = trainer_of(stopped), c = trainer_of(later);
  run(a, {});
  for (int i = 0; i < 3; ++i) b.step();
  b.save(file);
  run(c, {.checkpoint = file, .resumes = true});
  for (const auto& [name, parameter] : whole.parameters())
    EXPECT_TRUE(same(parameter.value, later.parameters().at(name).value, {0, 0})) << name;
  for (const auto& [name, buffer] : whole.buffers()) EXPECT_TRUE(buffer.equal(later.buffers().at(name))) << name;
}

TEST(ImageClassifier, attention_and_convolution_have_as_many_parameters) {
  const auto count = [](Kind kind) {
    ClassifierModel m;
    m.kind = kind;
    const ImageSet set{at::zeros({1, 1, 28, 28}, at::kByte), at::zeros({1}, at::kLong), 10};
    int64_t all = 0;
    for (const auto& [name, parameter] : ImageClassifier(m, set, 0).parameters()) all += parameter.value.numel();
    return double(all);
  };
  EXPECT_NEAR(count(Kind::convnet) / count(Kind::halonet), 1, 0.01);
}

TEST(ImageClassifier, dilations_are_the_largest_that_fit) {
  ClassifierModel m;
  m.kernel = 3, m.first_layers = 2, m.second_layers = 3, m.third_layers = 2;
  EXPECT_EQ(m.nat(28, 28, 10).dilations, (std::vector<std::vector<int64_t>>{{1, 4}, {1, 2, 1}, {1, 1}}));
  m.kind = Kind::nat;
  EXPECT_EQ(m.nat(28, 28, 10).dilations, (std::vector<std::vector<int64_t>>{{1, 1}, {1, 1, 1}, {1, 1}}));
}

// Files mean the same when defaults change.
TEST(ImageClassifier, a_run_names_all_options) {
  const std::string text = ImageClassifier(small(), stripes(), 1).subject().at("model");
  EXPECT_EQ(
      text,
      "classifier:kind=dinat,batch=16,embed=16,kernel=3,first_layers=0,second_layers=1,third_layers=2,drop_path=0");
}

TEST(ImageClassifier, levels_without_layers_are_left_out) {
  ClassifierModel m;
  m.first_layers = 0, m.second_layers = 2, m.third_layers = 0;
  const models::NatConfig nat = m.nat(28, 28, 10);
  EXPECT_EQ(nat.depths, std::vector<int64_t>{2});
  EXPECT_EQ(nat.patch, 4);
  EXPECT_EQ(m.halonet(28, 28, 10).stem_end, models::StemEnd::pool);
  m.first_layers = 3, m.third_layers = 1;
  EXPECT_EQ(m.nat(28, 28, 10).depths, (std::vector<int64_t>{3, 2, 1}));
  EXPECT_EQ(m.nat(28, 28, 10).patch, 2);
  EXPECT_EQ(m.nat(28, 28, 10).heads, (std::vector<int64_t>{3, 6, 12}));
  m.kind = Kind::hybrid;
  const models::HaloNetConfig hybrid = m.halonet(28, 28, 10);
  EXPECT_EQ(hybrid.stem_end, models::StemEnd::none);
  ASSERT_EQ(hybrid.stages.size(), 3u);
  for (size_t level = 0; level < 3; ++level)
    for (const models::HaloBlock& block : hybrid.stages[level]) {
      EXPECT_EQ(block.attention.has_value(), level > 0);
      EXPECT_EQ(block.out, 48 << level);
    }
  models::HaloNet net(hybrid);
  net->eval();
  EXPECT_EQ(net->features(at::zeros({1, 3, 28, 28})).sizes(), (at::IntArrayRef{1, 192, 4, 4}));
  EXPECT_EQ(hybrid.stages[1][0].attention->halo.block, 8);  // half of 14 tokens and one, even
  EXPECT_EQ(hybrid.stages[1][1].attention->halo.block, 4);
}

TEST(ImageClassifier, says_what_does_not_fit) {
  const auto refusal = [](int64_t embed, int64_t kernel) {
    ClassifierModel m;
    m.embed = embed, m.kernel = kernel;
    return message_of([&] { m.nat(28, 28, 10); });
  };
  EXPECT_EQ(refusal(40, 3), "classifier: embed must be a multiple of 16, got 40");
  EXPECT_EQ(refusal(32, 5), "classifier: kernel must be <= the 4 tokens of a side, got 5");
  EXPECT_EQ(refusal(32, 4), "classifier: kernel must be odd, got 4");
  EXPECT_EQ(refusal(32, 2), "classifier: kernel must be 3 .. 255, got 2");
  ClassifierModel single;
  single.kind = Kind::hybrid, single.third_layers = 0;
  EXPECT_EQ(message_of([&] { single.halonet(28, 28, 10); }),
            "classifier: a hybrid attends behind its first level, it must have layers at two or more, got 1");
}

}  // namespace
}  // namespace foveate::train
