// Sparse latent attention against plain loops in double, and both forms of a layer against each other.
#include "foveate/attention/sparse/mla.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/attention/sparse/hisa.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using namespace foveate::test;
using at::Tensor;

constexpr int64_t kRows = 6, kHeads = 3, kKeys = 9, kDim = 12, kValues = 8;

Tensor some_index() {  // -1, behind the keys, later than the query, all empty, behind topk_length
  return at::tensor({0, 2, -1, 3, 11, 1,  4, 4, 0, 100, -1, -1, -1, -1, 9, 8, 7, -1,
                     5, 6, 1,  0, 2,  -1, 7, 0, 3, 1,   2,  4,  8,  0,  6, 2, 5, 1},
                    at::kInt)
      .view({kRows, 1, 6});
}

// out, lse, max and gradients of sum(out * d_out) by the formulas.
struct Loops {
  Array out{kRows, kHeads, kValues, 1}, lse{kRows, kHeads, 1, 1}, max{kRows, kHeads, 1, 1}, d_q{kRows, kHeads, kDim, 1},
      d_kv{kKeys, 1, kDim, 1};
};

Loops by_loops(const Tensor& q_tensor, const Tensor& kv_tensor, const Tensor& index, const Tensor& d, double scale,
               const std::vector<int64_t>& lengths) {
  const Array q = to_array(q_tensor), kv = to_array(kv_tensor), ids = to_array(index), d_out = to_array(d);
  Loops r;
  for (int64_t t = 0; t < kRows; ++t)
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<std::pair<int64_t, double>> seen;
      double top = -INFINITY, sum = 0, delta = 0;
      for (int64_t c = 0; c < lengths[size_t(t)]; ++c) {
        const int64_t s = int64_t(ids.at(t, 0, c, 0));
        if (s < 0 || s >= kKeys || s > kKeys - kRows + t) continue;
        double logit = 0;
        for (int64_t e = 0; e < kDim; ++e) logit += scale * q.at(t, h, e, 0) * kv.at(s, 0, e, 0);
        seen.push_back({s, logit});
        top = std::max(top, logit);
      }
      for (const auto& [s, logit] : seen) sum += std::exp(logit - top);
      r.max.at(t, h, 0, 0) = top, r.lse.at(t, h, 0, 0) = seen.empty() ? INFINITY : top + std::log(sum);
      for (const auto& [s, logit] : seen)
        for (int64_t e = 0; e < kValues; ++e) r.out.at(t, h, e, 0) += std::exp(logit - top) / sum * kv.at(s, 0, e, 0);
      for (int64_t e = 0; e < kValues; ++e) delta += d_out.at(t, h, e, 0) * r.out.at(t, h, e, 0);
      for (const auto& [s, logit] : seen) {
        const double p = std::exp(logit - top) / sum;
        double dp = 0;
        for (int64_t e = 0; e < kValues; ++e) dp += d_out.at(t, h, e, 0) * kv.at(s, 0, e, 0);
        for (int64_t e = 0; e < kDim; ++e) {
          r.d_q.at(t, h, e, 0) += p * (dp - delta) * scale * kv.at(s, 0, e, 0);
          r.d_kv.at(s, 0, e, 0) += p * (dp - delta) * scale * q.at(t, h, e, 0);
          if (e < kValues) r.d_kv.at(s, 0, e, 0) += p * d_out.at(t, h, e, 0);
        }
      }
    }
  return r;
}

TEST(SparseMla, equals_plain_loops_forward_and_backward) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    const Bound bound = type == at::kDouble ? Bound{1e-12, 1e-12} : Bound{3e-5, 3e-5};
    const Tensor q = random_tensor({kRows, kHeads, kDim}, 1, type).requires_grad_();
    const Tensor kv = random_tensor({kKeys, 1, kDim}, 2, type).requires_grad_();
    const Tensor d = random_tensor({kRows, kHeads, kValues}, 3, type), index = some_index();
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{6, 6, 6, 6, 6, 6}, {2, 1, 6, 0, 3, 5}}) {
      SparseMlaOptions o{.scale = 0.3, .value_dim = kValues};
      if (lengths[0] != 6) o.topk_length = at::tensor(lengths, at::kLong);
      EXPECT_FALSE(sparse_mla(q, kv, index, o).max.has_value());
      o.wants_max = true;
      const SparseMla got = sparse_mla(q, kv, index, o);
      const Loops want = by_loops(q, kv, index, d, 0.3, lengths);
      EXPECT_TRUE(same(got.out, to_tensor(want.out).squeeze(3), bound));
      EXPECT_TRUE(same(got.lse, to_tensor(want.lse).view({kRows, kHeads}), bound));
      EXPECT_TRUE(same(*got.max, to_tensor(want.max).view({kRows, kHeads}), bound));
      q.mutable_grad() = Tensor(), kv.mutable_grad() = Tensor();
      (got.out * d).sum().backward();
      EXPECT_TRUE(same(q.grad(), to_tensor(want.d_q).squeeze(3), bound));
      EXPECT_TRUE(same(kv.grad(), to_tensor(want.d_kv).squeeze(3), bound));
    }
  }
}

