// UPLiFT: published counts, names, and what its shortcuts must not change.
#include "foveate/models/vision/uplift.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/upsample_nearest2d.h>
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

TEST(Uplift, parameter_counts_are_the_published_ones) {
  const Uplift vit(uplift_for_vit());
  EXPECT_EQ(count_parameters(*vit), 789521);
  int64_t encoder = 0, decoder = 0, attender = 0;
  for (const auto& item : vit->named_parameters()) {
    int64_t& part = item.key().starts_with("encoder")   ? encoder
                    : item.key().starts_with("decoder") ? decoder
                                                        : attender;
    part += item.value().numel();
  }
  EXPECT_EQ(encoder, 283904);
  EXPECT_EQ(decoder, 504512);
  EXPECT_EQ(attender, 1105);
  EXPECT_EQ(count_parameters(*Uplift(uplift_for_vae())), 53487445);
}

TEST(Uplift, names_are_the_released_ones) {
  const Uplift vit(uplift_for_vit());
  const auto parameters = vit->named_parameters();
  for (const char* name : {"encoder.block_0.blocks.0.conv.0.weight", "encoder.block_4.blocks.0.conv.1.bias",
                           "encoder.block_4.blocks.0.conv.3.bias", "decoder.block_0.blocks.0.conv.4.weight",
                           "decoder.block_0.blocks.0.conv.6.bias", "decoder.up_1.up.weight",
                           "decoder.block_1.blocks.0.conv.3.weight", "attender.conv1.weight"})
    EXPECT_TRUE(parameters.contains(name)) << name;
  EXPECT_TRUE(vit->named_buffers().contains("decoder.block_0.blocks.0.conv.1.running_mean"));
  UpliftConfig config = uplift_for_vae();
  config.encoder = {{8, 8}, {8, 8}}, config.decoder = {{8}, {20, 20}}, config.refiner = {8, 8};
  const Uplift vae(config);
  for (const char* name : {"encoder.block_0.blocks.1.conv.3.weight", "decoder.block_1.blocks.1.conv.1.weight",
                           "refiner.blocks.1.conv.0.weight", "ref_outc.weight"})
    EXPECT_TRUE(vae->named_parameters().contains(name)) << name;
}

// Of an image of 448 x 448, four iterations.
TEST(Uplift, multiply_adds_are_those_of_the_spec) {
  const UpliftCost cost = count_macs(uplift_for_vit(), 32, 32, 4);
  EXPECT_NEAR(cost.encoder / 1e9, 74.1, 0.051);
  const double decoder[4] = {1.0, 3.9, 15.7, 62.8}, attender[4] = {0.03, 0.12, 0.5, 2.0};
  double all = cost.encoder;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(cost.decoder[i] / 1e9, decoder[i], 0.051);
    EXPECT_NEAR(cost.attender[i] / 1e9, attender[i], i < 2 ? 0.0051 : 0.051);
    all += cost.decoder[i] + cost.attender[i];
  }
  EXPECT_NEAR(all / 1e9, 160, 0.51);
}

UpliftConfig small_config() {
  UpliftConfig config{.channels = 6, .patch = 8, .encoder = {{4}, {8}, {8}}, .decoder = {{20}, {20}}};
  return config;
}

struct Inputs {
  Tensor image, features;
};

Inputs make_inputs(const UpliftConfig& c, int64_t height, int64_t width, int64_t batch = 1) {
  return {random_tensor({batch, 3, c.patch * height, c.patch * width}, 1),
          random_tensor({batch, c.channels, height, width}, 2)};
}

// Batch norms that are not the identity.
void stir(Uplift& net) {
  const at::NoGradGuard no_gradients;
  Random random(4);
  for (const auto& item : net->named_buffers())
    if (item.key().ends_with("running_var"))
      item.value().fill_(0.5 + random.uniform());
    else if (item.key().ends_with("running_mean"))
      item.value().fill_(random.uniform() - 0.5);
}

