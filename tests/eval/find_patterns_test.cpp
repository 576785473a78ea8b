// Gates of key heads, against plain loops in double over a tiny model's queries and keys.
#include "foveate/eval/find_patterns.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/attention/dense.h"
#include "tests/models/tiny.h"

namespace foveate::eval {
namespace {

constexpr attention::Window kStreaming{.size = 6, .sinks = 2};

// What query head `head` loses: the mean over rows of dense attention's weight outside of the streaming window.
double lost_by(const attention::Inputs& in, int64_t head, int64_t model_window) {
  const at::Tensor q = in.q[0][head].to(at::kDouble).contiguous();
  const at::Tensor k = in.k[0][head * in.k.size(1) / in.q.size(1)].to(at::kDouble).contiguous();
  const auto at_row = [](const at::Tensor& t, int64_t row) { return t.const_data_ptr<double>() + row * t.size(1); };
  double lost = 0;
  for (int64_t row = 0; row < q.size(0); ++row) {
    double all = 0, outside = 0;
    for (int64_t key = std::max<int64_t>(0, row - model_window + 1); key <= row; ++key) {
      double logit = 0;
      for (int64_t d = 0; d < q.size(1); ++d) logit += at_row(q, row)[d] * at_row(k, key)[d];
      const double weight = std::exp(logit / std::sqrt(double(q.size(1))));
      all += weight;
      if (row - key >= kStreaming.size && key >= kStreaming.sinks) outside += weight;
    }
    lost += outside / all / double(q.size(0));
  }
  return lost;
}

TEST(FindGates, are_what_streaming_loses_in_the_heads_that_read_a_key_head) {
  const at::NoGradGuard no_grad;
  const models::Decoder decoder = test::tiny_decoder();
  std::vector<int32_t> tokens;
  std::vector<int64_t> ids;
  for (int i = 0; i < 40; ++i) tokens.push_back((i * i + 7 * i) % 250), ids.push_back(tokens.back());
  std::vector<double> shares;
  const auto gates = find_gates(decoder, tokens, kStreaming, [&](double share) { shares.push_back(share); });
  ASSERT_EQ(gates.size(), 3u);
  EXPECT_EQ(shares, (std::vector<double>{1.0 / 3, 2.0 / 3, 1}));
  decoder.forward(at::tensor(ids, at::kLong).unsqueeze(0), 0, [&](const attention::Inputs& in) {
    const auto& layer = gates[size_t(in.layer)];
    EXPECT_EQ(layer.size(), 2u);
    std::vector<double> lost;
    for (int64_t head = 0; head < 4; ++head) lost.push_back(lost_by(in, head, in.layer == 1 ? 9 : 40));
    for (size_t key_head = 0; key_head < 2; ++key_head) {
      const double want = (lost[2 * key_head] + lost[2 * key_head + 1]) / 2;
      EXPECT_NEAR(layer[key_head], want, 1e-5) << "layer " << in.layer;
      EXPECT_GT(std::abs(want - (lost[key_head] + lost[key_head + 2]) / 2), 1e-3);  // heads grouped the other way
      EXPECT_GT(want, 0.01);
      EXPECT_LT(want, 0.99);
    }
    return attention::Dense{}.attend(in);
  });
  EXPECT_EQ(gates_as_lines({{0.5, 0.25}, {1, 0}}), "0.500000\t0.250000\n1.000000\t0.000000\n");
}

}  // namespace
}  // namespace foveate::eval
