// Native Sparse Attention against plain loops in double: windows summed up, blocks chosen, three softmaxes mixed.
#include "foveate/attention/sparse/nsa.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <set>

#include "foveate/attention/dense.h"
#include "tests/attention/calls.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using test::Array;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr test::Bound kClose{1e-10, 1e-10};

// Windows of x [B, H, L, D] by the words of the paper: row r of window i is token i stride + r.
struct PhiArrays {
  std::optional<Array> positions, weights, in, out;  // [1, H, l, D], [1, 1, H, l], [1, H, D', l D], [1, H, D', D']
};

std::vector<double> window_row(const Nsa& o, const Array& x, int64_t b, int64_t h, int64_t i, PhiArrays& parts) {
  const int64_t l = o.compress, dim = x.shape[3];
  std::vector<double> rows(size_t(l * dim)), sum(size_t(dim), 0.0);
  for (int64_t r = 0; r < l; ++r)
    for (int64_t d = 0; d < dim; ++d) {
      double value = x.at(b, h, i * o.stride + r, d);
      if (parts.positions) value += parts.positions->broadcast(0, h, r, d);
      rows[size_t(r * dim + d)] = value;
    }
  if (o.phi == Nsa::Phi::mean || o.phi == Nsa::Phi::weighted) {
    for (int64_t r = 0; r < l; ++r)
      for (int64_t d = 0; d < dim; ++d)
        sum[size_t(d)] += rows[size_t(r * dim + d)] *
                          (o.phi == Nsa::Phi::mean ? 1.0 / double(l) : parts.weights->broadcast(0, 0, h, r));
    return sum;
  }
  std::vector<double> middle(size_t(dim), 0.0);
  for (int64_t e = 0; e < dim; ++e)
    for (int64_t n = 0; n < l * dim; ++n) middle[size_t(e)] += parts.in->broadcast(0, h, e, n) * rows[size_t(n)];
  if (o.phi == Nsa::Phi::linear) return middle;
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t e = 0; e < dim; ++e)
      sum[size_t(d)] += parts.out->broadcast(0, h, d, e) * middle[size_t(e)] / (1 + std::exp(-middle[size_t(e)]));
  return sum;
}

Array windows_oracle(const Nsa& o, const Array& x, PhiArrays parts) {
  int64_t count = 0;
  while (count * o.stride + o.compress <= x.shape[2]) ++count;
  Array out(x.shape[0], x.shape[1], count, x.shape[3]);
  for (int64_t b = 0; b < x.shape[0]; ++b)
    for (int64_t h = 0; h < x.shape[1]; ++h)
      for (int64_t i = 0; i < count; ++i) {
        const auto row = window_row(o, x, b, h, i, parts);
        for (int64_t d = 0; d < x.shape[3]; ++d) out.at(b, h, i, d) = row[size_t(d)];
      }
  return out;
}

struct Keys {
  Array k, v;
};
struct OracleProblem {
  Array q, gates;  // gates [B, Hq, Lq, 3]
  Keys compressed, selected, window;
  double scale = 1;
  std::optional<int64_t> window_left;
  std::vector<int64_t> lengths;  // by batch; empty: all keys are real
};
struct OracleAnswer {
  Array out;
  std::map<std::array<int64_t, 3>, std::set<int64_t>> blocks;  // of (b, key head, row)
};

// Probabilities over `keys`; empty where there are none.
std::vector<double> softmax_of(const OracleProblem& p, const Array& k, int64_t b, int64_t h, int64_t i,
                               const std::vector<int64_t>& keys) {
  const int64_t group = p.q.shape[1] / k.shape[1];
  std::vector<double> weights;
  double total = 0, largest = -INFINITY;
  for (const int64_t j : keys) {
    double dot = 0;
    for (int64_t d = 0; d < p.q.shape[3]; ++d) dot += p.q.at(b, h, i, d) * k.at(b, h / group, j, d);
    weights.push_back(dot * p.scale);
    largest = std::max(largest, weights.back());
  }
  for (double& w : weights) total += w = std::exp(w - largest);
  for (double& w : weights) w /= total;
  return weights;
}

