// What landmark attention keeps while generating: in memory, bounded, on disk.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "tests/attention/landmark_oracle.h"

namespace foveate::attention {
namespace {

using namespace test::landmark;
using at::Tensor;
using test::same;

TEST(LandmarkState, equals_the_loops_in_memory_and_on_disk) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  for (const std::string& offload : {std::string(), testing::TempDir()})
    for (const int64_t max_blocks : {0, 4})
      for (const auto positions : {Landmark::Positions::stingy, Landmark::Positions::text}) {
        const Landmark options{
            .block = 5, .top_k = 2, .chunk = 10, .max_blocks = max_blocks, .positions = positions, .offload = offload};
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
  const Sample s(1200, at::kFloat, 0, 1);
  const int64_t token = 2 * (8 + 5) * 4;
  const auto run = [&](const Landmark& options) {
    auto state = options.make_state({});
    state->prefill(s.rows(0, 1170));
    for (int64_t row = 1170; row < 1200; ++row) state->decode(s.rows(row, 1));
    return state;
  };
  const auto bounded = run({.block = 5, .top_k = 2, .chunk = 10, .max_blocks = 8});
  const auto on_disk = run({.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()});
  const auto all = run({.block = 5, .top_k = 2, .chunk = 10});
  EXPECT_GE(all->bytes(), 1200 * token);
  EXPECT_LE(bounded->bytes(), 300 * token);
  EXPECT_LE(on_disk->bytes(), 1200 * token);  // landmarks, their moved copies, the latest tokens
  EXPECT_LE(on_disk->read_bytes(), (15 + 2 * 2 * 5) * token + 240 * 2 * 8 * 4);
  EXPECT_THROW(bounded->truncate(600), Error);
  EXPECT_EQ(bounded->length(), 1200);
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

TEST(LandmarkState, a_damaged_file_is_one_line_and_the_rest_stays) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()};
  const auto state = options.make_state({});
  state->prefill(s.rows(0, 31));
  for (int64_t row = 31; row < 45; ++row) state->decode(s.rows(row, 1));
  int damaged = 0;  // the state's file has no name any more
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code none;
    if (std::filesystem::read_symlink(entry, none).string().find("/.foveate-") == std::string::npos) continue;
    damaged += ::ftruncate(std::stoi(entry.path().filename()), 0) == 0;
  }
  ASSERT_EQ(damaged, 1);
  try {
    state->decode(s.rows(45, 1));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the file is cut off"), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
  EXPECT_EQ(state->length(), 45);
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

}  // namespace
}  // namespace foveate::attention
