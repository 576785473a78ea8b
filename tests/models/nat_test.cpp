// Neighborhood attention transformers: published parameter and multiply-add counts, names, and what their options do.
#include "foveate/models/vision/nat.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "foveate/models/vision/state_dict.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using namespace foveate::test;
using at::Tensor;

TEST(Nat, parameter_counts_are_the_published_ones) {
  const std::pair<const char*, int64_t> counts[] = {
      {"dinat_mini", 19984174}, {"dinat_tiny", 27901582}, {"dinat_s_tiny", 28288354}};
  for (const auto& [name, count] : counts)
    EXPECT_EQ(count_parameters(*Nat(nat_config(name), std::nullopt)), count) << name;
  const std::pair<const char*, double> millions[] = {
      {"dinat_small", 50.72}, {"dinat_s_small", 49.61}, {"dinat_s_base", 87.77}};
  for (const auto& [name, printed] : millions)
    EXPECT_NEAR(double(count_parameters(*Nat(nat_config(name), std::nullopt))) / 1e6, printed, 0.005) << name;
  NatConfig base = nat_config("dinat_base");  // published without layer scale
  base.layer_scale = {};
  EXPECT_NEAR(double(count_parameters(*Nat(base, std::nullopt))) / 1e6, 89.74, 0.005);
  EXPECT_NEAR(double(count_parameters(*Nat(nat_config("dinat_large"), std::nullopt))) / 1e6, 200.9, 0.05);
  const std::pair<const char*, double> rounded[] = {
      {"nat_isotropic_small", 22}, {"dinat_isotropic_base", 86}, {"vitrpb_small", 22}};
  for (const auto& [name, printed] : rounded)
    EXPECT_NEAR(double(count_parameters(*Nat(nat_config(name), std::nullopt))) / 1e6, printed, 0.5) << name;
}

TEST(Nat, multiply_adds_are_the_published_ones) {
  const std::pair<const char*, double> billions[] = {
      {"nat_mini", 2.70},     {"dinat_tiny", 4.30},    {"nat_small", 7.78},    {"dinat_base", 13.68},
      {"dinat_s_tiny", 4.49}, {"dinat_s_small", 8.74}, {"dinat_s_base", 15.43}};
  for (const auto& [name, printed] : billions)
    EXPECT_NEAR(count_macs(nat_config(name), 224, 224) / 1e9, printed, 0.006) << name;  // DiNAT_s-Base: 15.436
  const std::pair<const char*, double> rounded[] = {{"dinat_large", 30.5},        {"dinat_s_large", 34.5},
                                                    {"nat_isotropic_small", 4.3}, {"dinat_isotropic_base", 16.9},
                                                    {"vitrpb_small", 4.6},        {"vitrpb_base", 17.5}};
  for (const auto& [name, printed] : rounded)
    EXPECT_NEAR(count_macs(nat_config(name), 224, 224) / 1e9, printed, 0.05) << name;
}

NatConfig small_config() {
  NatConfig c;
  c.embed = 8, c.depths = {2, 2}, c.heads = {2, 2}, c.mlp_ratio = 2, c.kernel = 3, c.classes = 5;
  c.dilations = {{1, 2}, {1, 2}};
  return c;
}

std::set<std::string> names(const torch::nn::Module& module) {
  std::set<std::string> all;
  for (const auto& item : module.named_parameters()) all.insert(item.key());
  return all;
}

TEST(Nat, parameters_have_the_names_of_the_published_checkpoints) {
  NatConfig c = small_config();
  c.layer_scale = 1e-5, c.outputs = {0, 1};
  const auto own = names(*Nat(c));
  for (const char* name :
       {"patch_embed.proj.0.weight", "patch_embed.proj.1.bias", "patch_embed.norm.weight",
        "levels.0.blocks.1.norm1.bias", "levels.1.blocks.0.attn.qkv.weight", "levels.0.blocks.0.attn.rpb",
        "levels.0.blocks.0.attn.proj.bias", "levels.0.blocks.1.mlp.fc2.weight", "levels.1.blocks.1.gamma2",
        "levels.0.downsample.reduction.weight", "levels.0.downsample.norm.bias", "norm.weight", "head.bias",
        "norm0.weight", "norm1.bias"})
    EXPECT_TRUE(own.contains(name)) << name;
  EXPECT_FALSE(own.contains("levels.0.downsample.reduction.bias"));
  const auto patches = names(*Nat(nat_config("dinat_s_tiny"), std::nullopt));
  for (const char* name :
       {"patch_embed.proj.weight", "layers.2.blocks.5.attn.rpb", "layers.2.downsample.reduction.weight"})
    EXPECT_TRUE(patches.contains(name)) << name;
  const auto one = names(*Nat(nat_config("vitrpb_small"), std::nullopt));
  for (const char* name : {"layers.11.attn.rpb", "layers.0.mlp.fc1.weight", "norm.bias"})
    EXPECT_TRUE(one.contains(name)) << name;
}