OracleAnswer oracle(const Nsa& o, const OracleProblem& p) {
  const int64_t kv_heads = p.selected.k.shape[1], group = p.q.shape[1] / kv_heads, all = p.selected.k.shape[2];
  OracleAnswer answer{Array(p.q.shape[0], p.q.shape[1], p.q.shape[2], p.selected.v.shape[3]), {}};
  const auto add = [&](const Keys& keys, int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& seen,
                       int branch) {
    const auto weights = softmax_of(p, keys.k, b, h, i, seen);
    for (size_t n = 0; n < seen.size(); ++n)
      for (int64_t d = 0; d < keys.v.shape[3]; ++d)
        answer.out.at(b, h, i, d) += p.gates.at(b, h, i, branch) * weights[n] * keys.v.at(b, h / group, seen[n], d);
  };
  for (int64_t b = 0; b < p.q.shape[0]; ++b)
    for (int64_t i = 0; i < p.q.shape[2]; ++i) {
      const int64_t t = all - p.q.shape[2] + i, length = p.lengths.empty() ? all : p.lengths[size_t(b)];
      const auto sees = [&](int64_t j) {
        return j >= 0 && j <= t && j < length && (!p.window_left || t - j <= *p.window_left);
      };
      std::vector<int64_t> windows;
      for (int64_t w = 0; w < p.compressed.k.shape[2]; ++w)
        if (sees(w * o.stride) && sees(w * o.stride + o.compress - 1)) windows.push_back(w);
      for (int64_t g = 0; g < kv_heads; ++g) {
        std::map<int64_t, double> scores;  // of blocks with a key that the row sees
        for (int64_t j = 0; j <= t; ++j)
          if (sees(j)) scores[j / o.block] = 0;
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          const auto probabilities = softmax_of(p, p.compressed.k, b, h, i, windows);
          for (size_t n = 0; n < windows.size(); ++n)  // equation 9: over strides of the window and of the block
            for (int64_t a = 0; a < o.compress / o.stride; ++a) {
              const int64_t block = (windows[n] + a) / (o.block / o.stride);
              if (scores.contains(block)) scores[block] += probabilities[n];
            }
        }
        const int64_t own = scores.empty() ? 0 : scores.rbegin()->first;
        std::vector<std::pair<double, int64_t>> order;
        for (auto [block, score] : scores)
          order.emplace_back(block < o.first_blocks || block > own - o.local_blocks ? -INFINITY : -score, block);
        std::sort(order.begin(), order.end());
        std::set<int64_t>& taken = answer.blocks[{b, g, i}];
        for (size_t n = 0; n < order.size() && std::ssize(taken) < o.blocks; ++n) taken.insert(order[n].second);
        std::vector<int64_t> selected, latest;
        for (int64_t j = 0; j <= t; ++j) {
          if (sees(j) && taken.contains(j / o.block)) selected.push_back(j);
          if (sees(j) && t - j < o.window) latest.push_back(j);
        }
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          add(p.compressed, b, h, i, windows, 0);
          add(p.selected, b, h, i, selected, 1);
          add(p.window, b, h, i, latest, 2);
        }
      }
    }
  return answer;
}

constexpr int64_t kDim = 6, kValueDim = 4;

NsaPhi random_phi(const Nsa& o, int64_t heads, int64_t dim, bool positions, uint64_t seed) {
  NsaPhi parts;
  if (o.phi == Nsa::Phi::mean) return parts;
  const auto draw = [&](at::IntArrayRef shape, uint64_t n) {
    return random_tensor(shape, seed + n, at::kDouble) * 0.4;
  };
  if (positions) parts.positions = draw({heads, o.compress, dim}, 1);
  if (o.phi == Nsa::Phi::weighted) parts.weights = draw({heads, o.compress}, 2);
  if (o.phi >= Nsa::Phi::linear) parts.in = draw({heads, dim, o.compress * dim}, 3);
  if (o.phi == Nsa::Phi::mlp) parts.out = draw({heads, dim, dim}, 4) * 3;
  return parts;
}

