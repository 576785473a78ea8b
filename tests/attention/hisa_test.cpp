// HISA as a mechanism against its specification as plain loops in double, from hidden states to outputs.
#include "foveate/attention/sparse/hisa.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "foveate/attention/dense.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace foveate::test;
using at::Tensor;

constexpr int64_t kWidth = 10, kLength = 60, kHeads = 4, kKvHeads = 2, kDim = 8;

struct Case {
  Hisa hisa{.topk = 7,
            .block = 4,
            .block_topk = 4,
            .heads = 3,
            .dim = 8,
            .rope_dims = 4,
            .hadamard = false,
            .dtype = ops::IndexType::fp32};
  Learned parts;
  ops::Rotary rotary{kDim, 50};
  Inputs in;

  explicit Case(const Hisa& h, int64_t length = kLength, int64_t batch = 1) : hisa(h) { fill(length, batch); }
  Case() { fill(kLength, 1); }
  void fill(int64_t length, int64_t batch) {
    parts = make_learned(hisa.learned_parts({kWidth, kHeads, kKvHeads, kDim, kDim}), 1);
    uint64_t seed = 10;
    for (auto& [name, part] : parts) part = part * 5 + 0.4 * random_tensor(part.sizes(), seed++);
    in.q = random_tensor({batch, kHeads, length, kDim}, 1), in.k = random_tensor({batch, kKvHeads, length, kDim}, 2);
    in.v = random_tensor({batch, kKvHeads, length, kDim}, 3), in.hidden = random_tensor({batch, length, kWidth}, 4);
    in.rotary = &rotary, in.learned = &parts;
  }
};

using Row = std::vector<double>;

// Index scores of all pairs, token by token: angles of every second frequency of the model's.
std::vector<Row> scores_by_loops(const Case& c, int64_t b) {
  const auto matrix = [&](const char* name) {
    const Tensor& t = c.parts.at(name);
    return to_array(t.dim() == 2 ? t.unsqueeze(0) : t.view({1, 1, -1}));
  };
  const Array hidden = to_array(*c.in.hidden);
  const Array query = matrix("query"), key = matrix("key"), weight = matrix("weight"), gain = matrix("key_norm"),
              shift = matrix("key_norm_bias");
  const int64_t length = hidden.shape[1], heads = c.hisa.heads, dim = c.hisa.dim;
  const auto project = [&](const Array& w, int64_t row, int64_t t) {
    double sum = 0;
    for (int64_t e = 0; e < kWidth; ++e) sum += w.at(0, row, e, 0) * hidden.at(b, t, e, 0);
    return sum;
  };
  const auto turn = [&](Row x, int64_t t) {
    const int64_t half = c.hisa.rope_dims / 2;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = double(t) * std::pow(50.0, -2.0 * double(i * (kDim / 2) / half) / double(kDim));
      const double low = x[size_t(i)], high = x[size_t(half + i)];
      x[size_t(i)] = low * std::cos(angle) - high * std::sin(angle);
      x[size_t(half + i)] = high * std::cos(angle) + low * std::sin(angle);
    }
    return x;
  };
  std::vector<Row> keys, scores;
  for (int64_t t = 0; t < length; ++t) {
    Row k;
    double mean = 0, spread = 0;
    for (int64_t d = 0; d < dim; ++d) k.push_back(project(key, d, t)), mean += k.back() / double(dim);
    for (const double x : k) spread += (x - mean) * (x - mean) / double(dim);
    for (int64_t d = 0; d < dim; ++d)
      k[size_t(d)] = (k[size_t(d)] - mean) / std::sqrt(spread + 1e-6) * gain.at(0, 0, d, 0) + shift.at(0, 0, d, 0);
    keys.push_back(turn(k, t));
  }
  for (int64_t t = 0; t < length; ++t) {
    Row row(size_t(length), 0);
    for (int64_t j = 0; j < heads; ++j) {
      Row q;
      for (int64_t d = 0; d < dim; ++d) q.push_back(project(query, j * dim + d, t));
      q = turn(q, t);
      for (int64_t s = 0; s < length; ++s) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d) dot += q[size_t(d)] * keys[size_t(s)][size_t(d)];
        row[size_t(s)] += project(weight, j, t) / std::sqrt(double(heads * dim)) * std::max(dot, 0.0);
      }
    }
    scores.push_back(row);
  }
  return scores;
}

