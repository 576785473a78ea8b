// Landmark attention against plain loops in double; its goldens and limit cases.
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "foveate/attention/registry.h"
#include "tests/attention/landmark_oracle.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace test::landmark;
using at::Tensor;
using test::random_tensor;
using test::same;
using test::to_array;
using test::to_tensor;

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
            const Landmark options{.block = block,
                                   .top_k = 2,
                                   .chunk = chunk,
                                   .max_blocks = max_blocks,
                                   .select = select,
                                   .share_in_group = share,
                                   .positions = positions};
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

// Padding behind some rows' texts, packed documents, ranges of keys, windows of some heads.
TEST(Landmark, padding_and_documents_hide_keys_and_landmarks) {
  const at::NoGradGuard no_grad;
  Sample s(60);
  std::vector<Rule> rules(4);
  rules[0].key_lengths = at::tensor(std::vector<int64_t>{60, 33});
  const Tensor documents = at::arange(60, at::kLong).div(23, "floor").expand({2, 60}).contiguous();
  rules[1].query_documents = rules[1].key_documents = documents;
  rules[2].row_start = (at::arange(60, at::kLong) - 27).clamp_min(3).view({1, 1, 60});
  rules[2].row_end = at::arange(60, at::kLong).sub(at::tensor(std::vector<int64_t>{-1, 12}).view({2, 1, 1})) +
                     at::tensor(std::vector<int64_t>{0, -11, 5, -3}).view({1, 4, 1});
  rules[3].head_window = at::tensor(std::vector<int64_t>{-1, 9, 30, 0});
  for (size_t n = 0; n < rules.size(); ++n)
    for (const auto select :
         {Landmark::Select::per_head_token, Landmark::Select::max_over_heads, Landmark::Select::max_over_tokens})
      for (const auto positions : {Landmark::Positions::stingy, Landmark::Positions::text}) {
        s.in.rule = rules[n];
        const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .select = select, .positions = positions};
        EXPECT_TRUE(same(options.attend(s.in).out, s.oracle(options).out(), {1e-10, 1e-10}))
            << n << " " << to_spec(options).text();
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
  const Tensor dropped =
      Landmark{.block = 4, .top_k = 15, .chunk = 8, .positions = Landmark::Positions::text}.attend(s.in).out;
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
  const auto want =
      test::oracle_attention(to_array(s.in.q), to_array(s.in.k), to_array(s.v),
                             [](int64_t, int64_t, int64_t i, int64_t j) { return int(j <= i && j % 5 != 4); },
                             {.scale = 1 / std::sqrt(8.0), .soft_cap = {}, .bias = {}, .sink = {}});
  const Landmark options{.block = 5, .mode = Landmark::Mode::ignore_mem};
  EXPECT_TRUE(same(options.attend(s.in).out, to_tensor(want.out), {1e-11, 1e-11}));
  const auto state = options.make_state({});
  EXPECT_TRUE(same(generated(*state, s, {13, 4}, 1), to_tensor(want.out), {1e-11, 1e-11}));
}

TEST(Landmark, weights_sum_to_one_and_landmarks_values_never_count) {
  const at::NoGradGuard no_grad;
  Sample s(60);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10};
  Tensor v = s.v.clone().fill_(1);
  for (int64_t j = 4; j < 60; j += 5) v.select(2, j).fill_(1e6);
  s.in.v = v;
  const Tensor out = options.attend(s.in).out;
  EXPECT_TRUE(same(out, out.clone().fill_(1), {1e-12, 1e-12}));
  s.in.v = s.v, s.in.q = s.in.q.clone().zero_();  // equal logits: the first landmark's row is the mean of its block
  const Tensor mean = s.v.narrow(2, 0, 4).mean(2).repeat_interleave(2, 1);
  EXPECT_TRUE(same(options.attend(s.in).out.select(2, 4), mean, {1e-12, 1e-12}));
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
  for (Tensor* x : {&s.in.q, &s.in.k, &s.in.v}) *x = x->clone();
  s.in.score.soft_cap = 3, s.in.score.sink = random_tensor({4}, 9, at::kDouble);
  const Tensor along = random_tensor({1, 4, 29, 5}, 8, at::kDouble);
  const Landmark options{.block = 4, .top_k = 2, .chunk = 6};
  test::expect_gradients([&] { return (options.attend(s.in).out * along).sum(); },
                         {s.in.q, s.in.k, s.in.v, *s.in.score.sink}, 1e-6, 40);
}

TEST(Landmark, the_same_bits_on_any_threads) {
  const at::NoGradGuard no_grad;
  const Sample s(600, at::kFloat, 0, 1);
  const Landmark options{.block = 16, .top_k = 3, .chunk = 40};
  test::expect_same_bits_on_threads([&] { return options.attend(s.in).out; });
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

TEST(Landmark, names_what_does_not_fit) {
  const auto message = [](const std::string& spec) {
    return test::message_of([&] { make_mechanism(parse_spec(spec)); });
  };
  EXPECT_EQ(message("landmark:block=64,top_k=7,train_context=512"),
            "landmark: train_context must hold top_k + 2 blocks, got 512 for 9 blocks of 64; or set chunk");
  EXPECT_EQ(message("landmark:block=1"), "landmark: block must be >= 2, got 1");
  EXPECT_EQ(message("landmark:top_k=0"), "landmark: top_k must be >= 1, got 0");
  EXPECT_EQ(message("landmark:mode=grouped,offload=x"), "landmark: offload needs mode=landmark, got mode=grouped");
  EXPECT_EQ((Landmark{.block = 51, .top_k = 5}.chunk_length()), 204);  // 512 - 2 - 6 * 51
  Sample s(20);
  s.in.score.slopes = at::zeros({4}, at::kDouble);
  EXPECT_THROW((Landmark{.block = 4, .chunk = 4}.attend(s.in)), Error);
  s.in.score.slopes = std::nullopt, s.in.rule = Rule::full();
  EXPECT_THROW((Landmark{.block = 4, .chunk = 4}.attend(s.in)), Error);
}

}  // namespace
}  // namespace foveate::attention