PhiArrays arrays_of(const NsaPhi& parts) {
  const auto array = [](const std::optional<at::Tensor>& t) -> std::optional<Array> {
    if (!t) return std::nullopt;
    return to_array(t->dim() == 2 ? t->view({1, 1, t->size(0), t->size(1)}) : t->unsqueeze(0));
  };
  return {array(parts.positions), array(parts.weights), array(parts.in), array(parts.out)};
}

std::vector<Nsa> variants() {
  const Nsa small{.compress = 4, .stride = 2, .block = 8, .blocks = 4, .window = 7, .phi = Nsa::Phi::mean};
  std::vector<Nsa> all(5, small);
  all[1].phi = Nsa::Phi::weighted, all[1].first_blocks = 0, all[1].local_blocks = 1, all[1].blocks = 2;
  all[2].phi = Nsa::Phi::linear, all[2].compress = 6, all[2].block = 6, all[2].blocks = 5, all[2].window = 1;
  all[3].phi = Nsa::Phi::mlp, all[3].compress = 4, all[3].stride = 1, all[3].blocks = 3;
  all[4].compress = all[4].stride = all[4].block = 5;  // fla-org's: no overlap
  all[4].first_blocks = 0, all[4].local_blocks = 1, all[4].rope = Nsa::Rope::before;
  return all;
}

// Branches with keys and values of their own, and everything an oracle needs of them.
struct Case {
  at::Tensor q, gates;
  NsaBranch raw, selected, window;
  NsaPhi key_phi, value_phi;
  Rule rule;

  Case(const Nsa& o, int64_t queries, int64_t keys, uint64_t seed = 10) {
    const auto draw = [&](int64_t heads, int64_t length, int64_t dim) {
      return random_tensor({2, heads, length, dim}, seed++, at::kDouble);
    };
    q = draw(4, queries, kDim), gates = draw(4, queries, 3).sigmoid();
    for (NsaBranch* branch : {&raw, &selected, &window}) *branch = {draw(2, keys, kDim), draw(2, keys, kValueDim)};
    key_phi = random_phi(o, 2, kDim, true, 100), value_phi = random_phi(o, 2, kValueDim, false, 200);
  }
  Attended run(const Nsa& o) const {
    return nsa(q, {{o.summed(raw.k, key_phi), o.summed(raw.v, value_phi)}, selected, window}, gates, o, rule,
               {.scale = 0.7});
  }
  OracleAnswer want(const Nsa& o) const {
    OracleProblem p{.q = to_array(q),
                    .gates = to_array(gates),
                    .compressed = {windows_oracle(o, to_array(raw.k), arrays_of(key_phi)),
                                   windows_oracle(o, to_array(raw.v), arrays_of(value_phi))},
                    .selected = {to_array(selected.k), to_array(selected.v)},
                    .window = {to_array(window.k), to_array(window.v)},
                    .scale = 0.7,
                    .window_left = rule.window_left,
                    .lengths = {}};
    if (rule.key_lengths)
      for (int64_t b = 0; b < 2; ++b) p.lengths.push_back((*rule.key_lengths)[b].item<int64_t>());
    return oracle(o, p);
  }
};

TEST(Nsa, windows_are_counted_and_summed_up_as_the_formula_says) {
  const Nsa published;
  for (const auto& [length, count] : {std::pair{0, 0}, {31, 0}, {32, 1}, {47, 1}, {48, 2}, {64, 3}, {8192, 511}})
    EXPECT_EQ(published.windows_of(length), count) << length;
  for (const Nsa& o : variants())
    for (const int64_t length : {0, 3, 4, 7, 8, 37}) {
      const at::Tensor x = random_tensor({2, 2, length, kDim}, 5, at::kDouble);
      const NsaPhi parts = random_phi(o, 2, kDim, true, 7);
      EXPECT_TRUE(same(o.summed(x, parts), to_tensor(windows_oracle(o, to_array(x), arrays_of(parts))), kClose))
          << to_spec(o).text() << " length " << length;
    }
}

