// HaloNets: published parameter and multiply-add counts, names, and the layer's options.
#include "foveate/models/vision/halonet.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/matmul.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/models/vision/initialise.h"
#include "foveate/models/vision/state_dict.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using namespace foveate::test;
using at::Tensor;

TEST(HaloNet, parameter_counts_are_the_published_ones) {
  const std::pair<const char*, double> millions[] = {{"h0", 5.50},  {"h1", 8.11},  {"h2", 9.41},  {"h3", 11.84},
                                                     {"h4", 19.10}, {"h5", 30.72}, {"h6", 43.46}, {"h7", 67.43}};
  for (const auto& [name, published] : millions)
    EXPECT_EQ(std::round(double(count_parameters(*HaloNet(halonet_config(name), std::nullopt))) / 1e4) / 100, published)
        << name;
}

TEST(HaloNet, hybrids_have_the_parameters_of_timm) {
  const std::pair<const char*, int64_t> counts[] = {
      {"halonet26t", 12480288}, {"halonet50ts", 22733280}, {"sehalonet33ts", 13691712}, {"eca_halonext26ts", 10756885}};
  for (const auto& [name, count] : counts) EXPECT_EQ(count_parameters(*HaloNet(halonet_config(name))), count) << name;
}

// Of the table's images.  The table's are estimates; h7's maps do not end at whole blocks.
TEST(HaloNet, multiply_adds_are_those_of_the_table) {
  const std::pair<const char*, double> billions[] = {{"h0", 2.3},  {"h1", 2.9},  {"h2", 3.2}, {"h3", 6.0},
                                                     {"h4", 11.7}, {"h5", 31.7}, {"h6", 52},  {"h7", 106}};
  for (const auto& [name, printed] : billions) {
    const HaloNetConfig config = halonet_config(name);
    const double macs = count_macs(config, config.image, config.image) / 1e9;
    EXPECT_NEAR(macs, printed, config.image == 600 ? 2 : printed < 50 ? 0.051 : 0.5) << name;
  }
}

// A small network of the same blocks.
HaloNetConfig small_config() {
  HaloNetConfig config = halonet_config("h0");
  config.classes = 7;
  for (auto& stage : config.stages) stage.resize(1);
  for (auto& stage : config.stages)
    for (HaloBlock& block : stage) block.attention->halo.block = 2, block.attention->halo.halo = 1;
  return config;
}

