// Landmark attention against plain loops in double that rotate keys at their slots; its goldens; states that fetch.
#include "foveate/attention/sparse/landmark.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <map>

#include "foveate/attention/registry.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using test::Array;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

constexpr double kBase = 50;

using Row = std::vector<double>;

Row rotated(const Row& x, double position) {
  const size_t half = x.size() / 2;
  Row out(x.size());
  for (size_t d = 0; d < half; ++d) {
    const double angle = position * std::pow(kBase, -2.0 * double(d) / double(x.size()));
    out[d] = x[d] * std::cos(angle) - x[d + half] * std::sin(angle);
    out[d + half] = x[d + half] * std::cos(angle) + x[d] * std::sin(angle);
  }
  return out;
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

// A key that a row sees: where it seems to be, the token it is, and the block it is of (-1: the row's own section).
struct Seen {
  int64_t place, token, block;
};

// The two-level softmax over what a row sees; a block's landmark is its last token.
struct Oracle {
  Array q, k, v;  // not rotated
  Landmark options;
  bool rotates = true;
  std::optional<int64_t> window;  // keys before a row's position that it sees

  Row row(const Array& x, int64_t b, int64_t h, int64_t i) const {
    Row out(static_cast<size_t>(x.shape[3]));
    for (int64_t d = 0; d < x.shape[3]; ++d) out[size_t(d)] = x.at(b, h, i, d);
    return out;
  }
  double score(int64_t b, int64_t h, int64_t i, int64_t query_place, int64_t token, int64_t key_place) const {
    const Row query = row(q, b, h, i), key = row(k, b, h * k.shape[1] / q.shape[1], token);
    const double scale = 1 / std::sqrt(double(q.shape[3]));
    if (!rotates) return scale * dot(query, key);
    return scale * dot(rotated(query, double(query_place)), rotated(key, double(key_place)));
  }

  struct Chunk {
    int64_t start, end, before, count, oldest, latest;  // latest: candidates from here on keep their place
  };
  Chunk chunk_of(int64_t i) const {
    const int64_t length = options.chunk_length();
    Chunk c{i / length * length, std::min(i / length * length + length, q.shape[2]), 0, 0, 0, 0};
    c.before = c.start / options.block;
    c.count = options.max_blocks > 0 ? std::min(c.before, options.max_blocks) : c.before;
    c.oldest = c.before - c.count, c.latest = c.count - std::min(options.top_k, c.count);
    return c;
  }
  bool stingy() const { return options.positions == Landmark::Positions::stingy; }
  // Where the row itself seems to be: local coordinates begin with one slot more than blocks fetched.
  int64_t query_place(int64_t i, const Chunk& c) const {
    if (!stingy()) return i;
    return (std::min(options.top_k, c.count) + 1) * options.block + i - c.before * options.block;
  }
  std::vector<double> landmark_scores(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> scores;
    for (int64_t j = 0; j < c.count; ++j) {
      const int64_t token = (c.oldest + j + 1) * options.block - 1;
      const int64_t slot = j < c.latest ? 0 : j - c.latest + 1;
      const int64_t place = stingy() ? slot * options.block + options.block - 1 : token;
      const bool hidden = window && token < i - *window;
      scores.push_back(hidden ? -INFINITY : score(b, h, i, query_place(i, c), token, place));
    }
    return scores;
  }
  std::vector<double> shares(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> s = landmark_scores(b, h, i, c);
    double sum = 0;
    for (const double x : s) sum += std::exp(x);
    for (double& x : s) x = std::exp(x) / sum;
    return s;
  }
  // Candidates chosen for a row, oldest first.
  std::vector<int64_t> chosen(int64_t b, int64_t h, int64_t i, const Chunk& c) const {
    std::vector<double> best(size_t(c.count), -INFINITY);
    const int64_t heads = q.shape[1], group = heads / k.shape[1];
    const auto raise = [&](const std::vector<double>& s) {
      for (size_t j = 0; j < s.size(); ++j) best[j] = std::max(best[j], s[j]);
    };
    const bool shared = options.share_in_group;
    for (int64_t other = 0; other < heads; ++other) {
      const bool counts = options.select == Landmark::Select::max_over_heads || other == h ||
                          (shared && other / group == h / group);
      if (!counts) continue;
      if (options.select == Landmark::Select::max_over_tokens)
        for (int64_t t = c.start; t < c.end; ++t) raise(shares(b, other, t, c));
      else if (options.select == Landmark::Select::per_head_token && !shared)
        raise(landmark_scores(b, other, i, c));
      else
        raise(shares(b, other, i, c));
    }
    std::vector<int64_t> order;
    for (int64_t j = 0; j < c.count; ++j)
      if (best[size_t(j)] > -INFINITY) order.push_back(j);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return best[size_t(x)] > best[size_t(y)]; });
    if (std::ssize(order) > options.top_k) order.resize(size_t(options.top_k));
    std::sort(order.begin(), order.end());
    return order;
  }
  std::vector<Seen> seen(int64_t b, int64_t h, int64_t i) const {
    const Chunk c = chunk_of(i);
    const int64_t block = options.block;
    std::vector<Seen> all;
    const auto take = [&](int64_t token, int64_t place, int64_t of) {
      if (!window || token >= i - *window) all.push_back({place, token, of});
    };
    const std::vector<int64_t> blocks = chosen(b, h, i, c);
    for (size_t r = 0; r < blocks.size(); ++r) {
      const int64_t slot = int64_t(r) + (blocks[r] >= c.latest ? 1 : 0);
      for (int64_t u = 0; u < block; ++u) {
        const int64_t token = (c.oldest + blocks[r]) * block + u;
        take(token, stingy() ? slot * block + u : token, c.oldest + blocks[r]);
      }
    }
    for (int64_t t = c.before * block; t <= i; ++t) take(t, query_place(t, c), t / block == i / block ? -1 : t / block);
    return all;
  }
  Row weights(int64_t b, int64_t h, int64_t i) const {  // of all tokens
    const Chunk c = chunk_of(i);
    std::map<int64_t, double> block_sum, gate;
    Row e(size_t(k.shape[2]), 0.0), w(size_t(k.shape[2]), 0.0);
    double total = 0;
    const std::vector<Seen> all = seen(b, h, i);
    const auto is_landmark = [&](int64_t token) { return token % options.block == options.block - 1; };
    for (const Seen& s : all) {
      e[size_t(s.token)] = std::exp(score(b, h, i, query_place(i, c), s.token, s.place));
      if (s.block < 0 && !is_landmark(s.token)) total += e[size_t(s.token)];
      if (s.block >= 0 && is_landmark(s.token)) gate[s.block] = e[size_t(s.token)];
      if (s.block >= 0 && !is_landmark(s.token)) block_sum[s.block] += e[size_t(s.token)];
    }
    for (const auto& [of, g] : gate)
      if (block_sum[of] > 0) total += g;
    for (const Seen& s : all) {
      if (is_landmark(s.token)) continue;
      const double share = s.block < 0 ? 1 : gate[s.block] / block_sum[s.block];
      w[size_t(s.token)] += e[size_t(s.token)] * share / total;
    }
    return w;
  }
  Tensor out() const {
    Array result(q.shape[0], q.shape[1], q.shape[2], v.shape[3]);
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const Row w = weights(b, h, i);
          for (int64_t t = 0; t < k.shape[2]; ++t)
            for (int64_t d = 0; d < v.shape[3]; ++d)
              result.at(b, h, i, d) += w[size_t(t)] * v.at(b, h * k.shape[1] / q.shape[1], t, d);
        }
    return to_tensor(result);
  }
};