TEST(Nsa, equals_loops_with_separate_branches) {
  const at::NoGradGuard no_grad;
  for (const Nsa& o : variants())
    for (const auto& [queries, keys] : {std::pair{61, 61}, {9, 70}, {1, 33}, {3, 3}, {1, 1}}) {
      const Case c(o, queries, keys);
      EXPECT_TRUE(same(c.run(o).out, to_tensor(c.want(o).out), kClose))
          << to_spec(o).text() << ' ' << queries << " of " << keys;
    }
}

TEST(Nsa, chooses_the_blocks_of_the_loops_once_for_a_key_head) {
  const at::NoGradGuard no_grad;
  for (const Nsa& o : variants()) {
    const Case c(o, 61, 61);
    const NsaBranches branches{{o.summed(c.raw.k, c.key_phi), o.summed(c.raw.v, c.value_phi)}, c.selected, c.window};
    const Attended alone = nsa(c.q, branches, std::nullopt, o, c.rule, {.scale = 0.7});  // the selected branch
    const at::Tensor index = std::get<BlockPlan>(alone.plans[0].plan).index;
    EXPECT_EQ(index.size(1), 2);
    Case one = c;
    one.gates = at::zeros({2, 4, 61, 3}, at::kDouble);
    one.gates.narrow(3, 1, 1).fill_(1);
    EXPECT_TRUE(same(alone.out, to_tensor(one.want(o).out), kClose));
    for (const auto& [place, blocks] : c.want(o).blocks) {
      std::set<int64_t> got;
      for (int64_t n = 0; n < index.size(3); ++n)
        if (const int64_t block = index[place[0]][place[1]][place[2]][n].item<int64_t>(); block >= 0) got.insert(block);
      ASSERT_EQ(got, blocks) << to_spec(o).text() << " row " << place[2];
    }
  }
}

TEST(Nsa, respects_the_models_window_and_padding) {
  const at::NoGradGuard no_grad;
  for (const Nsa& o : variants()) {
    Case c(o, 40, 61);
    c.rule.window_left = 19;
    EXPECT_TRUE(same(c.run(o).out, to_tensor(c.want(o).out), kClose)) << to_spec(o).text();
    c.rule.window_left = std::nullopt, c.rule.key_lengths = at::full({2}, 33, at::kLong);
    (*c.rule.key_lengths)[1] = 61;
    EXPECT_TRUE(same(c.run(o).out, to_tensor(c.want(o).out), kClose)) << to_spec(o).text();
    // the same padding and window as rows' own intervals
    Case rows = c;
    rows.rule = Rule{}, rows.rule.row_end = at::full({2, 1, 40}, 61, at::kLong);
    rows.rule.row_end->narrow(0, 0, 1).fill_(33);
    EXPECT_TRUE(rows.run(o).out.equal(c.run(o).out));
  }
}

TEST(Nsa, the_first_blocks_are_those_of_the_text_behind_its_padding) {
  const at::NoGradGuard no_grad;
  constexpr int64_t kPadding = 16, kLength = 72;  // of 9 blocks 2 are padding
  const Nsa o{.compress = 4,
              .stride = 2,
              .block = 8,
              .blocks = 3,
              .first_blocks = 1,
              .local_blocks = 1,
              .phi = Nsa::Phi::mean,
              .gates = Nsa::Gates::selected};
  Inputs in = test::random_call(kLength, kLength);
  in.rule.row_start = at::zeros({2, 1, kLength}, at::kLong);
  in.rule.row_start->narrow(0, 0, 1).fill_(kPadding);
  Inputs bare = in;
  bare.rule = {};
  for (at::Tensor* t : {&bare.q, &bare.k, &bare.v}) *t = t->narrow(2, kPadding, kLength - kPadding);
  const at::Tensor got = o.attend(in).out, want = o.attend(bare).out;
  EXPECT_TRUE(same(got[0].narrow(1, kPadding, kLength - kPadding), want[0], kClose));
  in.rule = {};
  EXPECT_TRUE(same(got[1], o.attend(in).out[1], kClose));
  EXPECT_FALSE(same(got[0], o.attend(in).out[0], {1e-3, 1e-3}));
}