TEST(Nat, convolutions_make_tokens_of_other_powers_of_two) {
  const NatConfig published = small_config();
  for (const int64_t patch : {2, 4, 8}) {
    NatConfig c = published;
    c.patch = patch;
    Nat net(c, 1);
    const auto parameters = net->named_parameters();
    const size_t convolutions = patch == 2 ? 1 : patch == 4 ? 2 : 3;
    double macs = 0;
    for (size_t i = 0; i < 4; ++i) {
      const std::string name = fmt::format("patch_embed.proj.{}.weight", i);
      ASSERT_EQ(parameters.contains(name), i < convolutions) << name;
      if (i < convolutions) macs += double(parameters[name].numel()) * double(64 * 96) / double(4 << (2 * i));
    }
    EXPECT_EQ(net->features(random_tensor({1, 3, 64, 96}, 1)).sizes(),
              (at::IntArrayRef{1, c.channels(1), 64 / (2 * patch), 96 / (2 * patch)}));
    // What follows costs as much on the maps of a smaller image.
    NatConfig patches = c;
    patches.embeds_patches = true;
    EXPECT_EQ(count_macs(c, 64, 96) - macs, count_macs(patches, 64, 96) - double(64 * 96) * double(3 * c.embed));
  }
}

TEST(Nat, gives_class_scores_and_maps_of_any_size_and_learns) {
  NatConfig c = small_config();
  c.outputs = {0, 1};
  Nat net(c, 3);
  const Tensor image = random_tensor({2, 3, 57, 75}, 1);
  const Tensor scores = net->forward(image);
  EXPECT_EQ(scores.sizes(), at::IntArrayRef({2, 5}));
  const auto maps = net->maps(image);
  EXPECT_EQ(maps[0].sizes(), at::IntArrayRef({2, 8, 15, 19}));
  EXPECT_EQ(maps[1].sizes(), at::IntArrayRef({2, 16, 8, 10}));
  scores.square().sum().backward();
  for (const auto& item : net->named_parameters())
    if (!item.key().starts_with("norm0") && !item.key().starts_with("norm1")) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_GT(item.value().grad().abs().sum().item<double>(), 0) << item.key();
    }
}

TEST(Nat, linear_weights_begin_with_the_deviation_asked_for_or_that_of_their_inputs) {
  NatConfig c = small_config();
  c.embed = 64;
  const auto deviation = [&](const std::string& name) {
    return Nat(c, 1)->named_parameters()[name].std().item<double>();
  };
  EXPECT_NEAR(deviation("levels.0.blocks.0.attn.qkv.weight"), 0.02, 0.001);
  c.deviation = 0;
  EXPECT_NEAR(deviation("levels.0.blocks.0.attn.qkv.weight"), 1 / 8.0, 0.005);
  EXPECT_NEAR(deviation("levels.0.blocks.0.mlp.fc2.weight"), 1 / std::sqrt(128.0), 0.005);
  EXPECT_NEAR(deviation("levels.0.blocks.0.attn.rpb"), 0.02, 0.005);
  c.deviation = -1;
  EXPECT_EQ(message_of([&] { Nat(c, 1); }), "nat: deviation must be >= 0, got -1");
}

TEST(Nat, patches_are_merged_where_sizes_are_odd) {
  NatConfig c = small_config();
  c.embeds_patches = c.merges_patches = true;
  EXPECT_EQ(Nat(c)->features(random_tensor({1, 3, 57, 75}, 1)).sizes(), at::IntArrayRef({1, 16, 8, 10}));
}