TEST(HaloNet, gives_class_scores_and_maps_of_any_size_and_learns) {
  HaloNet net(small_config());
  const Tensor image = random_tensor({2, 3, 52, 70}, 1);
  EXPECT_EQ(net->forward(image).sizes(), (at::IntArrayRef{2, 7}));
  EXPECT_EQ(net->features(image).sizes(), (at::IntArrayRef{2, 256, 2, 3}));
  net->forward(image).square().sum().backward();
  for (const auto& item : net->named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
}

TEST(HaloNet, a_seed_gives_the_same_network) {
  const HaloNet a(small_config(), 5), b(small_config(), 5), c(small_config(), 6);
  const auto weight = [](const HaloNet& net) { return net->named_parameters()["stages.1.0.self_attn.q.weight"]; };
  EXPECT_TRUE(weight(a).equal(weight(b)));
  EXPECT_FALSE(weight(a).equal(weight(c)));
}

TEST(HaloNet, an_unknown_name_is_answered_with_the_known_ones) {
  EXPECT_EQ(message_of([] { halonet_config("h9"); }),
            "halonet: the name must be one of h0 h1 h2 h3 h4 h5 h6 h7 eca_halonext26ts halonet26t halonet50ts "
            "sehalonet33ts, got 'h9'");
}

// ---- the layer ----

HaloAttn make_layer(const HaloAttnOptions& options) {
  HaloAttn layer(options);
  initialise(*layer, 2, [](std::string_view, const Tensor& t, Random& random) { fill_normal(t, 0.3, random); });
  return layer;
}

TEST(HaloAttn, keys_come_before_values_in_each_head_of_kv) {
  HaloAttnOptions options{.dim_in = 6, .dim_out = 8, .heads = 2, .dim_head_qk = 3, .halo = {.block = 2, .halo = 1}};
  HaloAttn layer = make_layer(options);
  const auto parameters = layer->named_parameters();
  EXPECT_EQ(parameters["q.weight"].sizes(), (at::IntArrayRef{6, 6, 1, 1}));
  EXPECT_EQ(parameters["kv.weight"].sizes(), (at::IntArrayRef{14, 6, 1, 1}));
  EXPECT_EQ(parameters["pos_embed.height_rel"].sizes(), (at::IntArrayRef{7, 3}));
  const Tensor x = random_tensor({2, 6, 4, 6}, 1), pixels = x.permute({0, 2, 3, 1});
  const auto map = [&](int64_t from, int64_t to, const char* name) {
    return at::matmul(pixels, parameters[name].flatten(1).slice(0, from, to).t());  // [B, H, W, channels]
  };
  const Tensor out = layer->forward(x);
  for (int64_t head = 0; head < 2; ++head) {
    const auto one = [](const Tensor& t) { return t.unsqueeze(1); };
    const Tensor want =
        attention::halo_attend(
            one(map(3 * head, 3 * head + 3, "q.weight")), one(map(7 * head, 7 * head + 3, "kv.weight")),
            one(map(7 * head + 3, 7 * head + 7, "kv.weight")),
            attention::RelativeEmbeddings{parameters["pos_embed.height_rel"], parameters["pos_embed.width_rel"]},
            options.halo)
            .out.squeeze(1)
            .permute({0, 3, 1, 2});
    EXPECT_TRUE(same(out.narrow(1, 4 * head, 4), want, {1e-5, 1e-5})) << head;
  }
}

TEST(HaloAttn, each_option_changes_the_result_as_it_says) {
  const HaloAttnOptions plain{.dim_in = 8, .heads = 2, .halo = {.block = 2, .halo = 1}};
  const Tensor x = random_tensor({1, 8, 4, 4}, 1);
  const auto run = [&](HaloAttnOptions options) { return make_layer(options)->forward(x); };
  const Tensor base = run(plain);
  EXPECT_EQ(base.sizes(), (at::IntArrayRef{1, 8, 4, 4}));
  HaloAttnOptions o = plain;
  o.halo.stride = 2;
  EXPECT_TRUE(same(run(o), base.slice(2, 0, {}, 2).slice(3, 0, {}, 2), {1e-5, 1e-5}));
  o.avg_down = true;
  EXPECT_TRUE(same(run(o), at::avg_pool2d(base, {2, 2}), {1e-5, 1e-5}));
  o = plain, o.halo.scale_positions = true;
  EXPECT_FALSE(same(run(o), base, {1e-3, 1e-3}));
  o = plain, o.qkv_bias = true;
  EXPECT_FALSE(same(run(o), base, {1e-3, 1e-3}));
  o = plain, o.out_proj = true;
  EXPECT_FALSE(same(run(o), base, {1e-3, 1e-3}));
  o = plain, o.halo.padding = attention::HaloPadding::mask;
  EXPECT_FALSE(same(run(o), base, {1e-3, 1e-3}));
}

// With zeros as padding and no bias, padding the input is padding keys and values.
TEST(HaloAttn, auto_pad_is_a_padded_image_cut_off) {
  HaloAttnOptions options{.dim_in = 8, .heads = 2, .halo = {.block = 4, .halo = 1, .auto_pad = true}};
  HaloAttn layer = make_layer(options);
  const Tensor x = random_tensor({2, 8, 6, 5}, 1);
  const Tensor padded = layer->forward(at::constant_pad_nd(x, {0, 3, 0, 2}));
  EXPECT_TRUE(same(layer->forward(x), padded.narrow(2, 0, 6).narrow(3, 0, 5), {1e-5, 1e-5}));
}

TEST(HaloAttn, refuses_options_and_images_that_do_not_fit) {
  const auto message = [](const HaloAttnOptions& options) { return message_of([&] { HaloAttn layer(options); }); };
  EXPECT_EQ(message({.dim_in = 6, .heads = 4}), "halo_attn: dim_out must be a multiple of heads (4), got 6");
  EXPECT_EQ(message({.dim_in = 8, .heads = 0}), "halo_attn: heads must be >= 1, got 0");
  EXPECT_EQ(message({.dim_in = 8, .halo = {.halo = -1}}), "halo_attn: block must be >= 1 and halo >= 0, got 8 and -1");
  EXPECT_EQ(message({.dim_in = 8, .halo = {.stride = 4}}), "halo_attn: stride must be 1 or 2, got 4");
  EXPECT_EQ(message({.dim_in = 8, .halo = {.block = 7, .stride = 2}}),
            "halo_attn: block must be a multiple of stride unless avg_down, got 7 and 2");
  HaloAttn layer(HaloAttnOptions{.dim_in = 8});
  EXPECT_EQ(message_of([&] {
              layer->forward(random_tensor({1, 4, 8, 8}, 1));
            }),
            "halo_attn: x must be [B, 8, H, W], got [1, 4, 8, 8]");
  EXPECT_NE(message_of([&] {
              layer->forward(random_tensor({1, 8, 9, 8}, 1));
            }).find("multiples of block"),
            std::string::npos);
}

}  // namespace
}  // namespace foveate::models