TEST(Nsa, golden_counts_of_the_published_sizes) {
  // All probability of two heads on one window after the other.
  const Nsa o;
  const at::Tensor one_window = at::eye(19, at::kDouble).view({1, 1, 19, 19}).expand({1, 2, 19, 19});
  const at::Tensor scores = o.block_scores(one_window, 1, 5);
  for (int64_t w = 0; w < 19; ++w)
    for (int64_t j = 0; j < 5; ++j) {
      const int64_t place = w - 4 * j + 1;  // 1, 2, 2, 2, 1 for the windows from 4j - 1 on
      const double golden = place == 0 || place == 4 ? 1 : place > 0 && place < 4 ? 2 : 0;
      EXPECT_EQ(scores[0][0][w][j].item<double>(), 2 * golden) << "window " << w << " block " << j;
    }
  EXPECT_EQ(scores.narrow(3, 1, 1).sum().item<double>(), 2 * 8);  // l'/d * l/d for each head
}

TEST(Nsa, one_gate_is_dense_at_full_budget) {
  const at::NoGradGuard no_grad;
  Nsa o{.phi = Nsa::Phi::mean};
  o.blocks = 8;
  for (const int64_t length : {1, 31, 64, 300}) {
    Case c(o, length, length);
    c.window = c.selected;
    Nsa full = o;
    full.window = length;
    const at::Tensor want = ops::attend(c.q, c.selected.k, c.selected.v, Rule{}, {.scale = 0.7}).out;
    for (const int64_t branch : {1, 2}) {
      c.gates = at::zeros({2, 4, length, 3}, at::kDouble);
      c.gates.narrow(3, branch, 1).fill_(1);
      EXPECT_TRUE(same(c.run(full).out, want, kClose)) << length << " gate " << branch;
    }
  }
}

TEST(Nsa, gradients_match_finite_differences) {
  for (const Nsa& o : variants()) {
    Case c(o, 21, 29);
    std::vector<at::Tensor*> leaves = {&c.q,          &c.gates,      &c.raw.k,    &c.raw.v,
                                       &c.selected.k, &c.selected.v, &c.window.k, &c.window.v};
    for (NsaPhi* parts : {&c.key_phi, &c.value_phi})
      for (std::optional<at::Tensor>* part : {&parts->positions, &parts->weights, &parts->in, &parts->out})
        if (*part) leaves.push_back(&**part);
    std::vector<at::Tensor> given;
    for (at::Tensor* leaf : leaves) given.push_back(*leaf = leaf->detach().clone());
    const at::Tensor weight = random_tensor({2, 4, 21, kValueDim}, 77, at::kDouble);
    SCOPED_TRACE(to_spec(o).text());
    test::expect_gradients([&] { return (c.run(o).out * weight).sum(); }, given, 2e-7, 6);
    for (const at::Tensor& leaf : given) EXPECT_GT(leaf.grad().abs().sum().item<double>(), 0);
  }
}

std::string message_of(const std::string& spec) {
  return test::message_of([&] { parse_options<Nsa>(parse_spec(spec)).validate(); });
}

TEST(Nsa, refuses_sizes_that_do_not_divide_and_budgets_below_forced_blocks) {
  EXPECT_EQ(message_of("nsa"), "no error");
  EXPECT_EQ(message_of("nsa:stride=12"), "nsa: compress must be a multiple of stride, got 32 and 12");
  EXPECT_EQ(message_of("nsa:block=48"), "nsa: block must be a multiple of compress, got 48 and 32");
  EXPECT_EQ(message_of("nsa:blocks=2"), "nsa: first_blocks + local_blocks must be <= blocks, got 1 + 2 > 2");
  EXPECT_EQ(message_of("nsa:window=0"), "nsa: window must be >= 1, got 0");
}