struct Sample {
  Tensor q, k, v;  // not rotated
  ops::Rotary rotary{8, kBase};
  Inputs in;
  explicit Sample(int64_t length, at::ScalarType type = at::kDouble, int64_t offset = 0, int64_t batch = 2)
      : q(random_tensor({batch, 4, length, 8}, 1, type)),
        k(random_tensor({batch, 2, length, 8}, 2, type) * 2),
        v(random_tensor({batch, 2, length, 5}, 3, type)) {
    const Tensor positions = at::arange(offset, offset + length, at::kLong);
    in.q = rotary.rotate(q, positions), in.k = rotary.rotate(k, positions), in.v = v;
    in.rotary = &rotary;
  }
  Inputs rows(int64_t first, int64_t count) const {
    Inputs part = in;
    part.q = in.q.narrow(2, first, count), part.k = in.k.narrow(2, first, count), part.v = in.v.narrow(2, first, count);
    return part;
  }
  Oracle oracle(const Landmark& options) const {
    return {to_array(q), to_array(k), to_array(v), options, in.rotary != nullptr, in.rule.window_left};
  }
};

// Prefills and then decodes; row by row or several at once.
Tensor generated(State& state, const Sample& s, std::initializer_list<int64_t> parts, int64_t prompt_parts) {
  std::vector<Tensor> outs;
  int64_t first = 0, number = 0;
  for (const int64_t count : parts) {
    const Inputs part = s.rows(first, count);
    outs.push_back((number++ < prompt_parts ? state.prefill(part) : state.decode(part)).out);
    first += count;
  }
  for (; first < s.q.size(2); ++first) outs.push_back(state.decode(s.rows(first, 1)).out);
  return at::cat(outs, 2);
}