TEST(Uplift, doubles_again_and_again_for_odd_sizes_and_batches) {
  const UpliftConfig config = small_config();
  Uplift net(config);
  net->eval();
  const at::NoGradGuard no_gradients;
  const Inputs x = make_inputs(config, 3, 5, 2);
  EXPECT_EQ(net->forward(x.image, x.features).sizes(), (at::IntArrayRef{2, 6, 6, 10}));
  const auto steps = net->steps(x.image, x.features, {.iterations = 3});
  ASSERT_EQ(steps.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(steps[i].sizes(), (at::IntArrayRef{2, 6, 6 << i, 10 << i}));
  EXPECT_TRUE(steps[2].equal(net->forward(x.image, x.features, {.iterations = 3})));
  EXPECT_EQ(net->forward(x.image, x.features, {.iterations = 2, .size = std::pair<int64_t, int64_t>{9, 17}}).sizes(),
            (at::IntArrayRef{2, 6, 9, 17}));
}

TEST(Uplift, two_iterations_are_one_after_the_other) {
  UpliftConfig config = small_config();
  Uplift net(config);
  net->eval();
  stir(net);
  const at::NoGradGuard no_gradients;
  const Inputs x = make_inputs(config, 4, 4);
  const Tensor both = net->forward(x.image, x.features, {.iterations = 2});
  UpliftConfig second = config;  // the same network where twice as many tokens share the image
  second.patch = 4;
  Uplift net_of_second(second);
  net_of_second->eval();
  stir(net_of_second);
  const Tensor once = net->forward(x.image, x.features);
  EXPECT_TRUE(same(net_of_second->forward(x.image, once), both, {1e-5, 1e-5}));
}

// The encoder's last group is computed where it is read alone.
TEST(Uplift, a_sampled_encoder_is_the_whole_one_at_its_pixels) {
  for (const auto& [refines, step] :
       {std::pair(false, EncoderStep::none), {true, EncoderStep::none}, {false, EncoderStep::conv}}) {
    UpliftConfig config = small_config();
    config.encoder_step = step;
    if (refines) config.refiner = {8};
    for (const int64_t patch : {8, 12, 14, 16}) {  // 12: pixels that are no whole step apart
      config.patch = patch;
      Uplift net(config);
      stir(net);
      const at::NoGradGuard no_gradients;
      const Inputs x = make_inputs(config, 3, 2);
      const auto run = [&] { return net->forward(x.image, x.features, {.iterations = 2}); };
      net->eval();
      const Tensor sampled = run();
      // a network in training reads the whole encoder; norms stay as they are
      net->train();
      for (const auto& module : net->modules())
        if (auto* norm = module->as<torch::nn::BatchNorm2dImpl>()) norm->eval();
      EXPECT_TRUE(same(sampled, run(), {1e-5, 1e-5})) << patch;
    }
  }
}

TEST(Uplift, patches_of_14_pixels_are_enlarged_to_16) {
  UpliftConfig config = small_config();
  config.patch = 14;
  Uplift net(config);
  net->eval();
  const at::NoGradGuard no_gradients;
  EXPECT_EQ(net->encode(random_tensor({1, 3, 28, 42}, 1)).back().sizes(), (at::IntArrayRef{1, 8, 32, 48}));
}

TEST(Uplift, folded_batch_norms_change_nothing) {
  const UpliftConfig config = small_config();
  Uplift net(config);
  stir(net);
  net->eval();
  const at::NoGradGuard no_gradients;
  const Inputs x = make_inputs(config, 3, 4);
  const Tensor before = net->forward(x.image, x.features, {.iterations = 2});
  const size_t names = net->named_parameters().size();
  net->fold_batch_norms();
  EXPECT_TRUE(same(net->forward(x.image, x.features, {.iterations = 2}), before, {1e-5, 1e-5}));
  EXPECT_EQ(net->named_parameters().size(), names);
}

TEST(Uplift, noise_is_none_or_that_of_its_seed) {
  UpliftConfig config = small_config();
  config.noise = 2, config.refiner = {8}, config.norm = ConvNorm::layer;
  Uplift net(config);
  net->eval();
  const at::NoGradGuard no_gradients;
  const Inputs x = make_inputs(config, 3, 4);
  const auto run = [&](std::optional<uint64_t> seed) {
    return net->forward(x.image, x.features, {.iterations = 2, .noise_seed = seed});
  };
  EXPECT_TRUE(run({}).equal(run({})));
  EXPECT_TRUE(run(1).equal(run(1)));
  EXPECT_FALSE(same(run(1), run(2), {1e-4, 1e-4}));
  EXPECT_FALSE(same(run(1), run({}), {1e-4, 1e-4}));
}

TEST(Uplift, options_change_the_result_and_all_parameters_learn) {
  const Inputs x = make_inputs(small_config(), 3, 4);
  const auto run = [&](const UpliftConfig& config) {
    Uplift net(config, 3);
    const Tensor out = net->forward(x.image, x.features, {.iterations = 2});
    out.square().sum().backward();
    for (const auto& item : net->named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
    return out.detach();
  };
  UpliftConfig config = small_config();
  const Tensor base = run(config);
  config.offsets = 5;
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
  config.offsets.reset();
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
  config = small_config(), config.shares_encoder = false;
  EXPECT_FALSE(same(run(config), base, {1e-4, 1e-4}));
  config = small_config(), config.weights = attention::AttenderWeights::largest;
  Uplift largest(config, 3);
  EXPECT_FALSE(same(largest->forward(x.image, x.features, {.iterations = 2}), base, {1e-4, 1e-4}));
}

// The network itself is compared with the one of Python, which is compared with plain functions.
TEST(Uplift, steps_of_the_encoder_and_of_the_decoder) {
  for (const EncoderStep step : {EncoderStep::none, EncoderStep::conv, EncoderStep::max})
    for (const size_t groups : {1, 2, 3}) {
      UpliftConfig config = small_config();
      config.encoder_step = step, config.adds_smaller = true;
      config.decoder.assign(groups, {20});
      ASSERT_EQ(config.factor(), 1 << (groups - 1));
      Uplift net(config);
      stir(net);
      net->eval();
      const Inputs x = make_inputs(config, 3, 5);
      const auto steps = net->steps(x.image, x.features, {.iterations = 2});
      const int64_t f = config.factor();
      EXPECT_EQ(steps[0].sizes(), (at::IntArrayRef{1, 6, 3 * f, 5 * f}));
      EXPECT_EQ(steps[1].sizes(), (at::IntArrayRef{1, 6, 3 * f * f, 5 * f * f}));
      const auto maps = net->encode(x.image);
      const int64_t shrunk = step == EncoderStep::none ? 1 : 4;
      EXPECT_EQ(maps.back().sizes(), (at::IntArrayRef{1, 8, 24 / shrunk, 40 / shrunk}));
      EXPECT_EQ(net->named_parameters().contains("encoder.down_2.down.0.bias"), step == EncoderStep::conv);
      EXPECT_EQ(net->named_buffers().contains("encoder.down_1.down.1.running_mean"), step == EncoderStep::conv);
      EXPECT_EQ(net->named_parameters().contains("decoder.up_2.up.weight"), groups == 3);
      steps[1].square().sum().backward();
      for (const auto& item : net->named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
    }
}

// 2 x 2 cells of 4 x 4 pixels, one convolution of 3 x 3 and one of 1 x 1 everywhere, four times as large.
TEST(Uplift, multiply_adds_of_steps) {
  UpliftConfig config{.channels = 2, .patch = 4, .encoder = {{2}, {4}, {4}}, .decoder = {{4}, {4}, {8}}};
  config.encoder_step = EncoderStep::conv, config.convs = 1, config.offsets = 5;
  const UpliftCost cost = count_macs(config, 2, 2, 1);
  const double at_8 = 64 * (9 * 3 * 2 + 4), at_4 = 16 * (9 * 2 * 2 + 9 * 2 * 4 + 16), at_2 = 4 * (9 * 16 + 9 * 16 + 16);
  EXPECT_EQ(cost.encoder, at_8 + at_4 + at_2);
  const double first = 4 * (9 * 6 * 4 + 16), second = 16 * (16 + 9 * 8 * 4 + 16), third = 64 * (16 + 9 * 6 * 8 + 64);
  ASSERT_EQ(cost.decoder.size(), 1u);
  EXPECT_EQ(cost.decoder[0], first + second + third);
  EXPECT_EQ(cost.attender[0], 64 * (8 * 5 + 5 * 2));
}

TEST(Uplift, refuses_inputs_that_do_not_fit) {
  Uplift net(small_config());
  const Inputs x = make_inputs(small_config(), 3, 4);
  const auto message = [&](const Tensor& image, const Tensor& features, int64_t iterations) {
    return message_of([&] { net->forward(image, features, {.iterations = iterations}); });
  };
  EXPECT_EQ(message(x.image, x.features, 0), "uplift: iterations must be >= 1, got 0");
  EXPECT_EQ(message(x.image, x.features.narrow(1, 0, 5), 1), "uplift: features must be [B, 6, H, W], got [1, 5, 3, 4]");
  EXPECT_EQ(message(x.image.narrow(2, 0, 20), x.features, 1),
            "uplift: the image must be [1, 3, 24, 32] (8 pixels a token), got [1, 3, 20, 32]");
  UpliftConfig config = small_config();
  for (const EncoderStep step : {EncoderStep::conv, EncoderStep::max}) {
    config.encoder_step = step, config.patch = 2;
    Uplift thin(config);
    thin->eval();
    const Inputs pixels = make_inputs(config, 1, 1);
    EXPECT_EQ(message_of([&] { thin->forward(pixels.image, pixels.features); }),
              "uplift: the encoder's maps must be 2 x 2 or more where a step halves them, got 1 x 1 before group 2");
  }
  config.decoder.assign(4, {20});
  EXPECT_EQ(
      message_of([&] { Uplift{config}; }),
      "uplift: the decoder must have 1 to 5 groups, the encoder as many or more, and every group a width, got 4 and 3 "
      "groups");
}

}  // namespace
}  // namespace foveate::models