TEST(Nat, dilations_of_one_are_a_nat) {
  NatConfig c = small_config();
  c.dilations = {{1, 1}, {1, 1}};
  NatConfig plain = c;
  plain.dilations = {};
  const Tensor image = random_tensor({1, 3, 40, 40}, 1);
  EXPECT_TRUE(same(Nat(c, 1)->forward(image), Nat(plain, 1)->forward(image), {0, 0}));
  EXPECT_FALSE(same(Nat(small_config(), 1)->forward(image), Nat(plain, 1)->forward(image), {1e-6, 0}));
}

TEST(Nat, small_maps_are_padded_with_keys_or_refused) {
  const at::NoGradGuard no_gradients;
  NatAttention pads(8, 2, 3, 4, true), refuses(8, 2, 3, 4, false);
  const Tensor x = random_tensor({1, 7, 13, 8}, 1);
  const Tensor by_hand = pads->forward(at::constant_pad_nd(x, {0, 0, 0, 0, 0, 5})).narrow(1, 0, 7);
  EXPECT_TRUE(same(pads->forward(x), by_hand, {1e-6, 1e-6}));
  EXPECT_EQ(message_of([&] { refuses->forward(x); }),
            "nat: maps must be at least kernel * dilation = 12 x 12, got 7 x 13; pads_small_maps pads them");
}

TEST(Nat, drops_whole_paths_by_its_random_numbers_alone) {
  NatConfig c = small_config();
  c.drop_path = 0.8;
  Nat net(c, 2);
  const Tensor image = random_tensor({4, 3, 32, 32}, 1);
  Random first(7), again(7), other(8);
  const Tensor a = net->forward(image, &first);
  EXPECT_TRUE(same(net->forward(image, &again), a, {0, 0}));
  EXPECT_FALSE(same(net->forward(image, &other), a, {1e-6, 0}));
  EXPECT_FALSE(same(net->forward(image), a, {1e-6, 0}));
}

TEST(Nat, layer_scale_shrinks_branches) {
  NatConfig c = small_config();
  c.layer_scale = 0;
  const Tensor image = random_tensor({1, 3, 32, 32}, 1);
  NatConfig shallow = c;
  shallow.depths = {1, 1}, shallow.dilations = {};
  Nat deep(c, 2), flat(shallow, 2);
  const at::NoGradGuard no_gradients;
  for (auto& item : flat->named_parameters())
    for (auto& same_name : deep->named_parameters())
      if (same_name.key() == item.key()) item.value().copy_(same_name.value());
  EXPECT_TRUE(same(flat->forward(image), deep->forward(image), {1e-6, 1e-6}));  // closed branches change nothing
}

TEST(Nat, gradients_are_those_of_finite_differences) {
  Nat net(small_config(), 5);
  net->to(at::kDouble);
  const Tensor image = random_tensor({1, 3, 24, 24}, 1, at::kDouble), d = random_tensor({1, 5}, 2, at::kDouble);
  const auto loss = [&] { return (net->forward(image) * d).sum(); };
  loss().backward();
  const at::NoGradGuard no_gradients;
  for (const char* name : {"levels.0.blocks.1.attn.rpb", "levels.0.blocks.0.attn.qkv.weight",
                           "levels.1.blocks.1.norm1.weight", "levels.0.downsample.reduction.weight"}) {
    Tensor p = net->named_parameters()[name];
    const Tensor flat = p.view(-1), grad = p.grad().reshape(-1);
    for (int64_t i = 0; i < flat.numel(); i += std::max<int64_t>(flat.numel() / 7, 1)) {
      const double before = flat[i].item<double>(), step = 1e-5;
      flat[i] = before + step;
      const double up = loss().item<double>();
      flat[i] = before - step;
      const double down = loss().item<double>();
      flat[i] = before;
      EXPECT_NEAR(grad[i].item<double>(), (up - down) / (2 * step), 1e-7) << name << " " << i;
    }
  }
}