std::set<int64_t> best(const Row& scores, int64_t start, int64_t end, int64_t count) {
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t s = start; s < end; ++s) order.push_back({-scores[size_t(s)], s});
  std::ranges::sort(order);
  std::set<int64_t> ids;
  for (const auto& [score, s] : order)
    if (std::ssize(ids) < count) ids.insert(s);
  return ids;
}

void expect_loops(const Case& c, int64_t window) {
  const int64_t batch = c.in.q.size(0);
  std::vector<std::vector<std::set<int64_t>>> lists;
  for (int64_t b = 0; b < batch; ++b) {
    const auto scores = scores_by_loops(c, b);
    lists.emplace_back();
    for (int64_t t = 0; t < std::ssize(scores); ++t)
      lists.back().push_back(best(scores[size_t(t)], std::max<int64_t>(0, t - window), t + 1, c.hisa.topk));
  }
  const OracleResult want = oracle_attention(
      to_array(c.in.q), to_array(c.in.k), to_array(c.in.v),
      [&](int64_t b, int64_t, int64_t i, int64_t j) { return int(lists[size_t(b)][size_t(i)].contains(j)); },
      {.scale = 1 / std::sqrt(double(kDim))});
  EXPECT_TRUE(same(c.hisa.attend(c.in).out, to_tensor(want.out), {1e-5, 1e-5}));
}

TEST(Hisa, flat_equals_plain_loops_from_hidden_states_on) {
  Case c;
  c.hisa.indexer = Hisa::Indexer::flat;
  expect_loops(c, 1000);
  c.hisa.hadamard = true;  // products stay
  expect_loops(c, 1000);
  c.in.rule.window_left = 17;
  expect_loops(c, 17);
  Case two(c.hisa, 33, 2);
  expect_loops(two, 1000);
}

TEST(Hisa, enough_blocks_give_the_flat_lists_and_few_blocks_others) {
  Case c;
  Hisa flat = c.hisa;
  flat.indexer = Hisa::Indexer::flat;
  const Tensor want = flat.attend(c.in).out;
  EXPECT_FALSE(c.hisa.attend(c.in).out.equal(want));
  c.hisa.block_topk = kLength / 4;
  EXPECT_TRUE(c.hisa.attend(c.in).out.equal(want));
}

TEST(Hisa, every_option_changes_the_result) {
  Case c;
  c.hisa.dim = 16, c.hisa.rope_dims = 8;
  c.fill(kLength, 1);
  const Tensor base = c.hisa.attend(c.in).out;
  const auto expect_other = [&](const char* what, auto&& change) {
    Hisa other = c.hisa;
    change(other);
    EXPECT_FALSE(other.attend(c.in).out.equal(base)) << what;
  };
  expect_other("topk", [](Hisa& h) { h.topk = 8; });
  expect_other("block", [](Hisa& h) { h.block = 3; });
  expect_other("block_topk", [](Hisa& h) { h.block_topk = 3; });
  expect_other("force_ends", [](Hisa& h) { h.force_ends = false; });
  expect_other("pooling", [](Hisa& h) { h.pooling = ops::IndexPooling::max; });
  expect_other("rope_dims", [](Hisa& h) { h.rope_dims = 4; });
  expect_other("dtype", [](Hisa& h) { h.dtype = ops::IndexType::e4m3; });
  Hisa rounded = c.hisa;
  rounded.dtype = ops::IndexType::e4m3;
  const auto keys = [&](const Hisa& h) {
    ops::BlockedKeys k = h.empty_keys();
    k.append(h.vectors(c.in).k[0]);
    return at::cat({k.keys().values(0, kLength), k.pooled().values(0, kLength / 4)});
  };
  const Tensor of_rounded = keys(rounded);
  for (bool Hisa::*option : {&Hisa::power_of_two, &Hisa::pooled_bf16, &Hisa::hadamard}) {
    Hisa other = rounded;
    other.*option = !(other.*option);
    EXPECT_FALSE(keys(other).equal(of_rounded));
  }
}

