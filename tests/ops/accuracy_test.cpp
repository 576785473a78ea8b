// Errors against fp64 are at most twice those of torch's own attention, at every level and dtype, on easy and hard
// inputs.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class AccuracyAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, AccuracyAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

struct Inputs {
  std::string name;
  Tensor q, k, v, d_out;  // fp64
};

std::vector<Inputs> all_inputs() {
  const auto random = [](uint64_t seed, double scale) {
    return random_tensor({2, 2, 130, 32}, seed, at::kDouble) * scale;
  };
  std::vector<Inputs> all;
  const auto add = [&](const std::string& name, double q_scale, double v_scale) -> Inputs& {
    const auto seed = uint64_t(10 * all.size());
    all.push_back({name, random(seed, q_scale), random(seed + 1, 1), random(seed + 2, v_scale), random(seed + 3, 1)});
    return all.back();
  };
  add("random", 1, 1);
  add("peaky", 8, 1);
  add("one huge logit", 1, 1).k.select(2, 3).mul_(300);
  add("all equal", 0, 1);
  add("small values", 1, 1e-3);
  add("denormals", 1e-20, 1).k.mul_(1e-20);
  add("large mean", 1, 1).v.add_(100);
  return all;
}

double error_of(const Tensor& got, const Tensor& want) {
  return (got.to(at::kDouble) - want).square().sum().sqrt().item<double>();
}

// out, d_q, d_k, d_v of a causal attention at a dtype.
template <class Attention>
std::vector<Tensor> run(const Inputs& x, at::ScalarType type, const Attention& attention) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : {x.q, x.k, x.v}) leaves.push_back(t.detach().clone().to(type).requires_grad_());
  const Tensor out = attention(leaves[0], leaves[1], leaves[2]);
  out.backward(x.d_out.to(type));
  return {out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

TEST_P(AccuracyAtLevel, is_within_twice_the_error_of_torchs_attention) {
  const auto ours = [](const Tensor& q, const Tensor& k, const Tensor& v) { return attend(q, k, v, Rule{}).out; };
  const auto torchs = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
  };
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const Inputs& x : all_inputs()) {
      Inputs rounded = x;  // what the dtype can hold: its rounding is nobody's error
      for (Tensor* t : {&rounded.q, &rounded.k, &rounded.v, &rounded.d_out}) *t = t->detach().to(type).to(at::kDouble);
      const auto want = run(rounded, at::kDouble, torchs), got = run(rounded, type, ours),
                 peer = run(rounded, type, torchs);
      const char* names[] = {"out", "d_q", "d_k", "d_v"};
      for (size_t i = 0; i < want.size(); ++i) {
        // below one part in 2^20 of the inputs' own size both are noise
        const double noise = 1e-6 * std::sqrt(double(want[i].numel())) * want[i].abs().max().item<double>();
        EXPECT_LE(error_of(got[i], want[i]), 2 * error_of(peer[i], want[i]) + noise)
            << names[i] << ", " << x.name << ", " << c10::toString(type) << ", torch " << error_of(peer[i], want[i]);
      }
    }
}

TEST_P(AccuracyAtLevel, invisible_nan_changes_no_bit) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Inputs x = all_inputs()[0];
    Tensor k = x.k.to(type), v = x.v.to(type);
    const Rule rule{.key_lengths = longs({90, 130}, {2})};
    const Tensor want = attend(x.q.to(type), k, v, rule).out;
    k[0].narrow(1, 90, 40).fill_(NAN), v[0].narrow(1, 90, 40).fill_(NAN);
    EXPECT_TRUE(attend(x.q.to(type), k, v, rule).out.equal(want));
  }
}

}  // namespace
}  // namespace foveate::ops