TEST(SparseMla, entries_may_stand_in_any_order_with_any_padding_and_unseen_rows_get_no_gradient) {
  const Tensor q = random_tensor({2, kHeads, 576}, 1), kv = random_tensor({40, 1, 576}, 2).requires_grad_();
  const Tensor index = at::tensor({3, 9, 30, 1, 38, 20, 39, 5, 6, 0}, at::kInt).view({2, 1, 5});
  const Tensor other = at::tensor({-1, 38, 1, 3, -1, 30, 9, 0, 6, 5, -1, 39, 20, 99}, at::kInt).view({2, 1, 7});
  const SparseMla a = sparse_mla(q, kv, index, {.scale = 0.05}), b = sparse_mla(q, kv, other, {.scale = 0.05});
  EXPECT_TRUE(same(a.out, b.out, {1e-5, 1e-5}));
  EXPECT_TRUE(same(a.lse, b.lse, {1e-5, 1e-5}));
  a.out.sum().backward();
  for (int64_t s = 0; s < 40; ++s) {
    const bool listed = index.eq(s).any().item<bool>();
    EXPECT_EQ(kv.grad()[s].ne(0).any().item<bool>(), listed) << s;
  }
}

TEST(SparseMla, a_sink_takes_its_share_and_learns) {
  const Tensor q = random_tensor({kRows, kHeads, kDim}, 1, at::kDouble),
               kv = random_tensor({kKeys, 1, kDim}, 2, at::kDouble);
  const Tensor sink = at::tensor({.5, -1., 2.}, at::kDouble).requires_grad_(), index = some_index();
  const SparseMla plain = sparse_mla(q, kv, index, {.scale = 0.3, .value_dim = kValues});
  const auto out = [&](const Tensor& a) {
    return sparse_mla(q, kv, index, {.scale = 0.3, .value_dim = kValues, .topk_length = {}, .sink = a}).out;
  };
  const Tensor factor = 1 / (1 + (sink.detach() - plain.lse).exp());
  const Tensor got = out(sink);
  EXPECT_TRUE(same(got, plain.out * factor.unsqueeze(2), {1e-12, 1e-12}));
  got.sum().backward();
  for (int64_t h = 0; h < kHeads; ++h) {
    Tensor step = at::zeros({kHeads}, at::kDouble);
    step[h].fill_(1e-6);
    const double slope = ((out(sink.detach() + step) - out(sink.detach() - step)).sum() / 2e-6).item<double>();
    EXPECT_NEAR(sink.grad()[h].item<double>(), slope, 1e-7);
  }
}

TEST(SparseMla, refuses_what_does_not_fit) {
  const Tensor q = at::zeros({2, 1, 8}), kv = at::zeros({5, 1, 8}), index = at::zeros({2, 1, 3}, at::kInt);
  EXPECT_NO_THROW(sparse_mla(q, kv, index, {.value_dim = 4}));
  EXPECT_THROW(sparse_mla(q, kv, index, {.value_dim = 9}), Error);
  EXPECT_THROW(sparse_mla(q, kv.expand({5, 2, 8}), index, {.value_dim = 4}), Error);
  EXPECT_THROW(sparse_mla(q, kv, index.narrow(0, 0, 1), {.value_dim = 4}), Error);
  EXPECT_THROW(sparse_mla(q, kv, at::zeros({2, 1, 3}), {.value_dim = 4}), Error);
  EXPECT_THROW(sparse_mla(q, kv, index, {.value_dim = 4, .topk_length = {}, .sink = at::zeros({2})}), Error);
}

TEST(Mla, yarn_golden_numbers) {
  EXPECT_NEAR(std::sqrt(yarn_scale(192, 40) * std::sqrt(192.0)), 1.3689, 5e-5);
  EXPECT_NEAR(yarn_scale(192, 40) * std::sqrt(192.0), 1.8738, 1e-4);  // published cut, not rounded
  EXPECT_NEAR(yarn_scale(192, 1), 1 / std::sqrt(192.0), 1e-15);
  const std::vector<double> divisors = yarn_divisors(64, 10000, 40);
  EXPECT_EQ(divisors.front(), 1);
  EXPECT_NEAR(divisors.back(), 40, 1e-9);
  for (size_t i = 1; i < divisors.size(); ++i) EXPECT_GE(divisors[i], divisors[i - 1]);
}

