// Associative recall: what its texts are, and that small decoders learn from them.
#include "foveate/train/recall.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;

TEST(RecallTask, texts_have_every_pair_once_and_ask_for_it_once) {
  const RecallTask task{.length = 60, .pairs = 5, .gap = 11, .keys = 9, .values = 4, .noise = 3, .near = 0.5};
  const RecallBatch batch = make_recall(task, 40, 3, 1);
  int64_t near = 0;
  for (int64_t b = 0; b < 40; ++b) {
    const auto at = [&](int64_t i) { return batch.tokens[b][i].item<int64_t>(); };
    const auto is_key = [&](int64_t i) { return at(i) >= 1 && at(i) <= 9; };
    const auto is_value = [&](int64_t i) { return at(i) >= 10 && at(i) <= 13; };
    EXPECT_EQ(at(0), 0);
    std::map<int64_t, int64_t> place;  // of the value of each key
    int64_t last = 0;
    for (int64_t i = 1; i < 50; ++i) {
      if (is_key(i)) {
        EXPECT_TRUE(is_value(i + 1));
        EXPECT_TRUE(place.emplace(at(i), i + 1).second);
        last = ++i;
      } else {
        EXPECT_GE(at(i), 14);
        EXPECT_LT(at(i), task.vocabulary());
      }
    }
    EXPECT_EQ(place.size(), 5u);
    const bool is_near = batch.is_near[b].item<int64_t>() == 1;
    near += is_near;
    if (is_near)
      EXPECT_EQ(last, 49);
    else
      EXPECT_LE(last, 49 - 11);
    std::set<int64_t> asked;
    for (int64_t i = 0; i < 5; ++i) {
      const int64_t where = batch.asked[i].item<int64_t>();
      EXPECT_EQ(where, 50 + 2 * i);
      ASSERT_TRUE(place.contains(at(where)));
      EXPECT_TRUE(asked.insert(at(where)).second);
      EXPECT_EQ(batch.places[b][i].item<int64_t>(), place[at(where)]);
      EXPECT_EQ(batch.answers[b][i].item<int64_t>(), at(place[at(where)]));
      EXPECT_EQ(at(where + 1), at(place[at(where)]));
    }
  }
  EXPECT_GT(near, 8);
  EXPECT_LT(near, 32);
  EXPECT_TRUE(make_recall(task, 40, 3, 1).tokens.equal(batch.tokens));
  EXPECT_FALSE(make_recall(task, 40, 3, 2).tokens.equal(batch.tokens));
  EXPECT_FALSE(make_recall(task, 40, 4, 1).tokens.equal(batch.tokens));
}

TEST(RecallTask, refuses_what_does_not_fit) {
  EXPECT_EQ(message_of([] { make_recall({.length = 96}, 1, 0, 0); }),
            "recall: length must be >= 1 + 4 pairs + gap = 97, got 96");
  EXPECT_EQ(message_of([] { make_recall({.length = 97}, 1, 0, 0); }), "no error");
  EXPECT_EQ(message_of([] { make_recall({.pairs = 8, .keys = 7}, 1, 0, 0); }),
            "recall: pairs must be <= keys, got 8 and 7");
}

// Few keys and values, no gap: a tiny decoder learns within seconds which values follow keys at all.
constexpr RecallTask kTask{.length = 33, .pairs = 2, .gap = 8, .keys = 4, .values = 4, .noise = 4};
constexpr RecallModel kModel{.batch = 8, .layers = 2, .width = 16, .heads = 2, .kv_heads = 1, .feed_forward = 16};
constexpr TrainOptions kOptions{.steps = 30, .warmup = 5, .lr = 1e-2};
const char* const kNsa = "nsa:compress=4,stride=2,block=4,blocks=4,window=8";
const char* const kMechanisms[] = {kNsa, "superlinear:sw_index=3,num_spans=2,search=learned",
                                   "flux:cheap=(window:size=4,sinks=0),pool_size=6"};

std::vector<StepReport> train(const Recall& recall, const RunOptions& options, const TrainOptions& o = kOptions) {
  Trainer trainer(
      recall.parameters(), [&](int64_t step, uint64_t seed) { return recall.loss(step, o.steps, seed); }, o,
      recall.subject());
  std::vector<StepReport> all;
  RunOptions watched = options;
  watched.observe = [&](const StepReport& report) {
    all.push_back(report);
    if (options.observe) options.observe(report);
  };
  run(trainer, watched);
  return all;
}