TEST(Landmark, golden_of_seven_tokens) {
  // s[i][j] = (((3 i + 5 j) mod 7) - 3) / 2 by one-hot queries; landmarks at 2 and 5
  Inputs in;
  in.q = at::zeros({1, 1, 7, 7}, at::kDouble), in.k = at::zeros({1, 1, 7, 7}, at::kDouble);
  in.v = at::zeros({1, 1, 7, 2}, at::kDouble);
  for (int64_t i = 0; i < 7; ++i) {
    in.q[0][0][i][i] = 1;
    for (int64_t j = 0; j < 7; ++j) in.k[0][0][j][i] = (double((3 * i + 5 * j) % 7) - 3) / 2;
    in.v[0][0][i][0] = double(i + 1), in.v[0][0][i][1] = double(i * i % 5);
  }
  in.score.scale = 1;
  const double want[7][2] = {{1, 0},
                             {1.268941, .268941},
                             {1.268941, .268941},
                             {2.003436, 1.272378},
                             {4.099106, 3.027630},
                             {2.709085, 1.683721},
                             {6.549851, 1.126896}};
  const double weights[3][7] = {{.534447, .196612, 0, .268941, 0, 0, 0},
                                {.050464, .614777, 0, .244728, .090031, 0, 0},
                                {.032157, .011830, 0, .053017, .019504, 0, .883492}};
  Inputs one_hot = in;
  one_hot.v = at::zeros({1, 1, 7, 7}, at::kDouble);
  for (int64_t t = 0; t < 7; ++t) one_hot.v[0][0][t][t] = 1;
  for (const Landmark& options :
       {Landmark{.block = 3, .mode = Landmark::Mode::grouped},
        Landmark{.block = 3, .top_k = 1, .chunk = 7, .positions = Landmark::Positions::text},
        Landmark{.block = 3, .top_k = 2, .chunk = 1, .positions = Landmark::Positions::text}}) {
    const Tensor out = options.attend(in).out;
    const Tensor w = options.attend(one_hot).out;
    for (int64_t i = 0; i < 7; ++i)
      for (int64_t d = 0; d < 2; ++d) EXPECT_NEAR(out[0][0][i][d].item<double>(), want[i][d], 1e-6) << i;
    const int64_t rows[3] = {3, 5, 6};
    for (int64_t n = 0; n < 3; ++n)
      for (int64_t t = 0; t < 7; ++t) EXPECT_NEAR(w[0][0][rows[n]][t].item<double>(), weights[n][t], 1e-6) << n << t;
  }
}

