// What landmark attention keeps while generating: in memory, bounded, on disk.
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/attention/landmark_oracle.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::attention {
namespace {

using namespace test::landmark;
using at::Tensor;
using test::message_of;
using test::rows_of;
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
    state->prefill(rows_of(s.in, 0, 1170));
    for (int64_t row = 1170; row < 1200; ++row) state->decode(rows_of(s.in, row, 1));
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
      state->prefill(rows_of(s.in, 0, 41));
      for (int64_t row = 41; row < 53; ++row) state->decode(rows_of(s.in, row, 1));
      other->load(state->save());
      for (int64_t row = 53; row < 75; ++row)
        ASSERT_TRUE(other->decode(rows_of(s.in, row, 1)).out.equal(state->decode(rows_of(s.in, row, 1)).out)) << row;
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
        if (length > state->length()) state->decode(rows_of(s.in, state->length(), length - state->length()));
        state->truncate(length);
        for (int64_t row = length; row < 75; ++row)
          ASSERT_TRUE(same(state->decode(rows_of(s.in, row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
      }
      if (max_blocks > 0) continue;
      state->truncate(12);  // nothing was dropped
      for (int64_t row = 12; row < 75; ++row)
        ASSERT_TRUE(same(state->decode(rows_of(s.in, row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
    }
}

TEST(LandmarkState, a_disk_that_fills_is_one_line_and_nothing_is_lost) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()};
  const Tensor want = s.oracle(options).out();
  const auto state = options.make_state({});
  state->prefill(rows_of(s.in, 0, 31));
  int64_t row = 31;
  std::string message;
  {
    const test::FullDisk disk(3000);
    message = message_of([&] {
      for (; row < 75; ++row) state->decode(rows_of(s.in, row, 1));
    });
  }
  EXPECT_NE(message.find("offload: the disk of"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(state->length(), row);
  for (; row < 75; ++row)
    ASSERT_TRUE(same(state->decode(rows_of(s.in, row, 1)).out, want.narrow(2, row, 1), {1e-10, 1e-10})) << row;
}

TEST(LandmarkState, a_damaged_file_is_one_line_and_the_rest_stays) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()};
  const auto state = options.make_state({});
  state->prefill(rows_of(s.in, 0, 31));
  for (int64_t row = 31; row < 45; ++row) state->decode(rows_of(s.in, row, 1));
  int damaged = 0;  // the state's file has no name any more
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code none;
    if (std::filesystem::read_symlink(entry, none).string().find("/.foveate-") == std::string::npos) continue;
    damaged += ::ftruncate(std::stoi(entry.path().filename()), 0) == 0;
  }
  ASSERT_EQ(damaged, 1);
  const std::string message = message_of([&] { state->decode(rows_of(s.in, 45, 1)); });
  EXPECT_NE(message.find("the file is cut off"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(state->length(), 45);
}

TEST(LandmarkState, takes_padding_only_where_all_keys_are_in_memory) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  Inputs in = s.in;
  in.rule.row_start = at::full({1, 1, 75}, 5, at::kLong);
  const auto refusal = [&](const Landmark& options, const StateOptions& state) {
    return message_of([&] { options.make_state(state)->prefill(in); });
  };
  const std::string want =
      "landmark: padding, documents and ranges of keys need all keys in memory, got a state with offload, max_blocks "
      "or a "
      "layer's window; attend without a state";
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10, .offload = testing::TempDir()}, {}), want);
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10, .max_blocks = 4}, {}), want);
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10}, {.rule = {.window_left = 20}}), want);
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10}, {}), "no error");
}

TEST(LandmarkState, refuses_folders_that_are_none) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const Landmark options{.block = 5, .top_k = 2, .chunk = 10, .offload = "/nonexistent/folder"};
  const auto state = options.make_state({});
  state->prefill(rows_of(s.in, 0, 31));
  EXPECT_EQ(message_of([&] { state->prefill(rows_of(s.in, 31, 20)); }),
            "offload: the folder must exist and be writable, got '/nonexistent/folder': No such file or directory");
  EXPECT_EQ(state->length(), 31);
}

TEST(LandmarkState, of_another_configuration_is_refused) {
  const at::NoGradGuard no_grad;
  const Sample s(75);
  const auto saved_by = [&](const Landmark& options) {
    const auto state = options.make_state({});
    state->prefill(rows_of(s.in, 0, 60));
    for (int64_t row = 60; row < 75; ++row) state->decode(rows_of(s.in, row, 1));
    return state->save();
  };
  const auto refusal = [](const Landmark& options, const State::Snapshot& saved) {
    const auto state = options.make_state({});
    const std::string message = message_of([&] { state->load(saved); });
    EXPECT_EQ(state->length(), message == "no error" ? 75 : 0);
    return message;
  };
  const State::Snapshot all = saved_by({.block = 5, .top_k = 2, .chunk = 10});
  EXPECT_EQ(refusal({.block = 6, .top_k = 2, .chunk = 10}, all),
            "landmark: a saved state must be of blocks of 6, got 5");
  EXPECT_EQ(refusal({.block = 5, .top_k = 3, .chunk = 20}, all), "no error");  // it holds what these need
  State::Snapshot other = all;
  other.erase("block");
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10}, other),
            "landmark: a saved state must be of blocks of 5, got none");
  const State::Snapshot few = saved_by({.block = 5, .top_k = 2, .chunk = 10, .max_blocks = 3});
  const std::string message = refusal({.block = 5, .top_k = 2, .chunk = 10}, few);
  EXPECT_NE(message.find("landmark: a saved state must hold whole blocks from position 0 on, got those from"),
            std::string::npos)
      << message;
  EXPECT_EQ(refusal({.block = 5, .top_k = 2, .chunk = 10, .max_blocks = 3}, few), "no error");
}

}  // namespace
}  // namespace foveate::attention
