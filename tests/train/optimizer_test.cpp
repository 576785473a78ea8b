// AdamW against its definition as plain loops in double.
#include "foveate/train/optimizer.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::random_tensor;

struct Plain {
  double value, rate, decay, sign, mean = 0, square = 0;

  void step(double gradient, double lr, const TrainOptions& o, int64_t t) {
    const double g = sign * gradient;
    value -= lr * rate * decay * value;
    mean = o.beta1 * mean + (1 - o.beta1) * g;
    square = o.beta2 * square + (1 - o.beta2) * g * g;
    const double m = mean / (1 - std::pow(o.beta1, double(t))), s = square / (1 - std::pow(o.beta2, double(t)));
    value -= lr * rate * m / (std::sqrt(s) + 1e-8);
  }
};

TEST(Optimizer, adamw_equals_the_plain_loops) {
  for (const double clip : {0.0, 2.5}) {
    const TrainOptions o{.weight_decay = 0.1, .clip = clip};
    ParameterMap parameters{{"a", {.value = random_tensor({5, 3}, 1).requires_grad_()}},
                            {"b", {.value = random_tensor({7}, 2).requires_grad_(), .rate = 2, .decays = false}},
                            {"c", {.value = random_tensor({2}, 3).requires_grad_(), .ascends = true}},
                            {"unreached", {.value = random_tensor({2}, 4).requires_grad_()}}};
    std::map<std::string, std::vector<Plain>> plain;
    for (const auto& [name, p] : parameters)
      for (int64_t i = 0; i < p.value.numel(); ++i)
        plain[name].push_back({p.value.detach().flatten()[i].item<double>(), p.rate, p.decays ? o.weight_decay : 0,
                               p.ascends ? -1.0 : 1.0});
    AdamW optimizer(parameters, o);
    for (int64_t t = 1; t <= 20; ++t) {
      double squares = 0;
      std::map<std::string, at::Tensor> gradients;
      for (auto& [name, p] : parameters) {
        if (name == "unreached") continue;
        gradients[name] = random_tensor(p.value.sizes(), uint64_t(t) * 10 + name[0]) + 0.3;
        p.value.mutable_grad() = gradients[name].clone();
        squares += gradients[name].to(at::kDouble).square().sum().item<double>();
      }
      const double norm = std::sqrt(squares), share = clip > 0 && norm > clip ? clip / norm : 1;
      EXPECT_NEAR(optimizer.step(0.01 * double(t)), norm, 1e-6 * norm);
      for (auto& [name, all] : plain)
        for (size_t i = 0; i < all.size(); ++i) {
          const double g = gradients.contains(name) ? gradients[name].flatten()[int64_t(i)].item<double>() : 0;
          all[i].step(share * g, 0.01 * double(t), o, t);
        }
    }
    for (const auto& [name, p] : parameters) {
      EXPECT_FALSE(p.value.grad().defined());
      for (int64_t i = 0; i < p.value.numel(); ++i) {
        const double want = plain[name][size_t(i)].value;
        EXPECT_NEAR(p.value.detach().flatten()[i].item<double>(), want, 1e-5 * (1 + std::abs(want))) << name << i;
      }
    }
    EXPECT_EQ(optimizer.steps(), 20);
  }
}

TEST(Optimizer, gradients_that_are_not_finite_change_nothing) {
  for (const double exponent : {1.0, 2.0}) {  // at 0 the slope of the root is inf, of the root of the square 0 inf
    const at::Tensor w = at::tensor({4.0F, 1.0F}).requires_grad_();
    AdamW optimizer({{"w", {.value = w}}}, {});
    const auto step = [&] {
      w.pow(exponent).sqrt().sum().backward();
      optimizer.step(0.1);
    };
    step();
    w.detach()[1].zero_();
    std::map<std::string, at::Tensor> before;
    for (const auto& [name, tensor] : optimizer.state()) before[name] = tensor.clone();
    const std::string message = message_of(step);
    EXPECT_NE(message.find("optimizer: gradients must be finite, got a norm of "), std::string::npos) << message;
    for (const auto& [name, tensor] : optimizer.state()) EXPECT_TRUE(tensor.equal(before[name])) << name;
    EXPECT_EQ(optimizer.steps(), 1);
  }
}

TEST(Optimizer, the_learning_rate_warms_up_and_falls_as_half_a_cosine) {
  const TrainOptions o{.steps = 110, .warmup = 10, .lr = 2};
  EXPECT_DOUBLE_EQ(learning_rate(o, 0), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(o, 9), 2);
  EXPECT_DOUBLE_EQ(learning_rate(o, 10), 2);
  EXPECT_NEAR(learning_rate(o, 35), 1 + std::cos(std::numbers::pi / 4), 1e-12);
  EXPECT_NEAR(learning_rate(o, 60), 1, 1e-12);
  EXPECT_NEAR(learning_rate(o, 110), 0, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate({.steps = 1, .warmup = 0, .lr = 2}, 0), 2);
}

TEST(Optimizer, parameters_that_cannot_be_trained_are_refused) {
  const auto refused = [](const at::Tensor& value) {
    return message_of([&] { AdamW({{"x", {.value = value}}}, {}); });
  };
  EXPECT_EQ(refused(random_tensor({2}, 1)), "optimizer: x must be a contiguous fp32 leaf with a gradient, got Float");
  EXPECT_EQ(refused(random_tensor({2}, 1, at::kDouble).requires_grad_()),
            "optimizer: x must be a contiguous fp32 leaf with a gradient, got Double");
  EXPECT_NE(refused(random_tensor({2, 3}, 1).t().detach().requires_grad_()), "no error");
}

}  // namespace
}  // namespace foveate::train