TEST(Nsa, refuses_rules_and_score_terms_that_windows_can_not_follow) {
  const Nsa o = variants()[0];
  Case c(o, 12, 12);
  const auto refused = [&](const Rule& rule) {
    Case other = c;
    other.rule = rule;
    EXPECT_THROW(other.run(o), Error);
  };
  refused(Rule::full());
  refused({.window_left = 3, .sinks = 2});
  refused({.head_window = at::full({4}, 3, at::kLong)});
  const at::Tensor in_pieces = at::arange(12, at::kLong).remainder(2).expand({2, 12});
  refused({.query_documents = in_pieces, .key_documents = in_pieces});
  const NsaBranches branches{{o.summed(c.raw.k, {}), o.summed(c.raw.v, {})}, c.selected, c.window};
  EXPECT_THROW(nsa(c.q, branches, c.gates, o, {}, {.leaky = 0.5}), Error);
  EXPECT_THROW(nsa(c.q, branches, c.gates, o, {}, {.landmarks = at::zeros({1, 12}, at::kBool)}), Error);
}

TEST(Nsa, a_window_has_the_mean_bias_of_its_tokens) {
  // With phi=mean a window's logit is the mean of its tokens' logits: a channel of the keys says the same as a bias.
  const at::NoGradGuard no_grad;
  const Nsa o = variants()[0];
  const Case c(o, 37, 37);
  const at::Tensor slopes = random_tensor({4}, 50, at::kDouble).abs() * 0.1;
  const at::Tensor bias = random_tensor({1, 4, 1, 37}, 51, at::kDouble);
  const auto run = [&](const at::Tensor& q, const auto& keys, const ops::Score& score) {
    const NsaBranches branches{{o.summed(keys(c.raw.k), {}), o.summed(c.raw.v, {})},
                               {keys(c.selected.k), c.selected.v},
                               {keys(c.window.k), c.window.v}};
    return nsa(q, branches, c.gates, o, {}, score).out;
  };
  const at::Tensor got =
      run(c.q, [](const at::Tensor& k) { return k; }, {.scale = 0.7, .bias = bias, .slopes = slopes});
  // channels (token's position, bias of head 0 .. 3): a head's query reads its own
  const at::Tensor position = at::arange(37, at::kDouble).view({1, 1, 37, 1}).expand({2, 2, 37, 1});
  const auto keys = [&](const at::Tensor& k) {
    return at::cat({k, position, bias.squeeze(2).transpose(1, 2).unsqueeze(1).expand({2, 2, 37, 4})}, 3);
  };
  const at::Tensor own = at::eye(4, at::kDouble).view({1, 4, 1, 4}).expand({2, 4, 37, 4});
  const at::Tensor q = at::cat({c.q * 0.7, slopes.view({1, 4, 1, 1}).expand({2, 4, 37, 1}), own}, 3);
  EXPECT_TRUE(same(got, run(q, keys, {.scale = 1}), kClose));
}

TEST(Nsa, long_prompts_are_scored_in_parts_with_a_bias_of_their_rows) {
  const at::NoGradGuard no_grad;
  const Nsa o{.compress = 8, .stride = 4, .block = 16, .blocks = 5, .phi = Nsa::Phi::mean};
  const at::Tensor q = random_tensor({1, 2, 1100, kDim}, 1, at::kDouble),
                   k = random_tensor({1, 1, 1100, kDim}, 2, at::kDouble);
  const at::Tensor bias = random_tensor({1, 2, 1100, 1100}, 3, at::kDouble);
  const NsaBranches branches{{o.summed(k, {}), o.summed(k, {})}, {k, k}, {k, k}};
  const at::Tensor all = nsa(q, branches, std::nullopt, o, {}, {.bias = bias}).out;
  for (const int64_t row : {0, 511, 512, 777, 1099}) {
    const NsaBranches past{{o.summed(k.narrow(2, 0, row + 1), {}), o.summed(k.narrow(2, 0, row + 1), {})},
                           {k.narrow(2, 0, row + 1), k.narrow(2, 0, row + 1)},
                           {}};
    const at::Tensor one =
        nsa(q.narrow(2, row, 1), past, std::nullopt, o, {}, {.bias = bias.narrow(2, row, 1).narrow(3, 0, row + 1)}).out;
    EXPECT_TRUE(same(one, all.narrow(2, row, 1), kClose)) << row;
  }
}

