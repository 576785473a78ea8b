// CATANet: published counts, its overlapping patches, its centres in training, and what inference depends on.
#include "foveate/models/vision/catanet.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/models/vision/state_dict.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using namespace foveate::test;
using at::Tensor;

TEST(CataNet, parameter_counts_are_the_published_ones) {
  for (const auto& [upscale, count] : std::vector<std::pair<int64_t, int64_t>>{{2, 477435}, {3, 549635}, {4, 535195}})
    EXPECT_EQ(count_parameters(*CataNet(CataNetConfig{.upscale = upscale})), count);
}

// Of images of 1280 x 720 pixels after upscaling.
TEST(CataNet, multiply_adds_are_those_of_the_spec) {
  struct Row {
    int64_t upscale, height, width;
    double all, groups, centres, patches;
  };
  for (const Row& row : {Row{2, 360, 640, 239.8, 33.6, 12.8, 87.0}, Row{3, 240, 426, 116.4, 14.9, 5.7, 40.4},
                         Row{4, 180, 320, 75.0, 8.4, 3.2, 22.7}}) {
    const CataNetCost cost = count_macs(CataNetConfig{.upscale = row.upscale}, row.height, row.width);
    EXPECT_NEAR(cost.all / 1e9, row.all, 0.051);
    EXPECT_NEAR(cost.groups / 1e9, row.groups, 0.051);
    EXPECT_NEAR(cost.centres / 1e9, row.centres, 0.051);
    EXPECT_NEAR(cost.patches / 1e9, row.patches, 0.051);
  }
}

TEST(CataNet, names_are_the_released_ones) {
  const CataNet net(CataNetConfig{.upscale = 4});
  const auto parameters = net->named_parameters(), buffers = net->named_buffers();
  for (const char* name :
       {"first_conv.weight", "blocks.0.0.norm.weight", "blocks.0.0.mlp.norm.bias", "blocks.0.0.mlp.fn.fc1.weight",
        "blocks.0.0.mlp.fn.dwconv.depthwise_conv.0.weight", "blocks.7.0.irca_attn.to_k.weight",
        "blocks.7.0.irca_attn.to_v.weight", "blocks.7.0.iasa_attn.to_q.weight", "blocks.7.0.iasa_attn.proj.weight",
        "blocks.0.0.conv1x1.weight", "blocks.0.1.layer.0.norm.weight", "blocks.0.1.layer.0.fn.to_q.weight",
        "blocks.0.1.layer.0.fn.proj.weight", "blocks.0.1.layer.1.norm.weight", "blocks.0.1.layer.1.fn.fc2.bias",
        "mid_convs.7.bias", "upconv1.weight", "upconv2.bias", "last_conv.weight"})
    EXPECT_TRUE(parameters.contains(name)) << name;
  for (const char* name : {"blocks.0.0.means", "blocks.7.0.initted"}) EXPECT_TRUE(buffers.contains(name)) << name;
  EXPECT_EQ(buffers["blocks.3.0.means"].sizes(), (at::IntArrayRef{128, 40}));
  const CataNet two(CataNetConfig{.upscale = 2});
  EXPECT_TRUE(two->named_parameters().contains("upconv.weight"));
}

// Two blocks of small patches and groups.
CataNetConfig small_config(int64_t upscale = 2) {
  CataNetConfig config{.upscale = upscale, .dim = 8, .qk_dim = 4, .mlp_dim = 12, .heads = 2};
  config.patches = {5, 7}, config.centres = {3, 4}, config.groups = {16, 8};
  return config;
}

TEST(CataNet, every_factor_and_odd_sizes_give_images_of_their_size) {
  for (const int64_t upscale : {1, 2, 3, 4}) {
    CataNet net(small_config(upscale));
    net->eval();
    const Tensor image = random_tensor({1, 3, 9, 13}, 1);
    EXPECT_EQ(net->forward(image).sizes(), (at::IntArrayRef{1, 3, 9 * upscale, 13 * upscale}));
  }
  CataNet net(CataNetConfig{.upscale = 2});
  net->eval();
  const at::NoGradGuard no_gradients;
  EXPECT_EQ(net->forward(random_tensor({1, 3, 29, 31}, 1)).sizes(), (at::IntArrayRef{1, 3, 58, 62}));
}

