#include "tests/support/accuracy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cmath>

namespace foveate::test {
namespace {

using at::Tensor;

double error_of(const Tensor& got, const Tensor& want) {
  return (got.to(at::kDouble) - want).square().sum().sqrt().item<double>();
}

// out, d_q, d_k, d_v of an attention at a dtype.
template <class Attention>
std::vector<Tensor> run(const AccuracyInputs& x, at::ScalarType type, const Attention& attention) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : {x.q, x.k, x.v}) leaves.push_back(t.detach().clone().to(type).requires_grad_());
  const Tensor out = attention(leaves[0], leaves[1], leaves[2]);
  out.backward(x.d_out.to(type));
  return {out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

}  // namespace

void expect_accuracy_of_torch(const AccuracyInputs& x) {
  const auto ours = [](const Tensor& q, const Tensor& k, const Tensor& v) { return ops::attend(q, k, v, Rule{}).out; };
  const auto torchs = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, {}, q.size(1) != k.size(1));
  };
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    AccuracyInputs rounded = x;  // what the dtype can hold: its rounding is nobody's error
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

}  // namespace foveate::test
