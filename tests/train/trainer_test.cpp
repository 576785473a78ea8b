// Runs: they go on with the same bits, refuse what is not theirs, and lose nothing.
#include "foveate/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "foveate/base/random.h"
#include "foveate/io/safetensors.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::random_tensor;

// A linear map that is to become a given one, from inputs that are drawn anew in every step.
struct Line {
  at::Tensor weight = random_tensor({8, 8}, 1).requires_grad_(), bias = random_tensor({8}, 2).requires_grad_();
  TrainOptions options{.steps = 30, .warmup = 5, .seed = 7, .lr = 0.05};
  std::map<std::string, std::string> subject{{"run", "line"}};

  Trainer trainer() {
    return Trainer(
        {{"weight", {.value = weight}}, {"bias", {.value = bias, .decays = false}}},
        [this](int64_t step, uint64_t seed) {
          const at::Tensor x = random_tensor({16, 8}, seed * 1000 + uint64_t(step));
          const at::Tensor loss = (x.matmul(weight) + bias - x * 3).square().mean();
          return StepLoss{loss, 16, {{"half", loss.item<double>() / 2}}};
        },
        options, subject);
  }
};

class Checkpoints : public testing::Test {
 protected:
  std::string path(const char* name) const { return folder_.file(name); }
  const test::TemporaryFolder folder_{"trainer"};
};

// A loss that keeps an average of what it has seen, and depends on it.
TEST_F(Checkpoints, buffers_go_on_where_they_were) {
  struct Averaging {
    at::Tensor weight = random_tensor({4}, 1).requires_grad_(), average = at::zeros({4});
    at::Tensor seen = at::zeros({}, at::kLong);  // a batch norm counts in whole numbers

    Trainer trainer() {
      const auto loss = [this](int64_t step, uint64_t) {
        const at::NoGradGuard no_grad;
        average.mul_(0.9).add_(random_tensor({4}, uint64_t(step)));
        seen.add_(1);
        const at::AutoGradMode grad(true);
        return StepLoss{(weight * average + weight.square()).sum() * (1 + seen.item<double>()), 1, {}};
      };
      return Trainer({{"weight", {.value = weight}}}, loss, {.steps = 9, .warmup = 1}, {},
                     {{"average", average}, {"seen", seen}});
    }
  };
  Averaging whole, stopped, resumed;
  Trainer a = whole.trainer(), b = stopped.trainer(), c = resumed.trainer();
  run(a, {});
  for (int i = 0; i < 4; ++i) b.step();
  b.save(path("x.safetensors"));
  run(c, {.checkpoint = path("x.safetensors"), .resumes = true});
  EXPECT_TRUE(whole.weight.equal(resumed.weight));
  EXPECT_TRUE(whole.average.equal(resumed.average));
  EXPECT_EQ(resumed.seen.item<int64_t>(), 9);
}

TEST_F(Checkpoints, a_resumed_run_has_the_bits_of_one_that_never_stopped) {
  Line whole, stopped, resumed;
  Trainer a = whole.trainer(), b = stopped.trainer(), c = resumed.trainer();
  const StepReport last = run(a, {});
  EXPECT_EQ(last.step, 30);
  EXPECT_EQ(last.tokens, 16);
  for (int i = 0; i < 13; ++i) b.step();
  b.save(path("x.safetensors"));
  const StepReport again = run(c, {.checkpoint = path("x.safetensors"), .resumes = true});
  EXPECT_EQ(last.loss, again.loss);
  EXPECT_EQ(last.gradient_norm, again.gradient_norm);
  EXPECT_TRUE(whole.weight.equal(resumed.weight));
  EXPECT_TRUE(whole.bias.equal(resumed.bias));
  EXPECT_FALSE(whole.weight.equal(stopped.weight));
  Line other;
  other.options.seed = 8;
  Trainer d = other.trainer();
  run(d, {});
  EXPECT_FALSE(whole.weight.equal(other.weight));
}

TEST_F(Checkpoints, the_loss_falls_and_every_step_is_seen) {
  Line line;
  Trainer trainer = line.trainer();
  std::vector<StepReport> seen;
  run(trainer, {.observe = [&](const StepReport& report) { seen.push_back(report); }});
  ASSERT_EQ(seen.size(), 30u);
  EXPECT_LT(seen.back().loss, seen.front().loss / 2);
  EXPECT_EQ(seen[4].step, 5);
  EXPECT_DOUBLE_EQ(seen[4].learning_rate, 0.05);
  EXPECT_DOUBLE_EQ(seen[4].notes.at("half"), seen[4].loss / 2);
}