TEST(Hisa, lists_by_batch_obey_lengths_and_row_ranges) {
  Case c(Case().hisa, 40, 2);
  c.in.rule.key_lengths = at::tensor({40, 25}, at::kLong);
  const Tensor out = c.hisa.attend(c.in).out;
  Case alone(c.hisa, 40, 2);
  for (Tensor* t : {&alone.in.q, &alone.in.k, &alone.in.v}) *t = t->narrow(0, 1, 1).narrow(2, 0, 25);
  alone.in.hidden = alone.in.hidden->narrow(0, 1, 1).narrow(1, 0, 25);
  EXPECT_TRUE(same(out.narrow(0, 1, 1).narrow(2, 0, 25), alone.hisa.attend(alone.in).out, {1e-5, 1e-5}));
  Case ranges;  // two sequences in one
  const Tensor place = at::arange(kLength, at::kLong);
  ranges.in.rule.row_start = place.ge(23).to(at::kLong).mul(23).view({1, 1, -1});
  Case second;
  for (Tensor* t : {&second.in.q, &second.in.k, &second.in.v}) *t = t->narrow(2, 23, kLength - 23);
  second.in.hidden = second.in.hidden->narrow(1, 23, kLength - 23);
  ranges.hisa.indexer = second.hisa.indexer = Hisa::Indexer::flat;
  EXPECT_TRUE(same(ranges.hisa.attend(ranges.in).out.narrow(2, 23, kLength - 23), second.hisa.attend(second.in).out,
                   {1e-5, 1e-5}));
}

TEST(Hisa, decoded_tokens_of_all_types_select_as_the_prompt_does) {
  for (const ops::IndexType type : {ops::IndexType::fp32, ops::IndexType::bf16, ops::IndexType::e4m3}) {
    Case c;
    c.hisa.dtype = type;
    const at::NoGradGuard no_grad;
    const Tensor want = c.hisa.attend(c.in).out;
    const auto state = c.hisa.make_state({});
    std::vector<Tensor> outs;
    for (int64_t t = 0; t < kLength; ++t) {
      Inputs one = c.in;
      one.q = c.in.q.narrow(2, t, 1), one.k = c.in.k.narrow(2, t, 1), one.v = c.in.v.narrow(2, t, 1);
      one.hidden = c.in.hidden->narrow(1, t, 1);
      outs.push_back(state->decode(one).out);
    }
    EXPECT_TRUE(same(at::cat(outs, 2), want, {1e-5, 1e-5})) << int(type);
  }
}

// Attention that the hidden state explains: keys and queries are linear in it.
void explain_attention(Case& c, uint64_t seed) {
  c.in.hidden = random_tensor({1, c.in.q.size(2), kWidth}, seed);
  const Tensor a = random_tensor({kWidth, kKvHeads * kDim}, 30);
  c.in.k = c.in.hidden->matmul(a).unflatten(2, {kKvHeads, kDim}).transpose(1, 2);
  c.in.q = c.in.k.repeat_interleave(kHeads / kKvHeads, 1);
  c.in.rotary = nullptr;
  c.hisa.indexer = Hisa::Indexer::flat;
}

TEST(Hisa, its_indexer_learns_what_attention_looks_at) {
  for (const Hisa::Stage stage : {Hisa::Stage::dense, Hisa::Stage::selected}) {
    Case c(Case().hisa, 250), held_out;
    explain_attention(c, 4), explain_attention(held_out, 5);
    held_out.in.learned = &c.parts;
    for (auto& [name, part] : c.parts) part = part.requires_grad_();
    const auto mass = [&] {  // of dense attention in the keys taken, on a text that was not learned from
      const at::NoGradGuard no_grad;
      const Tensor lse = held_out.hisa.attend(held_out.in).lse.value();
      return (lse - Dense{}.attend(held_out.in).lse.value()).exp().narrow(2, 20, 40).mean().item<double>();
    };
    const double before = mass(), first = c.hisa.loss(c.in, stage).item<double>();
    const int steps = stage == Hisa::Stage::dense ? 120 : 40;
    for (int step = 0; step < steps; ++step) {
      c.hisa.loss(c.in, stage).backward();
      const at::NoGradGuard no_grad;
      const double size = 0.06 * (1 - double(step) / steps);  // of an entry's step downhill
      for (auto& [name, part] : c.parts) {
        part.sub_(part.grad() / (part.grad().norm() + 1e-12) * size * std::sqrt(double(part.numel())));
        part.mutable_grad() = Tensor();
      }
    }
    EXPECT_LT(c.hisa.loss(c.in, stage).item<double>(), 0.8 * first);
    if (stage == Hisa::Stage::dense) {
      EXPECT_GT(mass(), before + 0.1) << first << " to " << c.hisa.loss(c.in, stage).item<double>();
    }
  }
}

