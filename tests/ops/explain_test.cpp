// Which kernel runs, or why none does; strict mode; torch's threads.
#include "foveate/ops/attend/explain.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#include "foveate/base/error.h"
#include "foveate/ops/level.h"
#include "foveate/ops/neighborhood/neighborhood.h"
#include "foveate/ops/offsets/weigh_offsets.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/quantise/quantise.h"
#include "tests/support/compare.h"
#include "tests/support/messages.h"

namespace foveate::ops {
namespace {

using test::random_tensor;

// An environment variable for the length of a test.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Setting() { ::unsetenv(name_); }

 private:
  const char* name_;
};

struct Small {
  at::Tensor q = random_tensor({1, 2, 130, 16}, 1), k = random_tensor({1, 1, 130, 16}, 2);
};

TEST(Explain, names_the_level_and_what_it_visits) {
  const Small s;
  const std::string text = explain(s.q, s.k, s.k, Rule{});
  EXPECT_TRUE(text.starts_with(std::string(kernel_level()) + ": fp32 products")) << text;
  EXPECT_NE(text.find("panels of 64 keys"), std::string::npos) << text;
}

TEST(Explain, says_whether_keys_are_packed) {
  const Small s;
  const at::Tensor one = s.q.narrow(2, 0, 1);
  EXPECT_NE(explain(one, s.k, s.k, Rule{}).find("panels of 64 keys as they are ("), std::string::npos);
  EXPECT_NE(explain(s.q, s.k, s.k, Rule{}).find("panels of 64 keys ("), std::string::npos);
}

TEST(Explain, says_where_8_bits_are_multiplied_in_whole_numbers) {
  if (kernel_level() != "avx512_bf16") GTEST_SKIP() << "this machine has no such level";
  const auto of = [](int64_t queries, int64_t dim, at::ScalarType type) {
    const at::Tensor rows = quantise_rows(random_tensor({1, 1, 70, dim}, 2));
    return explain(random_tensor({1, 2, queries, dim}, 1, type), rows, rows, Rule{});
  };
  EXPECT_TRUE(of(1, 64, at::kBFloat16).starts_with("avx512_bf16: whole-number products"));
  EXPECT_TRUE(of(1, 80, at::kBFloat16).starts_with("avx512_bf16: bf16 products"));
  EXPECT_TRUE(of(40, 64, at::kBFloat16).starts_with("avx512_bf16: bf16 products"));
  EXPECT_TRUE(of(1, 64, at::kFloat).starts_with("avx512_bf16: fp32 products"));
}

TEST(Explain, names_the_reason_where_no_kernel_runs) {
  const Small s;
  const auto doubles = [](const at::Tensor& t) { return t.to(at::kDouble); };
  EXPECT_EQ(explain(doubles(s.q), doubles(s.k), doubles(s.k), Rule{}), "definition: fp64 runs in the definition");
  const at::Tensor wide = random_tensor({1, 1, 3, 577}, 1);
  EXPECT_EQ(explain(wide, wide, wide, Rule{}), "definition: head dims must be 1 .. 576, got 577 and 577");
  const Score slopes{.slopes = random_tensor({2}, 3)};
  EXPECT_EQ(explain(s.q, s.k, s.k, Rule{.query_start = int64_t{1} << 31}, slopes),
            "definition: slopes need positions within 2^30, got 2147483648");
  const Setting definition("FOVEATE_BACKEND", "definition");
  EXPECT_EQ(explain(s.q, s.k, s.k, Rule{}), "definition: FOVEATE_BACKEND=definition");
}

TEST(Explain, every_bias_stays_on_the_kernels_with_and_without_a_gradient) {
  const Small s;
  const Setting strict("FOVEATE_STRICT", "1");
  const Score mask{.bias = random_tensor({1, 1, 1, 130}, 3)};
  const at::Tensor q = s.q.clone().requires_grad_();
  attend(q, s.k, s.k, Rule{}, mask).out.sum().backward();  // strict: it would throw
  EXPECT_TRUE(q.grad().isfinite().all().item<bool>());
  const Score learned{.bias = random_tensor({1, 1, 1, 130}, 3).requires_grad_()};
  attend(q, s.k, s.k, Rule{}, learned).out.sum().backward();
  EXPECT_TRUE(learned.bias->grad().isfinite().all().item<bool>());
}

TEST(Explain, strict_mode_refuses_the_definition_unless_it_was_asked_for) {
  const at::Tensor wide = random_tensor({1, 1, 3, 577}, 1);
  EXPECT_NO_THROW(attend(wide, wide, wide, Rule{}));
  const Setting strict("FOVEATE_STRICT", "1");
  try {
    attend(wide, wide, wide, Rule{});
    ADD_FAILURE() << "strict mode let it pass";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("strict mode, and no kernel runs this: head dims"), std::string::npos)
        << error.what();
  }
  const Setting definition("FOVEATE_BACKEND", "definition");
  EXPECT_NO_THROW(attend(wide, wide, wide, Rule{}));
}