TEST_F(Checkpoints, of_other_runs_are_refused_by_name_and_change_nothing) {
  Line line;
  Trainer trainer = line.trainer();
  trainer.step();
  const std::string good = path("good.safetensors");
  trainer.save(good);
  const auto refused = [&](auto&& change, const std::string& file) {
    Line other;
    change(other);
    const at::Tensor before = other.weight.detach().clone();
    Trainer mine = other.trainer();
    const std::string message = message_of([&] { mine.load(file); });
    EXPECT_TRUE(other.weight.equal(before)) << message;
    EXPECT_EQ(mine.steps_done(), 0) << message;
    return message;
  };
  const std::string how = "; resume with the options it was written with";
  EXPECT_EQ(refused([](Line& o) { o.options.lr = 0.1; }, good),
            good + ": lr must be '0.1' as in this run, got '0.05'" + how);
  EXPECT_EQ(refused([](Line& o) { o.options.steps = 31; }, good),
            good + ": steps must be '31' as in this run, got '30'" + how);
  EXPECT_EQ(refused([](Line& o) { o.subject["run"] = "curve"; }, good),
            good + ": run must be 'curve' as in this run, got 'line'" + how);
  EXPECT_EQ(refused([](Line& o) { o.subject["more"] = "x"; }, good),
            good + ": more must be 'x' as in this run, got none" + how);
  EXPECT_EQ(refused([](Line& o) { o.bias = random_tensor({1}, 1).requires_grad_(); }, good),
            good + ": mean.bias must be Float [1], got Float [8]");
  const std::string none = path("none.safetensors");
  EXPECT_NE(refused([](Line&) {}, none).find(none), std::string::npos);
  io::write_safetensors(none, {}, {{"foveate", "adapter 1"}});
  EXPECT_EQ(refused([](Line&) {}, none),
            none + ": foveate must be 'checkpoint 1', got 'adapter 1': this is no checkpoint");
  io::write_safetensors(none, {}, {});
  EXPECT_EQ(refused([](Line&) {}, none), none + ": foveate must be 'checkpoint 1', got none: this is no checkpoint");
  const io::Safetensors file = io::Safetensors::open(good);
  for (const auto& [step, said] : {std::pair<std::optional<std::string>, std::string>{"12abc", "'12abc'"},
                                   {"31", "'31'"},
                                   {"-1", "'-1'"},
                                   {"", "''"},
                                   {std::nullopt, "none"}}) {
    auto texts = file.metadata();
    texts.erase("step");
    if (step) texts["step"] = *step;
    io::write_safetensors(none, {}, texts);
    EXPECT_EQ(refused([](Line&) {}, none), none + ": step must be 0 .. 30, got " + said);
  }
  EXPECT_EQ(message_of([&] { run(trainer, {.resumes = true}); }),
            "train: to resume needs the checkpoint's path, got none");
}

TEST_F(Checkpoints, a_full_disk_says_so_and_leaves_the_old_checkpoint) {
  Line line, other;
  Trainer trainer = line.trainer(), again = other.trainer();
  trainer.step();
  const std::string file = path("x.safetensors");
  trainer.save(file);
  trainer.step();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{100, before.rlim_max};  // what a full disk does: a part of the file is written
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of([&] { trainer.save(file); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(message, "write: the file must be writable, got '" + file + "': File too large");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), std::filesystem::directory_iterator()),
            1);
  again.load(file);
  EXPECT_EQ(again.steps_done(), 1);
}

TEST_F(Checkpoints, a_stopped_run_is_kept_and_goes_on) {
  Line whole, line;
  Trainer a = whole.trainer(), b = line.trainer(), c = line.trainer();
  run(a, {});
  const std::string file = path("x.safetensors");
  struct Stop {};
  EXPECT_THROW(run(b, {.checkpoint = file,
                       .observe =
                           [](const StepReport& report) {
                             if (report.step == 11) throw Stop();
                           }}),
               Stop);
  EXPECT_EQ(b.steps_done(), 11);
  run(c, {.checkpoint = file, .save_every = 4, .resumes = true});
  EXPECT_TRUE(whole.weight.equal(line.weight));
  EXPECT_EQ(io::Safetensors::open(file).metadata().at("step"), "30");
}

TEST_F(Checkpoints, a_loss_that_is_not_finite_ends_the_run) {
  Line line;
  Trainer trainer({{"weight", {.value = line.weight}}},
                  [&](int64_t, uint64_t) {
                    return StepLoss{line.weight.sum() / 0, 1, {}};
                  },
                  line.options, {});
  const at::Tensor before = line.weight.detach().clone();
  EXPECT_NE(message_of([&] { trainer.step(); }).find("train: the loss must be finite, got "), std::string::npos);
  EXPECT_TRUE(line.weight.equal(before));
}

}  // namespace
}  // namespace foveate::train