TEST(Hisa, the_loss_has_no_gradient_but_of_the_indexer) {
  Case c;
  c.in.q.requires_grad_(), c.in.k.requires_grad_(), c.in.hidden->requires_grad_();
  for (auto& [name, part] : c.parts) part = part.requires_grad_();
  c.hisa.loss(c.in, Hisa::Stage::dense).backward();
  EXPECT_FALSE(c.in.q.grad().defined() || c.in.k.grad().defined() || c.in.hidden->grad().defined());
  for (const auto& [name, part] : c.parts)
    EXPECT_TRUE(part.grad().defined() && part.grad().ne(0).any().item<bool>()) << name;
}

TEST(Hisa, refuses_what_it_can_not_do) {
  EXPECT_THROW((Hisa{.block_topk = 1}.validate()), Error);
  EXPECT_THROW((Hisa{.dim = 96}.validate()), Error);
  EXPECT_NO_THROW((Hisa{.dim = 96, .hadamard = false}.validate()));
  EXPECT_THROW((Hisa{.rope_dims = 3}.validate()), Error);
  EXPECT_THROW((Hisa{.dtype = ops::IndexType::fp32, .pooled_bf16 = true}.validate()), Error);
  Case c;
  Inputs in = c.in;
  in.learned = nullptr;
  EXPECT_THROW(c.hisa.attend(in), Error);
  in = c.in, in.hidden.reset();
  EXPECT_THROW(c.hisa.attend(in), Error);
  in = c.in, in.q = in.q.narrow(2, 50, 10), in.hidden = in.hidden->narrow(1, 50, 10);
  EXPECT_THROW(c.hisa.attend(in), Error) << "older keys have no index vectors";
  in = c.in, in.q = in.q.narrow(2, 50, 10);
  EXPECT_EQ(
      test::message_of([&] { c.hisa.attend(in); }),
      fmt::format("hisa: without a state queries, keys and hidden [{}, tokens, width] must be of the same tokens, "
                  "got 10, {} and [{}, {}, {}]",
                  in.q.size(0), kLength, in.q.size(0), kLength, kWidth))
      << "index vectors of the wrong rows";
  in = c.in, in.hidden = in.hidden->narrow(0, 0, 1).squeeze(0);
  EXPECT_THROW(c.hisa.attend(in), Error);
  in = c.in, in.rule.key_documents = in.rule.query_documents = at::arange(kLength, at::kLong).remainder(2).unsqueeze(0);
  EXPECT_THROW(c.hisa.attend(in), Error);
  in = c.in, in.rule.window_left = 3, in.rule.sinks = 2;
  EXPECT_THROW(c.hisa.attend(in), Error);
  in = c.in, in.score.leaky = 0.5;
  EXPECT_THROW(c.hisa.loss(in, Hisa::Stage::dense), Error);
}

TEST(Hisa, rotates_all_dims_where_the_model_rotates_more_than_an_index_vector_has) {
  const at::NoGradGuard no_grad;
  Case c;
  const ops::Rotary wide(4 * c.hisa.dim, 100);
  Inputs in = c.in;
  in.rotary = &wide;
  Hisa all = c.hisa, half = c.hisa;
  all.rope_dims = c.hisa.dim, half.rope_dims = c.hisa.dim / 2;
  const at::Tensor want = all.attend(in).out;
  EXPECT_FALSE(half.attend(in).out.equal(want));
  all.rope_dims = 0;
  EXPECT_TRUE(all.attend(in).out.equal(want));
}

}  // namespace
}  // namespace foveate::attention