TEST(Nsa, windows_turn_before_or_after_they_are_summed_up) {
  const at::NoGradGuard no_grad;
  const ops::Rotary rotary(kDim, 50);
  for (const Nsa::Rope rope : {Nsa::Rope::after, Nsa::Rope::before})
    for (Nsa o : variants()) {
      o.rope = rope;
      Learned parts = make_learned(o.learned_parts({9, 4, 2, kDim, kValueDim}), 3);
      for (auto& [name, part] : parts) part = part.to(at::kDouble) * 3;
      const at::Tensor raw = random_tensor({2, 2, 41, kDim}, 61, at::kDouble), tokens = at::arange(41, at::kLong);
      Inputs in{.q = random_tensor({2, 4, 41, kDim}, 62, at::kDouble),
                .k = rotary.rotate(raw, tokens),
                .v = random_tensor({2, 2, 41, kValueDim}, 63, at::kDouble)};
      in.rotary = &rotary, in.learned = &parts, in.hidden = random_tensor({2, 41, 9}, 64, at::kDouble);
      const auto part = [&](const char* name) -> std::optional<at::Tensor> {
        const auto found = parts.find(name);
        return found == parts.end() ? std::nullopt : std::optional(found->second);
      };
      const NsaPhi keys{part("key_positions"), part("key_weights"), part("key_in"), part("key_out")};
      const NsaPhi values{{}, part("value_weights"), part("value_in"), part("value_out")};
      at::Tensor k = to_tensor(windows_oracle(o, to_array(rope == Nsa::Rope::after ? raw : in.k), arrays_of(keys)));
      if (rope == Nsa::Rope::after) k = rotary.rotate(k, at::arange(k.size(2), at::kLong) * o.stride);
      at::Tensor gates = at::zeros({2, 4, 41, 3}, at::kDouble);
      for (int64_t h = 0; h < 4; ++h)
        for (int64_t b = 0; b < 3; ++b) {
          const at::Tensor row = parts.at("gate")[3 * h + b];
          gates.select(1, h).select(2, b).copy_(1 / (1 + (-in.hidden->matmul(row)).exp()));
        }
      OracleProblem p{.q = to_array(in.q),
                      .gates = to_array(gates),
                      .compressed = {to_array(k), windows_oracle(o, to_array(in.v), arrays_of(values))},
                      .selected = {to_array(in.k), to_array(in.v)},
                      .window = {to_array(in.k), to_array(in.v)},
                      .scale = 1 / std::sqrt(double(kDim)),
                      .window_left = {},
                      .lengths = {}};
      EXPECT_TRUE(same(o.attend(in).out, to_tensor(oracle(o, p).out), kClose)) << to_spec(o).text();
    }
}

TEST(Nsa, says_which_learned_part_is_missing) {
  const auto message = [](const Nsa& o, const Learned* parts) {
    const at::Tensor t = at::zeros({1, 2, 5, 4}, at::kDouble);
    Inputs in{.q = t, .k = t, .v = t};
    in.learned = parts;
    return test::message_of([&] { o.attend(in); });
  };
  EXPECT_EQ(message({}, nullptr), "nsa: has learned parts, got no adapter; give the file that training wrote");
  const Learned some = {{"key_positions", at::zeros({2, 32, 4}, at::kDouble)}};
  EXPECT_EQ(message({}, &some), "nsa: the adapter must have key_in, got none");
  EXPECT_EQ(message({.phi = Nsa::Phi::mean}, &some),
            "nsa: gates need the layer's hidden state, got none; or gates=selected");
  EXPECT_EQ(message({.phi = Nsa::Phi::mean, .gates = Nsa::Gates::selected}, nullptr), "no error");
}

}  // namespace
}  // namespace foveate::attention