int64_t calls_of(const std::string& what) {
  for (const KernelUse& use : kernel_uses())
    if (use.what == what) return use.calls;
  return 0;
}

// What only the numbers decide is counted and no error in strict mode: a step whose gradients overflow is none.
TEST(Explain, calls_that_the_definition_runs_again_for_their_numbers_are_counted) {
  if (!kernel_table()) GTEST_SKIP() << "the definition was asked for";
  const at::Tensor x = random_tensor({1, 1, 30, 8}, 1);
  at::Tensor bad = x.clone();
  bad.select(2, 7).fill_(std::numeric_limits<double>::infinity());
  const Neighborhood axis{{{30, 5}}};
  const std::string what = "definition neighborhood forward: a number or a sum of them is not finite";
  const int64_t before = calls_of(what);
  attend_neighborhood(x, x, x, axis);
  EXPECT_EQ(calls_of(what), before);
  attend_neighborhood(x, x, bad, axis);
  EXPECT_EQ(calls_of(what), before + 1);
  const Setting strict("FOVEATE_STRICT", "1");
  EXPECT_NO_THROW(attend_neighborhood(x, x, bad, axis));
  const std::string back = "definition neighborhood backward: a number or a sum of them is not finite";
  const int64_t backward = calls_of(back);
  const at::Tensor q = x.clone().requires_grad_();
  (attend_neighborhood(q, x, x, axis).out.sum() * std::numeric_limits<double>::infinity()).backward();
  EXPECT_EQ(calls_of(back), backward + 1);
  EXPECT_FALSE(q.grad().isfinite().any().item<bool>());
}

TEST(Explain, operators_beside_attend_say_that_fp64_runs_in_the_definition) {
  if (!kernel_table()) GTEST_SKIP() << "the definition was asked for";
  const at::Tensor x = random_tensor({1, 1, 6, 8}, 1, at::kDouble), pairs = at::zeros({1, 1, 6, 2}, at::kLong);
  const at::Tensor map = random_tensor({1, 2, 3, 3}, 1, at::kDouble),
                   logits = random_tensor({1, 1, 6, 6}, 2, at::kDouble);
  const auto runs = [&] {
    pair_scores(x, x, pairs, 1);
    weigh_offsets(map, logits, {0}, {1});
  };
  runs();
  EXPECT_GE(calls_of("definition pair_scores forward: fp64 runs in the definition"), 1);
  EXPECT_GE(calls_of("definition weigh_offsets forward: fp64 runs in the definition"), 1);
  const Setting strict("FOVEATE_STRICT", "1");
  EXPECT_EQ(test::message_of([&] { weigh_offsets(map, logits, {0}, {1}); }),
            "weigh_offsets: strict mode, and no kernel runs this: fp64 runs in the definition");
  EXPECT_NO_THROW(weigh_offsets(map.to(at::kFloat), logits.to(at::kFloat), {0}, {1}));
}

TEST(Explain, counts_what_ran) {
  const Small s;
  const std::string what = fmt::format("{} forward", kernel_level());
  const int64_t before = calls_of(what);
  attend(s.q, s.k, s.k, Rule{});
  EXPECT_EQ(calls_of(what), before + 1);
}

TEST(Levels, an_unknown_one_is_refused_with_the_known_ones) {
  const Setting wrong("FOVEATE_BACKEND", "avx1024");
  try {
    kernel_level();
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no level 'avx1024', it has: definition portable"), std::string::npos)
        << error.what();
  }
}

TEST(Threads, all_of_torchs_threads_work_and_no_more) {
  const int before = at::get_num_threads();
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    std::atomic<int> waiting{threads};
    torch_pool().run(threads, [&](int) {  // each waits until all are here, so one thread cannot do it alone
      --waiting;
      const auto start = std::chrono::steady_clock::now();
      while (waiting > 0 && std::chrono::steady_clock::now() - start < std::chrono::seconds(5))
        std::this_thread::yield();
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    EXPECT_EQ(int(seen.size()), threads);
    EXPECT_EQ(torch_pool().threads, threads);
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace foveate::ops