TEST(Landmark, fetches_what_the_loops_fetch) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  for (const auto positions : {Landmark::Positions::stingy, Landmark::Positions::text})
    for (const auto select :
         {Landmark::Select::per_head_token, Landmark::Select::max_over_heads, Landmark::Select::max_over_tokens})
      for (const bool share : {false, true})
        for (const int64_t max_blocks : {0, 4})
          for (const auto& [block, chunk] : {std::pair<int64_t, int64_t>{5, 10}, {6, 13}, {2, 3}}) {
            const Landmark options{.block = block, .top_k = 2, .chunk = chunk, .max_blocks = max_blocks,
                                   .select = select, .share_in_group = share, .positions = positions};
            EXPECT_TRUE(same(options.attend(s.in).out, s.oracle(options).out(), {1e-10, 1e-10}))
                << to_spec(options).text();
          }
}

TEST(Landmark, positions_without_rotary_embedding_are_those_of_the_text) {
  const at::NoGradGuard no_grad;
  Sample s(50);
  s.in.rotary = nullptr, s.in.q = s.q, s.in.k = s.k;
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .positions = Landmark::Positions::text};
  EXPECT_TRUE(same(options.attend(s.in).out, s.oracle(options).out(), {1e-10, 1e-10}));
  EXPECT_THROW((Landmark{.block = 5, .chunk = 10}.attend(s.in)), Error);
}

TEST(Landmark, a_layers_own_window_hides_keys_and_landmarks) {
  const at::NoGradGuard no_grad;
  Sample s(70);
  for (const int64_t window : {0, 4, 17, 33}) {
    s.in.rule.window_left = window;
    for (const std::string& offload : {std::string(), testing::TempDir()}) {
      const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = offload};
      const Tensor want = s.oracle(options).out();
      EXPECT_TRUE(same(options.attend(s.in).out, want, {1e-10, 1e-10})) << window;
      const auto state = options.make_state({.rule = s.in.rule});
      EXPECT_TRUE(same(generated(*state, s, {31, 5}, 1), want, {1e-10, 1e-10})) << "state " << window;
    }
  }
}

TEST(Landmark, fetching_all_blocks_is_the_grouped_softmax_over_the_whole_text) {
  const at::NoGradGuard no_grad;
  const Sample s(61);
  const Tensor want = Landmark{.block = 4, .mode = Landmark::Mode::grouped}.attend(s.in).out;
  const Landmark all{.block = 4, .top_k = 15, .chunk = 8}, some{.block = 4, .top_k = 3, .chunk = 8};
  EXPECT_TRUE(same(all.attend(s.in).out, want, {1e-12, 1e-12}));
  const auto state = all.make_state({});
  EXPECT_TRUE(same(generated(*state, s, {9, 11, 3}, 2), want, {1e-12, 1e-12}));
  // with fewer, rows of chunks behind at most so many blocks do not differ, others may
  const Tensor fewer = some.attend(s.in).out;
  EXPECT_TRUE(same(fewer.narrow(2, 0, 16), want.narrow(2, 0, 16), {1e-12, 1e-12}));
  EXPECT_FALSE(same(fewer.narrow(2, 24, 20), want.narrow(2, 24, 20), {1e-3, 1e-3}));
  // and one more block than fetched is still in its place
  const Tensor dropped = Landmark{.block = 4, .top_k = 15, .chunk = 8, .positions = Landmark::Positions::text}.attend(s.in).out;
  EXPECT_TRUE(same(dropped, want, {1e-12, 1e-12}));
}