TEST(Recall, every_mechanism_learns_reaches_its_parts_and_is_deterministic) {
  for (const char* spec : kMechanisms) {
    const Recall recall(kTask, kModel, spec, 1), twin(kTask, kModel, spec, 1);
    std::map<std::string, at::Tensor> before;
    for (const auto& [name, p] : recall.parameters()) before[name] = p.value.detach().clone();
    const double loss = recall.score(Scored::trained, 4).loss;
    train(recall, {}), train(twin, {});
    EXPECT_LT(recall.score(Scored::trained, 4).loss, 0.7 * loss) << spec;
    for (const auto& [name, p] : recall.parameters()) {
      EXPECT_FALSE(p.value.equal(before[name])) << spec << " " << name;
      EXPECT_TRUE(p.value.equal(twin.parameters().at(name).value)) << spec << " " << name;
    }
  }
}

TEST(Recall, a_resumed_run_has_the_bits_of_one_that_never_stopped) {
  const test::TemporaryFolder folder("recall");
  for (const char* spec : kMechanisms) {
    const Recall whole(kTask, kModel, spec, 1), stopped(kTask, kModel, spec, 1), resumed(kTask, kModel, spec, 1);
    train(whole, {});
    struct Stop {};
    RunOptions options{.checkpoint = folder.file("x.safetensors"), .observe = [](const StepReport& report) {
                         if (report.step == 12) throw Stop();
                       }};
    EXPECT_THROW(train(stopped, options), Stop);
    options.observe = nullptr, options.resumes = true;
    train(resumed, options);
    for (const auto& [name, p] : whole.parameters())
      EXPECT_TRUE(p.value.equal(resumed.parameters().at(name).value)) << spec << " " << name;
    const Recall other(kTask, kModel, "dense", 1);
    EXPECT_NE(message_of([&] { train(other, options); }).find("attention must be 'dense' as in this run, got '"),
              std::string::npos);
  }
}

TEST(Recall, scores_say_what_was_selected) {
  const Recall dense(kTask, kModel, "dense", 1), blind(kTask, kModel, "window:size=4,sinks=0", 1);
  EXPECT_EQ(dense.score(Scored::trained, 2).found, 1);
  EXPECT_EQ(blind.score(Scored::trained, 2).found, 0);
  // All blocks selected: nothing is missed; four of nine with the first and the latest two: some are.
  const Recall all(kTask, kModel, "nsa:compress=4,stride=2,block=4,blocks=9,window=8", 1), some(kTask, kModel, kNsa, 1);
  EXPECT_EQ(all.score(Scored::trained, 2).found, 1);
  const double found = some.score(Scored::trained, 2).found;
  EXPECT_GT(found, 0);
  EXPECT_LT(found, 1);
  EXPECT_EQ(message_of([&] { dense.score(Scored::shuffled_routes, 1); }), "recall: no layer has routes to shuffle");
}

TEST(Recall, untrained_parts_are_those_of_the_start) {
  const Recall recall(kTask, kModel, kNsa, 1), fresh(kTask, kModel, kNsa, 1);
  const RecallScore before = recall.score(Scored::trained, 2);
  EXPECT_EQ(before.loss, recall.score(Scored::untrained_parts, 2).loss);
  train(recall, {});
  EXPECT_NE(recall.score(Scored::trained, 2).loss, recall.score(Scored::untrained_parts, 2).loss);
}

TEST(Recall, flux_begins_full_and_its_penalty_counts) {
  RecallTask task = kTask;
  task.near = 0.5;
  const Recall flux(task, kModel, kMechanisms[2], 1);
  const RecallScore score = flux.score(Scored::trained, 4);
  EXPECT_EQ(*score.far_full, 1);
  EXPECT_EQ(*score.near_full, 1);
  EXPECT_EQ(score.loss, flux.score(Scored::shuffled_routes, 4).loss);  // all routes alike
  const StepLoss made = flux.loss(0, 30, 1);
  // All layers full: distances 0.5 and 1 from the targets, each with its own multipliers.
  const auto lambda = [&](const char* name, int64_t task) {
    return flux.parameters().at(name).value.detach()[task].item<double>();
  };
  const double far = lambda("flux.lambda1", 0) * 0.5 + lambda("flux.lambda2", 0) * 0.25;
  const double near = lambda("flux.lambda1", 1) + lambda("flux.lambda2", 1);
  ASSERT_EQ(made.notes.at("full"), 1);
  EXPECT_NEAR(made.loss.item<double>() - made.notes.at("answers"), (far + near) / 2, 1e-5);
}

}  // namespace
}  // namespace foveate::train