// The same weights as Hugging Face's files name them: queries, keys and values apart, both layer scales together.
std::string hugging_face_file(const Nat& net) {
  std::map<std::string, Tensor> tensors;
  const auto replaced = [](std::string name, std::string_view from, std::string_view to) {
    if (const size_t at = name.find(from); at != name.npos) name.replace(at, from.size(), to);
    return name;
  };
  for (const auto& item : net->named_parameters()) {
    std::string name = item.key();
    const Tensor t = item.value().detach();
    if (name.starts_with("norm") && name[4] != '.') {  // of an output: stages count from 1
      tensors[fmt::format("hidden_states_norms.stage{}{}", name[4] - '0' + 1, name.substr(5))] = t;
      continue;
    }
    for (const auto& [from, to] :
         {std::pair("patch_embed.proj", "embeddings.patch_embeddings.projection"),
          std::pair("patch_embed.norm", "embeddings.norm"), std::pair(".blocks.", ".layers."),
          std::pair("norm1.", "layernorm_before."), std::pair("norm2.", "layernorm_after."),
          std::pair("attn.proj", "attention.output.dense"), std::pair("attn.rpb", "attention.self.rpb"),
          std::pair("mlp.fc1", "intermediate.dense"), std::pair("mlp.fc2", "output.dense"),
          std::pair("head.", "classifier.")})
      name = replaced(name, from, to);
    if (name.starts_with("levels")) name = "encoder." + name;
    if (name.starts_with("norm.")) name = "layernorm" + name.substr(4);
    if (net->config().classes > 0 && !name.starts_with("classifier")) name = "dinat." + name;
    if (name.find("attn.qkv") != name.npos) {
      const auto parts = t.chunk(3);
      for (size_t i = 0; i < 3; ++i)
        tensors[replaced(name, "attn.qkv",
                         std::vector{"attention.self.query", "attention.self.key", "attention.self.value"}[i])] =
            parts[i].contiguous();
    } else if (name.ends_with("gamma1")) {
      tensors[replaced(name, "gamma1", "layer_scale_parameters")] =
          at::stack({t, net->named_parameters()[replaced(item.key(), "gamma1", "gamma2")].detach()});
    } else if (!name.ends_with("gamma2")) {
      tensors[name] = t.contiguous();
    }
  }
  std::vector<io::StoredTensor> stored;
  for (const auto& [name, t] : tensors) stored.push_back(store(name, t));
  const std::string file = testing::TempDir() + "nat_hugging_face.safetensors";
  io::write_safetensors(file, stored);
  return file;
}

TEST(Nat, weights_load_by_the_names_of_both_kinds_of_checkpoints) {
  NatConfig c = small_config();
  c.layer_scale = 0.5;
  Nat net(c, 1), published(c, 2), other(c, 3);
  const Tensor image = random_tensor({1, 3, 32, 32}, 1);
  const std::string file = testing::TempDir() + "nat_published.safetensors";
  save_state_dict(*net, file);
  load_nat(*published, file);
  EXPECT_TRUE(same(published->forward(image), net->forward(image), {0, 0}));
  load_nat(*other, hugging_face_file(net));
  EXPECT_TRUE(same(other->forward(image), net->forward(image), {0, 0}));
}

TEST(Nat, a_backbone_loads_what_classifiers_and_backbones_were_saved_as) {
  NatConfig c = small_config();
  const Nat classifier(c, 1);
  const std::string file = testing::TempDir() + "nat_classifier.safetensors";
  save_state_dict(*classifier, file);
  c.outputs = {0, 1};
  Nat whole(c, 2);
  load_nat(*whole, file);
  c.classes = 0;
  Nat net(c, 3), other(c, 4), third(c, 5);
  load_nat(*net, file);
  EXPECT_FALSE(net->named_parameters().contains("head.weight") || net->named_parameters().contains("norm.weight"));
  const Tensor image = random_tensor({1, 3, 32, 32}, 1);
  const auto want = whole->maps(image);
  for (Tensor t : {net->named_parameters()["norm0.weight"], net->named_parameters()["norm1.bias"]})
    t.detach().add_(random_tensor(t.sizes(), 6));  // as if it had learned
  const auto got = net->maps(image);
  EXPECT_FALSE(same(got[0], want[0], {1e-3, 0}));
  save_state_dict(*net, file);
  load_nat(*other, file);
  load_nat(*third, hugging_face_file(net));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(same(other->maps(image)[i], got[i], {0, 0}));
    EXPECT_TRUE(same(third->maps(image)[i], got[i], {0, 0}));
  }
  const std::string message = message_of([&] { load_nat(*Nat(small_config()), file); });
  EXPECT_NE(message.find("head.weight"), message.npos) << message;  // a classifier needs its head
  EXPECT_EQ(message_of([&] { net->forward(image); }),
            "nat: classes must be >= 1 for scores and their features, got 0; maps has this backbone's");
}