TEST(CataNet, without_the_last_convolution_it_is_bilinear) {
  for (const int64_t upscale : {1, 2}) {
    CataNet net(small_config(upscale));
    const at::NoGradGuard no_gradients;
    for (const char* name : {"last_conv.weight", "last_conv.bias"}) net->named_parameters()[name].zero_();
    const Tensor image = random_tensor({1, 3, 9, 13}, 1);
    const Tensor want = upscale == 1 ? image : at::upsample_bilinear2d(image, {18, 26}, false);
    EXPECT_TRUE(same(net->forward(image), want, {1e-6, 1e-6}));
  }
}

TEST(CataNet, inference_changes_no_buffer_and_depends_on_no_other_image) {
  CataNet net(small_config());
  net->forward(random_tensor({2, 3, 12, 12}, 1));  // in training: the centres begin
  net->eval();
  const auto buffers = [&] {
    std::vector<Tensor> all;
    for (const Tensor& b : net->buffers()) all.push_back(b.clone());
    return all;
  };
  const auto before = buffers();
  const at::NoGradGuard no_gradients;
  const Tensor images = random_tensor({2, 3, 12, 11}, 2);
  const Tensor both = net->forward(images);
  EXPECT_TRUE(both.equal(net->forward(images)));
  EXPECT_TRUE(
      same(both, at::cat({net->forward(images.narrow(0, 0, 1)), net->forward(images.narrow(0, 1, 1))}), {1e-5, 1e-5}));
  const auto after = buffers();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(before[i].equal(after[i]));
}

TEST(CataNet, training_begins_with_centres_of_length_one_and_then_moves_them_slowly) {
  CataNet net(small_config());
  const auto means = [&] { return net->named_buffers()["blocks.0.0.means"].clone(); };
  const auto initted = [&] { return net->named_buffers()["blocks.0.0.initted"].item<bool>(); };
  EXPECT_FALSE(initted());
  net->forward(random_tensor({2, 3, 12, 12}, 1));
  EXPECT_TRUE(initted());
  const Tensor first = means();
  EXPECT_TRUE(same(first.norm(2, -1), at::ones_like(first.select(1, 0)), {1e-6, 1e-6}));
  net->forward(random_tensor({2, 3, 12, 12}, 2));
  EXPECT_TRUE(initted());
  const Tensor moved = means() - first;
  EXPECT_GT(moved.abs().max().item<double>(), 0);
  EXPECT_LE(moved.norm(2, -1).max().item<double>(), 0.0021);  // a thousandth of what two directions differ by
}

TEST(CataNet, refined_in_inference_centres_are_of_each_image_alone) {
  CataNetConfig config = small_config();
  CataNet kept(config, 3);
  config.refines_always = true;
  CataNet refined(config, 3);
  const Tensor images = random_tensor({2, 3, 12, 11}, 2);
  for (CataNet* net : {&kept, &refined}) {
    (*net)->forward(random_tensor({2, 3, 12, 12}, 1));
    (*net)->eval();
  }
  const Tensor means = refined->named_buffers()["blocks.0.0.means"].clone();
  const at::NoGradGuard no_gradients;
  const Tensor both = refined->forward(images);
  EXPECT_TRUE(means.equal(refined->named_buffers()["blocks.0.0.means"]));
  for (const int64_t i : {0, 1})
    EXPECT_TRUE(same(both.narrow(0, i, 1), refined->forward(images.narrow(0, i, 1)), {1e-5, 1e-5}));
  EXPECT_FALSE(same(both, kept->forward(images), {1e-6, 1e-6}));
}

