// Parameters and buffers of vision models to and from files, and what is said where a file is another model's.
#include "foveate/models/vision/state_dict.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"
#include "foveate/models/vision/initialise.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"
#include "tests/support/torch_writer.h"

namespace foveate::models {
namespace {

using namespace foveate::test;
using at::Tensor;

struct Small : torch::nn::Module {
  Small() {
    weight = register_parameter("weight", at::zeros({2, 3}));
    inner = register_module("inner", std::make_shared<torch::nn::Module>());
    bias = inner->register_parameter("bias", at::zeros({2}));
    count = inner->register_buffer("count", at::scalar_tensor(0, at::kLong));
    flag = inner->register_buffer("flag", at::scalar_tensor(false, at::kBool));
  }
  std::shared_ptr<torch::nn::Module> inner;
  Tensor weight, bias, count, flag;
};

void fill_some(Small& model) {
  initialise(model, 3, [](std::string_view, const Tensor& t, Random& random) { fill_normal(t, 1, random); });
  model.count.fill_(7), model.flag.fill_(true);
}

TEST(StateDict, what_is_saved_comes_back) {
  const TemporaryFile file("small.safetensors", "");
  Small model, other;
  fill_some(model);
  save_state_dict(model, file.path());
  load_state_dict(other, file.path());
  EXPECT_TRUE(other.weight.equal(model.weight));
  EXPECT_TRUE(other.bias.equal(model.bias));
  EXPECT_EQ(other.count.item<int64_t>(), 7);
  EXPECT_TRUE(other.flag.item<bool>());
  EXPECT_TRUE(other.weight.requires_grad());
  EXPECT_EQ(count_parameters(model), 8);
}

TEST(StateDict, names_and_dtypes_of_a_file_may_be_others) {
  Small model, other;
  fill_some(model);
  const Tensor weight = model.weight.detach().to(at::kDouble), bias = model.bias.detach().to(at::kBFloat16);
  const std::vector<io::StoredTensor> tensors = {store("net.weight", weight), store("net.inner.bias", bias),
                                                 store("net.inner.count", model.count),
                                                 store("net.inner.flag", model.flag), store("optimizer", weight)};
  load_state_dict(other, tensors, "file",
                  [](const std::string& name) { return name.starts_with("net.") ? name.substr(4) : std::string(); });
  EXPECT_TRUE(other.weight.equal(model.weight));
  EXPECT_EQ(other.bias.scalar_type(), at::kFloat);
  EXPECT_TRUE(other.bias.equal(bias.to(at::kFloat)));
}

TEST(StateDict, a_file_of_another_model_names_all_that_does_not_fit_and_changes_nothing) {
  Small model;
  const Tensor weight = at::ones({2, 4}), bias = at::ones({2});
  const std::vector<io::StoredTensor> tensors = {store("weight", weight), store("inner.bias", bias),
                                                 store("head", bias)};
  EXPECT_EQ(message_of([&] { load_state_dict(model, tensors, "a.pth"); }),
            "a.pth: the tensors must be those of the model, got missing inner.count, inner.flag; unexpected 'head'; of "
            "another shape weight [2, 4] for [2, 3]");
  EXPECT_TRUE(model.bias.eq(0).all().item<bool>());
  const std::vector<io::StoredTensor> twice = {store("weight", weight), store("weight", weight)};
  EXPECT_NE(message_of([&] { load_state_dict(model, twice, "a"); }).find("given twice 'weight'"), std::string::npos);
}

TEST(StateDict, long_lists_are_cut) {
  Small model;
  const Tensor bias = at::ones({2});
  std::vector<io::StoredTensor> tensors;
  for (int i = 0; i < 30; ++i) tensors.push_back(store("x" + std::to_string(100 + i), bias));
  const std::string message = message_of([&] { load_state_dict(model, tensors, "a"); });
  EXPECT_NE(message.find("'x109' and 20 more"), std::string::npos) << message;
  EXPECT_EQ(message.find("x110"), std::string::npos) << message;
}

TEST(StateDict, files_of_torch_save_are_read) {
  struct One : torch::nn::Module {
    Tensor weight = register_parameter("weight", at::zeros({2}));
  } model;
  const float numbers[2] = {1.5f, -2};
  PickleWriter pickle;
  pickle.raw("}").text("weight").tensor("0", 2, 0, {2}, {1}).raw("s");
  const TemporaryFile file("one.pth",
                           torch_file(pickle.end(), {{"0", std::string(reinterpret_cast<const char*>(numbers), 8)}}));
  load_state_dict(model, file.path());
  EXPECT_EQ(model.weight[0].item<float>(), 1.5f);
  EXPECT_EQ(model.weight[1].item<float>(), -2);
}

TEST(Initialise, a_seed_gives_the_same_numbers_and_distributions_keep_their_bounds) {
  const Tensor a = at::zeros({4000}), b = at::zeros({4000});
  Random first(1), second(1);
  fill_truncated_normal(a, 1.5, first);
  fill_truncated_normal(b, 1.5, second);
  EXPECT_TRUE(a.equal(b));
  EXPECT_LE(a.abs().max().item<float>(), 2);
  fill_uniform(a, 0.3, first);
  EXPECT_LE(a.abs().max().item<float>(), 0.3f);
  EXPECT_NEAR(a.std().item<double>(), 0.3 / std::sqrt(3), 0.01);
  fill_normal(a, 0.5, first);
  EXPECT_NEAR(a.std().item<double>(), 0.5, 0.03);
}

}  // namespace
}  // namespace foveate::models