TEST(Nat, paths_are_dropped_on_the_way_to_maps_too) {
  NatConfig c = small_config();
  c.outputs = {1}, c.drop_path = 0.9, c.deviation = 0.5;
  Nat net(c, 3);
  const Tensor image = random_tensor({4, 3, 32, 32}, 1);
  Random random(7, 0);
  EXPECT_TRUE(same(net->maps(image)[0], net->maps(image)[0], {0, 0}));
  EXPECT_FALSE(same(net->maps(image, &random)[0], net->maps(image)[0], {1e-2, 0}));
}

TEST(Nat, position_biases_of_another_kernel_are_interpolated) {
  NatConfig wider = small_config();
  wider.kernel = 5;
  Nat net(small_config(), 1), wide(wider, 2);
  const std::string file = testing::TempDir() + "nat_kernel.safetensors";
  save_state_dict(*net, file);
  load_nat(*wide, file);
  const Tensor small = net->named_parameters()["levels.0.blocks.0.attn.rpb"],
               large = wide->named_parameters()["levels.0.blocks.0.attn.rpb"];
  EXPECT_EQ(large.sizes(), at::IntArrayRef({2, 9, 9}));
  EXPECT_TRUE(same(large.select(1, 4).select(1, 4), small.select(1, 2).select(1, 2), {1e-6, 0}));  // the query itself
}

TEST(Nat, published_dilations_end_with_the_largest_that_fits) {
  EXPECT_EQ(nat_config("dinat_mini").dilations,
            (std::vector<std::vector<int64_t>>{{1, 8, 1}, {1, 4, 1, 4}, {1, 2, 1, 2, 1, 2}, {1, 1, 1, 1, 1}}));
  EXPECT_EQ(nat_dilations("detection", {2, 2, 6, 2}),
            (std::vector<std::vector<int64_t>>{{1, 28}, {1, 14}, {1, 3, 1, 5, 1, 7}, {1, 3}}));
  EXPECT_EQ(nat_dilations("detection", {3, 4, 6, 5})[1], (std::vector<int64_t>{1, 7, 1, 14}));
  for (const auto& name :
       {"dinat_mini", "dinat_large_384", "dinat_s_base", "dinat_s_large_384", "dinat_large_384_11x11"}) {
    const NatConfig c = nat_config(name);
    for (size_t level = 0; level < 4; ++level)
      for (const int64_t d : c.dilations[level]) EXPECT_LE(c.kernel * d, c.image >> (level + 2)) << name;
  }
}

TEST(Nat, says_what_does_not_fit) {
  const auto refused = [](const std::function<void(NatConfig&)>& change) {
    NatConfig c = small_config();
    change(c);
    return message_of([&] { Nat net(c); });
  };
  EXPECT_EQ(refused([](NatConfig& c) { c.kernel = 4; }), "nat: kernel must be odd and >= 3, got 4");
  EXPECT_EQ(
      refused([](NatConfig& c) { c.patch = 6; }),
      "nat: where convolutions make tokens patch must be 2, 4, 8 .. and embed a multiple of half of it, got 6 and 8");
  EXPECT_EQ(refused([](NatConfig& c) {
              c.heads = {2, 3};
            }),
            "nat: channels must be a multiple of heads, got 16 and 3 at level 1");
  EXPECT_EQ(refused([](NatConfig& c) {
              c.dilations = {{1, 2}, {1}};
            }),
            "nat: dilations must have one number for each layer of each level, got 1 for 2 at level 1");
  EXPECT_EQ(refused([](NatConfig& c) {
              c.dilations = {{1, 0}, {1, 1}};
            }),
            "nat: dilations must be >= 1, got 0 at level 0");
  EXPECT_EQ(refused([](NatConfig& c) { c.classes = 0; }), "nat: classes must be >= 1, or 0 with outputs, got 0");
  EXPECT_EQ(refused([](NatConfig& c) { c.outputs = {2}; }), "nat: outputs must be levels 0 .. 1, got 2");
  EXPECT_EQ(refused([](NatConfig& c) { c.drop_path = 1; }), "nat: drop_path must be in [0, 1), got 1");
  EXPECT_EQ(message_of([] {
              Nat(small_config())->forward(random_tensor({1, 1, 32, 32}, 1));
            }),
            "nat: image must be [B, 3, H, W], got [1, 1, 32, 32]");
  EXPECT_TRUE(message_of([] { nat_config("nat"); }).starts_with("nat: unknown model 'nat', known: dinat_base "));
}

}  // namespace
}  // namespace foveate::models