TEST(CataNet, without_aggregation_blocks_have_patches_alone) {
  CataNetConfig config = small_config();
  const CataNet whole(config);
  config.aggregates = false;
  CataNet net(config);
  EXPECT_TRUE(net->buffers().empty());
  for (const auto& item : net->named_parameters()) {
    EXPECT_EQ(item.key().find("blocks.0.0."), std::string::npos) << item.key();
    EXPECT_TRUE(whole->named_parameters().contains(item.key())) << item.key();
  }
  EXPECT_EQ(net->forward(random_tensor({2, 3, 9, 13}, 1)).sizes(), (at::IntArrayRef{2, 3, 18, 26}));
  const CataNetCost cost = count_macs(config, 40, 40), with = count_macs(small_config(), 40, 40);
  EXPECT_EQ(cost.groups + cost.centres, 0);
  EXPECT_EQ(cost.patches, with.patches);
  EXPECT_LT(cost.all, with.all - with.groups - with.centres);
}

TEST(CataNet, learns_through_centres_and_patches) {
  CataNet net(small_config());
  net->forward(random_tensor({2, 3, 12, 12}, 1)).square().sum().backward();
  for (const auto& item : net->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

TEST(CataNet, patches_overlap_by_two_and_end_at_the_border) {
  EXPECT_EQ(patch_starts(16, 16), (std::vector<int64_t>{0}));
  EXPECT_EQ(patch_starts(17, 16), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(patch_starts(30, 16), (std::vector<int64_t>{0, 14}));
  EXPECT_EQ(patch_starts(31, 16), (std::vector<int64_t>{0, 14, 15}));
}

// With nothing from attention and the ConvFfn a block is the identity; the released code divides by too much where
// three patches meet.
TEST(CataNet, overlaps_are_averaged_or_halved_as_released) {
  for (const bool halves : {false, true}) {
    CataNetConfig config;
    config.halves_overlaps = halves;
    PatchAttentionImpl block(config, 0);  // patches of 16
    const at::NoGradGuard no_gradients;
    for (const auto& item : block.named_parameters())
      if (item.key().find("proj") != std::string::npos || item.key().find("fc2") != std::string::npos)
        item.value().zero_();
    const Tensor x = random_tensor({1, 31, 20, 40}, 1);
    Tensor want = x.clone();
    if (halves) want.select(1, 15).mul_(0.75);
    EXPECT_TRUE(same(block.forward(x), want, {1e-6, 1e-6}));
  }
}

TEST(CataNet, options_change_the_result) {
  const Tensor image = random_tensor({1, 3, 12, 12}, 1);
  const auto run = [&](const CataNetConfig& config) {
    CataNet net(config, 3);
    net->eval();
    const at::NoGradGuard no_gradients;
    for (const auto& item : net->named_parameters())
      if (item.value().dim() == 2) item.value().mul_(20);
    return net->forward(image);
  };
  CataNetConfig config = small_config();
  const Tensor base = run(config);
  config.window = attention::GroupWindow::own;
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
  config = small_config(), config.merge = attention::CentreMerge::joint;
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
  config = small_config(), config.uses_centres = false;
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
}

TEST(CataNet, refuses_small_images_and_options_that_do_not_fit) {
  CataNet net(CataNetConfig{});
  EXPECT_EQ(message_of([&] {
              net->forward(at::zeros({1, 3, 27, 40}));
            }),
            "catanet: images must be at least 28 x 28 (the largest patch), got 27 x 40");
  EXPECT_EQ(message_of([&] {
              net->forward(at::zeros({1, 1, 40, 40}));
            }),
            "catanet: the image must be [B, 3, H, W], got [1, 1, 40, 40]");
  EXPECT_EQ(message_of([] { CataNet bad(CataNetConfig{.upscale = 5}); }), "catanet: upscale must be 1 .. 4, got 5");
}

}  // namespace
}  // namespace foveate::models