TEST(Landmark, a_text_without_a_landmark_is_plain_attention) {
  const at::NoGradGuard no_grad;
  const Sample s(30);
  const Tensor want = ops::attend(s.in.q, s.in.k, s.in.v, Rule{}, {}).out;
  EXPECT_TRUE(same(Landmark{.block = 31}.attend(s.in).out, want, {1e-12, 1e-12}));
  EXPECT_TRUE(same(Landmark{.block = 5, .mode = Landmark::Mode::nomem}.attend(s.in).out, want, {1e-12, 1e-12}));
}

TEST(Landmark, ignore_mem_is_plain_attention_over_normal_tokens) {
  const at::NoGradGuard no_grad;
  const Sample s(30);
  const auto want = test::oracle_attention(
      to_array(s.in.q), to_array(s.in.k), to_array(s.v),
      [](int64_t, int64_t, int64_t i, int64_t j) { return int(j <= i && j % 5 != 4); },
      {.scale = 1 / std::sqrt(8.0), .soft_cap = {}, .bias = {}, .sink = {}});
  const Landmark options{.block = 5, .mode = Landmark::Mode::ignore_mem};
  EXPECT_TRUE(same(options.attend(s.in).out, to_tensor(want.out), {1e-11, 1e-11}));
  const auto state = options.make_state({});
  EXPECT_TRUE(same(generated(*state, s, {13, 4}, 1), to_tensor(want.out), {1e-11, 1e-11}));
}

TEST(Landmark, a_shift_of_all_positions_changes_nothing) {
  const at::NoGradGuard no_grad;
  const Sample here(70), there(70, at::kDouble, 1000);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10};
  EXPECT_TRUE(same(options.attend(there.in).out, options.attend(here.in).out, {1e-9, 1e-9}));
}

TEST(Landmark, chunks_of_one_row_choose_alike_by_token_and_over_tokens) {
  const at::NoGradGuard no_grad;
  const Sample s(40);
  const Landmark by_token{.block = 4, .top_k = 2, .chunk = 1};
  Landmark over_tokens = by_token;
  over_tokens.select = Landmark::Select::max_over_tokens;
  EXPECT_TRUE(same(over_tokens.attend(s.in).out, by_token.attend(s.in).out, {1e-12, 1e-12}));
}

TEST(Landmark, irregular_landmarks_group_but_are_not_fetched) {
  const at::NoGradGuard no_grad;
  Sample s(20);
  Tensor marks = at::zeros({2, 20}, at::kBool);
  for (const int64_t j : {3, 4, 11}) marks[0][j] = true;
  for (const int64_t j : {0, 7}) marks[1][j] = true;
  s.in.score.landmarks = marks;
  const Tensor out = Landmark{.mode = Landmark::Mode::grouped}.attend(s.in).out;
  EXPECT_TRUE(same(out, ops::attend(s.in.q, s.in.k, s.in.v, Rule{}, s.in.score).out, {1e-12, 1e-12}));
  EXPECT_THROW((Landmark{.block = 4, .chunk = 4}.attend(s.in)), Error);
  s.in.score.landmarks = regular_landmarks(0, 20, 4);
  EXPECT_TRUE(Landmark({.block = 4, .top_k = 1, .chunk = 4}).attend(s.in).out.isfinite().all().item<bool>());
}

TEST(Landmark, gradients_of_fetched_rows_are_those_of_finite_differences) {
  Sample s(29, at::kDouble, 0, 1);
  Tensor q = s.in.q.clone().requires_grad_(), k = s.in.k.clone().requires_grad_(), v = s.in.v.clone().requires_grad_();
  const Tensor along = random_tensor({1, 4, 29, 5}, 8, at::kDouble);
  const Landmark options{.block = 4, .top_k = 2, .chunk = 6};
  const auto loss = [&] {
    Inputs in = s.in;
    in.q = q, in.k = k, in.v = v;
    return (options.attend(in).out * along).sum();
  };
  loss().backward();
  const at::NoGradGuard no_grad;
  for (Tensor* x : {&q, &k, &v}) {
    const Tensor flat = x->view({-1}), gradient = x->grad().view({-1});
    for (int64_t i = 0; i < flat.numel(); i += 23) {
      const double value = flat[i].item<double>();
      flat[i].fill_(value + 1e-6);
      const double up = loss().item<double>();
      flat[i].fill_(value - 1e-6);
      const double down = loss().item<double>();
      flat[i].fill_(value);
      EXPECT_NEAR(gradient[i].item<double>(), (up - down) / 2e-6, 1e-6) << i;
    }
  }
}