struct Layer {
  MlaShape shape{.heads = 3, .latent = 16, .plain = 8, .rotated = 4, .value = 6};
  Learned parts = make_learned(mla_parts(shape, 20, 10), 3);
  ops::Rotary rotary{4, 100};
  Layer() {
    for (auto& [name, part] : parts) part = random_tensor(part.sizes(), name.size(), at::kDouble) * 0.4;
  }
  MlaRows rows(const Tensor& hidden, int64_t first) const {
    return mla_rows(hidden, parts, shape, rotary, at::arange(first, first + hidden.size(0), at::kLong));
  }
};

// The layer token by token, as the report writes it.
Tensor layer_by_loops(const Layer& layer, const Tensor& hidden) {
  const auto matrix = [&](const char* name) { return layer.parts.at(name); };
  const auto norm = [&](const Tensor& x, const char* name) {
    return x / (x.square().mean() + layer.shape.epsilon).sqrt() * matrix(name);
  };
  const auto turn = [&](const Tensor& x, int64_t position) {  // neighbouring pairs
    Tensor y = x.clone();
    for (int64_t i = 0; i < 2; ++i) {
      const double angle = double(position) * std::pow(100.0, -2.0 * double(i) / 4), c = std::cos(angle),
                   s = std::sin(angle);
      const double a = x[2 * i].item<double>(), b = x[2 * i + 1].item<double>();
      y[2 * i].fill_(a * c - b * s), y[2 * i + 1].fill_(a * s + b * c);
    }
    return y;
  };
  const int64_t length = hidden.size(0);
  std::vector<Tensor> latent, keys, outs;
  for (int64_t t = 0; t < length; ++t) {
    const Tensor down = matrix("kv_down").mv(hidden[t]);
    latent.push_back(norm(down.narrow(0, 0, 16), "kv_norm"));
    keys.push_back(turn(down.narrow(0, 16, 4), t));
    const Tensor q = matrix("q_up").mv(norm(matrix("q_down").mv(hidden[t]), "q_norm")).view({3, 12});
    std::vector<Tensor> heads;
    for (int64_t h = 0; h < 3; ++h) {
      const Tensor up = matrix("kv_up").narrow(0, h * 14, 14);
      std::vector<double> e;
      double sum = 0;
      Tensor value = at::zeros({6}, at::kDouble);
      for (int64_t s = 0; s <= t; ++s) {
        const Tensor k = up.narrow(0, 0, 8).mv(latent[size_t(s)]);
        const double logit =
            (q[h].narrow(0, 0, 8).dot(k) + turn(q[h].narrow(0, 8, 4), t).dot(keys[size_t(s)])).item<double>();
        const double weight = std::exp(logit / std::sqrt(12.0));
        sum += weight;
        value += weight * up.narrow(0, 8, 6).mv(latent[size_t(s)]);
      }
      heads.push_back(value / sum);
    }
    outs.push_back(matrix("out").mv(at::cat(heads)));
  }
  return at::stack(outs);
}

// A bf16 number has 8 bits, the leading one among them: one rounding is off by at most a 256th.
TEST(Mla, norms_and_rotations_of_bf16_round_once) {
  Layer layer;
  for (auto& [name, part] : layer.parts) part = part.to(at::kBFloat16);
  const Tensor hidden = random_tensor({50, 20}, 1).to(at::kBFloat16);
  const MlaRows rows = layer.rows(hidden, 3000);
  const auto product = [&](const Tensor& x, const char* name) {
    return at::linear(x, layer.parts.at(name)).to(at::kDouble);
  };
  const auto norm = [&](const Tensor& x, const char* name) {
    return x / (x.square().mean(-1, true) + layer.shape.epsilon).sqrt() * layer.parts.at(name).to(at::kDouble);
  };
  const auto expect_rounded = [](const Tensor& got, const Tensor& want) {
    const Tensor allowed = want.abs() * std::ldexp(1.0, -8) * 1.001 + 1e-6;
    EXPECT_TRUE((got.to(at::kDouble) - want).abs().le(allowed).all().item<bool>())
        << ((got.to(at::kDouble) - want).abs() / allowed).max().item<double>();
  };
  expect_rounded(rows.low_rank, norm(product(hidden, "q_down"), "q_norm"));
  const Tensor down = product(hidden, "kv_down");
  expect_rounded(rows.kv.narrow(1, 0, 16), norm(down.narrow(1, 0, 16), "kv_norm"));
  const Tensor angle = at::arange(3000, 3050, at::kDouble).unsqueeze(1) * at::tensor({1.0, 0.1}, at::kDouble);
  const Tensor a = down.narrow(1, 16, 4).slice(1, 0, 4, 2), b = down.narrow(1, 16, 4).slice(1, 1, 4, 2);
  const Tensor turned = at::stack({a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()}, 2).flatten(1);
  expect_rounded(rows.kv.narrow(1, 16, 4), turned);
}

