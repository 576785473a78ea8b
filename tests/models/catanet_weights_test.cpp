// Configurations of CATANet from files of weights: ours, those of the released code, and what is neither.
#include "foveate/models/vision/catanet_weights.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using at::Tensor;
using test::message_of;
using test::random_tensor;

CataNetConfig small_config() {
  CataNetConfig config{.upscale = 2, .dim = 8, .qk_dim = 4, .mlp_dim = 12, .heads = 2};
  config.patches = {5, 7}, config.centres = {3, 4}, config.groups = {16, 8};
  return config;
}

void expect_equal(const CataNetConfig& got, const CataNetConfig& want) {
  EXPECT_EQ(got.upscale, want.upscale);
  EXPECT_EQ(got.channels, want.channels);
  EXPECT_EQ(got.dim, want.dim);
  EXPECT_EQ(got.qk_dim, want.qk_dim);
  EXPECT_EQ(got.mlp_dim, want.mlp_dim);
  EXPECT_EQ(got.heads, want.heads);
  EXPECT_EQ(got.patches, want.patches);
  EXPECT_EQ(got.groups, want.groups);
  EXPECT_EQ(got.window, want.window);
  EXPECT_EQ(got.merge, want.merge);
  EXPECT_EQ(got.aggregates, want.aggregates);
  EXPECT_EQ(got.uses_centres, want.uses_centres);
  if (want.aggregates) {
    EXPECT_EQ(got.centres, want.centres);
  }
}

// The tensors as a file has them, each name behind a prefix.
std::vector<io::StoredTensor> stored(const torch::nn::Module& net, const std::string& prefix = "") {
  std::vector<io::StoredTensor> all;
  for (const auto& item : net.named_parameters()) all.push_back(store(prefix + item.key(), item.value()));
  for (const auto& item : net.named_buffers()) all.push_back(store(prefix + item.key(), item.value()));
  return all;
}

class CataNetWeights : public testing::Test {
 protected:
  const test::TemporaryFolder folder_{"catanet"};
  const std::string file_ = folder_.file("net.safetensors");
};

TEST_F(CataNetWeights, what_is_saved_comes_back_with_every_option) {
  std::vector<CataNetConfig> configs(7, small_config());
  configs[1].upscale = 1, configs[2].upscale = 3, configs[3].upscale = 4;
  configs[4].aggregates = false;
  configs[5].window = attention::GroupWindow::both, configs[5].merge = attention::CentreMerge::joint;
  configs[6].uses_centres = false, configs[6].heads = 4, configs[6].qk_dim = 8;
  const Tensor image = random_tensor({1, 3, 13, 15}, 1);
  for (const CataNetConfig& config : configs) {
    CataNet net(config, 5);
    if (config.aggregates) net->forward(random_tensor({2, 3, 12, 12}, 2));  // centres that are kept
    net->eval();
    save_catanet(*net, file_);
    const CataNetConfig found = catanet_config(file_);
    expect_equal(found, config);
    CataNet other(found, 6);
    load_catanet(*other, file_);
    other->eval();
    const at::NoGradGuard no_gradients;
    EXPECT_TRUE(other->forward(image).equal(net->forward(image)));
  }
}

TEST_F(CataNetWeights, of_the_released_code_are_of_the_published_shape) {
  for (const int64_t upscale : {1, 2, 3, 4}) {
    const CataNet net(CataNetConfig{.upscale = upscale});
    for (const char* prefix : {"", "params.", "params_ema."})
      expect_equal(catanet_config(stored(*net, prefix), {{"format", "pt"}}, "f"), CataNetConfig{.upscale = upscale});
  }
}

TEST_F(CataNetWeights, averaged_ones_are_preferred) {
  const CataNet averaged(small_config(), 1), last(small_config(), 2);
  std::vector<io::StoredTensor> all = stored(*last, "params.");
  std::ranges::copy(stored(*averaged, "params_ema."), std::back_inserter(all));
  const Tensor other = at::zeros({3});
  all.push_back(store("optimizer", other));
  io::write_safetensors(file_, all);
  CataNet net(small_config(), 3);
  load_catanet(*net, file_);
  EXPECT_TRUE(net->named_parameters()["last_conv.weight"].equal(averaged->named_parameters()["last_conv.weight"]));
}

TEST_F(CataNetWeights, that_do_not_fit_are_named) {
  const Tensor x = at::zeros({3});
  io::write_safetensors(file_, std::vector{store("head.weight", x), store("last_conv.bias", x)});
  CataNet net(catanet_config(file_));
  const std::string message = message_of([&] { load_catanet(*net, file_); });
  EXPECT_TRUE(message.starts_with(file_ + ": the tensors must be those of the model, got missing first_conv.weight,"));
  EXPECT_TRUE(message.ends_with(" more; unexpected 'head.weight'")) << message;

  const CataNet small(small_config());
  auto wrong = stored(*small);
  const auto conv = std::ranges::find(wrong, "upconv.weight", &io::StoredTensor::name);
  const Tensor narrow = at::zeros({31, 8, 3, 3});
  *conv = store("upconv.weight", narrow);
  io::write_safetensors(file_, wrong, {{"foveate", "catanet 1"}, {"heads", "2"}});
  CataNet three(catanet_config(file_));
  EXPECT_EQ(message_of([&] { load_catanet(*three, file_); }),
            file_ +
                ": the tensors must be those of the model, got of another shape upconv.weight [31, 8, 3, 3] for "
                "[72, 8, 3, 3], upconv.bias [32] for [72]");
}

TEST_F(CataNetWeights, sizes_and_metadata_out_of_range_are_refused) {
  const CataNet net(small_config());
  const auto refusal = [&](const Metadata& metadata) {
    return message_of([&] { catanet_config(stored(*net), metadata, "f"); });
  };
  const auto with = [&](const std::string& key, const std::string& value) {
    return refusal({{"foveate", "catanet 1"}, {key, value}});
  };
  EXPECT_EQ(refusal({{"foveate", "checkpoint 1"}}),
            "f: foveate must be 'catanet 1', got 'checkpoint 1': these are no weights of a CATANet");
  EXPECT_EQ(with("heads", "two"), "f: heads must be 1 .. 4096, got 'two'");
  EXPECT_EQ(with("heads", "0"), "f: heads must be 1 .. 4096, got 0");
  EXPECT_EQ(with("window", "all"), "f: window must be own | next | both, got 'all'");
  EXPECT_EQ(with("uses_centres", "1"), "f: uses_centres must be true | false, got '1'");
  for (const char* text : {"5", "5,7,9", "5,x", "5,", ",", "5,2", "5,4097", "5 7"})
    EXPECT_EQ(with("patches", text), fmt::format("f: patches must be 2 numbers 3 .. 4096, got '{}'", text));
  EXPECT_EQ(with("groups", "0,8"), "f: groups must be 2 numbers 1 .. 16777216, got '0,8'");
  auto wide = stored(*net);
  const auto conv = std::ranges::find(wide, "first_conv.weight", &io::StoredTensor::name);
  conv->shape = {5000, 3, 3, 3};
  EXPECT_EQ(message_of([&] { catanet_config(wide, {}, "f"); }),
            "f: sizes of first_conv.weight must be 1 .. 4096, got [5000, 3, 3, 3]");
  EXPECT_EQ(with("heads", "3"), "f: dim and qk_dim must be multiples of 3 heads, got 8 and 4");
  conv->shape = {};
  EXPECT_EQ(catanet_config(wide, {}, "f").dim, 40);  // loading says what is wrong
}

}  // namespace
}  // namespace foveate::models