TEST(Landmark, kernels_agree_with_the_loops) {  // blocks that kernels take side by side, gathered ones, all types
  const at::NoGradGuard no_grad;
  for (const int64_t block : {16, 51, 64}) {
    const Sample wide(4 * block + 30, at::kFloat, 0, 1);
    const Landmark options{.block = block, .top_k = 1, .chunk = block};
    const Tensor want = wide.oracle(options).out();
    EXPECT_TRUE(same(options.attend(wide.in).out, want, {1e-4, 1e-4})) << block;
    const auto state = options.make_state({});
    EXPECT_TRUE(same(generated(*state, wide, {3 * block + 5}, 1), want, {1e-4, 1e-4})) << block;
  }
}

TEST(LandmarkState, equals_the_loops_in_memory_and_on_disk) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  for (const std::string& offload : {std::string(), testing::TempDir()})
    for (const int64_t max_blocks : {0, 4})
      for (const auto positions : {Landmark::Positions::stingy, Landmark::Positions::text}) {
        const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .max_blocks = max_blocks, .positions = positions,
                               .offload = offload};
        const Tensor want = s.oracle(options).out();
        const auto state = options.make_state({});
        EXPECT_TRUE(same(generated(*state, s, {31, 7, 4, 3}, 2), want, {1e-10, 1e-10})) << to_spec(options).text();
        EXPECT_EQ(state->length(), 75);
      }
}

TEST(LandmarkState, max_over_tokens_agrees_when_prompts_are_cut_at_chunks) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .select = Landmark::Select::max_over_tokens};
  EXPECT_EQ(options.chunk_multiple(), 10);
  EXPECT_EQ(options.own_kind(), Kind::block);
  const Tensor want = s.oracle(options).out();
  const auto state = options.make_state({});
  EXPECT_TRUE(same(generated(*state, s, {40, 30, 5}, 3), want, {1e-10, 1e-10}));
  // generated rows choose for themselves
  const auto other = options.make_state({});
  Landmark by_token = options;
  by_token.select = Landmark::Select::per_head_token;
  EXPECT_TRUE(same(generated(*other, s, {40}, 1).narrow(2, 40, 35), s.oracle(by_token).out().narrow(2, 40, 35),
                   {1e-10, 1e-10}));
}

TEST(LandmarkState, a_bounded_state_stays_small) {
  const at::NoGradGuard no_grad;
  const Sample s(3000, at::kFloat, 0, 1);
  const int64_t token = 2 * (8 + 5) * 4;
  const auto run = [&](const Landmark& options) {
    auto state = options.make_state({});
    state->prefill(s.rows(0, 2900));
    for (int64_t row = 2900; row < 3000; ++row) state->decode(s.rows(row, 1));
    return state;
  };
  const auto bounded = run({.block = 5, .top_k = 2, .chunk = 10, .max_blocks = 8});
  const auto on_disk = run({.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()});
  const auto all = run({.block = 5, .top_k = 2, .chunk = 10});
  EXPECT_GE(all->bytes(), 3000 * token);
  EXPECT_LE(bounded->bytes(), 300 * token);
  EXPECT_LE(on_disk->bytes(), 3000 * token);  // landmarks, their moved copies, the latest tokens
  EXPECT_LE(on_disk->read_bytes(), (15 + 2 * 2 * 5) * token + 600 * 2 * 8 * 4);
  EXPECT_THROW(bounded->truncate(2000), Error);
  EXPECT_EQ(bounded->length(), 3000);
}