TEST(Mla, both_forms_equal_plain_loops_and_each_other_with_caches) {
  const Layer layer;
  const Tensor hidden = random_tensor({12, 20}, 1, at::kDouble), want = layer_by_loops(layer, hidden);
  const MlaRows rows = layer.rows(hidden, 0);
  const Tensor every = at::arange(12, at::kInt).expand({12, 12});
  for (const auto& index : {std::optional<Tensor>(), std::optional(every)}) {
    EXPECT_TRUE(same(mla_absorbed(rows, rows.kv, layer.parts, layer.shape, index), want, {1e-12, 1e-12}));
    EXPECT_TRUE(same(mla_expanded(rows, rows.kv, layer.parts, layer.shape, index), want, {1e-12, 1e-12}));
  }
  Tensor cache = layer.rows(hidden.narrow(0, 0, 7), 0).kv;  // the rest token by token
  for (int64_t t = 7; t < 12; ++t) {
    const MlaRows one = layer.rows(hidden.narrow(0, t, 1), t);
    cache = at::cat({cache, one.kv});
    EXPECT_TRUE(same(mla_absorbed(one, cache, layer.parts, layer.shape), want.narrow(0, t, 1), {1e-12, 1e-12}));
  }
}

TEST(Mla, both_forms_agree_on_lists_with_gradients) {
  Layer layer;
  Tensor hidden = random_tensor({10, 20}, 1, at::kDouble);
  const Tensor index = random_tensor({10, 4}, 2).mul(6).round().to(at::kInt),
               weight = random_tensor({10, 20}, 4, at::kDouble);
  std::vector<Tensor> gradients[2];
  for (const bool absorbed : {false, true}) {
    Layer own;
    const Tensor x = hidden.clone().requires_grad_();
    for (auto& [name, part] : own.parts) part = part.clone().requires_grad_();
    const MlaRows rows = own.rows(x, 0);
    const Tensor out = absorbed ? mla_absorbed(rows, rows.kv, own.parts, own.shape, index)
                                : mla_expanded(rows, rows.kv, own.parts, own.shape, index);
    (out * weight).sum().backward();
    gradients[absorbed].push_back(out), gradients[absorbed].push_back(x.grad());
    for (auto& [name, part] : own.parts) gradients[absorbed].push_back(part.grad());
  }
  for (size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_TRUE(same(gradients[1][i], gradients[0][i], {1e-11, 1e-11})) << i;
}

TEST(Mla, a_layer_with_an_indexer_that_takes_all_keys_is_the_dense_layer) {
  const Layer layer;
  const Tensor hidden = random_tensor({30, 20}, 1, at::kDouble);
  const MlaRows rows = layer.rows(hidden, 0);
  const Hisa hisa{.topk = 8, .block = 4, .block_topk = 2, .heads = 2, .dim = 16, .dtype = ops::IndexType::bf16};
  Learned parts = make_learned(hisa.learned_parts({20, 3, 1, 12, 6}), 1);
  parts["query"] = random_tensor({2 * 16, 10}, 5);  // reads the low rank
  const Tensor positions = at::arange(30, at::kLong);
  const IndexVectors vectors =
      hisa.vectors(rows.low_rank.unsqueeze(0), hidden.unsqueeze(0), parts, &layer.rotary, positions);
  ops::BlockedKeys keys = hisa.empty_keys();
  keys.append(vectors.k[0]);
  const auto queries = hisa.queries(vectors, 0, at::zeros({30}, at::kLong), positions + 1);
  const Tensor dense = mla_expanded(rows, rows.kv, layer.parts, layer.shape);
  const Tensor all = ops::hisa_index(queries, keys, {.block_topk = 8, .topk = 30});
  EXPECT_TRUE(same(mla_absorbed(rows, rows.kv, layer.parts, layer.shape, all), dense, {1e-12, 1e-12}));
  const Tensor few = hisa.select(queries, keys);
  const Tensor sparse = mla_absorbed(rows, rows.kv, layer.parts, layer.shape, few);
  EXPECT_TRUE(same(sparse, mla_expanded(rows, rows.kv, layer.parts, layer.shape, few), {1e-12, 1e-12}));
  EXPECT_TRUE(same(sparse.narrow(0, 0, 8), dense.narrow(0, 0, 8), {1e-12, 1e-12}));
  EXPECT_FALSE(same(sparse.narrow(0, 20, 10), dense.narrow(0, 20, 10), {1e-3, 1e-3}));
}

}  // namespace
}  // namespace foveate::attention