TEST(LandmarkState, saved_on_disk_it_goes_on_in_memory_and_back) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  for (const int64_t max_blocks : {0, 4}) {
    const Landmark in_memory{.block = 5, .top_k = 2, .chunk = 10, .max_blocks = max_blocks};
    Landmark on_disk = in_memory;
    on_disk.offload = testing::TempDir();
    for (const auto& [from, to] : {std::pair(on_disk, in_memory), {in_memory, on_disk}, {on_disk, on_disk}}) {
      const auto state = from.make_state({}), other = to.make_state({});
      state->prefill(s.rows(0, 41));
      for (int64_t row = 41; row < 53; ++row) state->decode(s.rows(row, 1));
      other->load(state->save());
      for (int64_t row = 53; row < 75; ++row)
        ASSERT_TRUE(other->decode(s.rows(row, 1)).out.equal(state->decode(s.rows(row, 1)).out)) << row;
    }
  }
}

TEST(LandmarkState, goes_back_as_far_as_it_was_asked_to) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  for (const std::string& offload : {std::string(), testing::TempDir()})
    for (const int64_t max_blocks : {0, 4}) {
      const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .max_blocks = max_blocks, .offload = offload};
      const Tensor want = s.oracle(options).out();
      const auto state = options.make_state({.rule = {}, .rollback = 20});
      generated(*state, s, {31}, 1);
      for (const int64_t length : {62, 55, 71}) {
        if (length > state->length()) state->decode(s.rows(state->length(), length - state->length()));
        state->truncate(length);
        for (int64_t row = length; row < 75; ++row)
          ASSERT_TRUE(same(state->decode(s.rows(row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
      }
      if (max_blocks > 0) continue;
      state->truncate(12);  // nothing was dropped
      for (int64_t row = 12; row < 75; ++row)
        ASSERT_TRUE(same(state->decode(s.rows(row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
    }
}

TEST(LandmarkState, a_disk_that_fills_is_one_line_and_nothing_is_lost) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()};
  const Tensor want = s.oracle(options).out();
  const auto state = options.make_state({});
  state->prefill(s.rows(0, 31));
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit tight = before;
  tight.rlim_cur = 3000;
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string message;
  int64_t row = 31;
  try {
    for (; row < 75; ++row) state->decode(s.rows(row, 1));
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NE(message.find("offload: the disk of"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(state->length(), row);
  for (; row < 75; ++row)
    ASSERT_TRUE(same(state->decode(s.rows(row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
}

TEST(LandmarkState, refuses_folders_that_are_none) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = "/nonexistent/folder"};
  const auto state = options.make_state({});
  state->prefill(s.rows(0, 31));
  EXPECT_THROW(state->prefill(s.rows(31, 20)), Error);
  EXPECT_EQ(state->length(), 31);
}

TEST(Landmark, names_what_does_not_fit) {
  const auto message = [](const std::string& spec) {
    try {
      make_mechanism(parse_spec(spec));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message("landmark:block=64,top_k=7,train_context=512"),
            "landmark: train_context must hold top_k + 2 blocks, got 512 for 9 blocks of 64; or set chunk");
  EXPECT_NE(message("landmark:block=1"), "");
  EXPECT_NE(message("landmark:top_k=0"), "");
  EXPECT_NE(message("landmark:mode=grouped,offload=x"), "");
  EXPECT_EQ((Landmark{.block = 51, .top_k = 5}.chunk_length()), 153);  // 512 - 2 - 6 * 51
  Sample s(20);
  s.in.score.slopes = at::zeros({4}, at::kDouble);
  EXPECT_THROW((Landmark{.block = 4, .chunk = 4}.attend(s.in)), Error);
  s.in.score.slopes = std::nullopt, s.in.rule = Rule::full();
  EXPECT_THROW((Landmark{.block = 4, .chunk = 4}.attend(s.in)), Error);
}

}  // namespace
}  // namespace foveate::attention
