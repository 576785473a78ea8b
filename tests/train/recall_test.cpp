// Associative recall: what its texts are, and that small decoders learn from them.
#include "foveate/train/recall.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/routing/flux.h"
#include "foveate/attention/window.h"
#include "tests/support/compare.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using test::message_of;
using test::random_tensor;

TEST(RecallTask, numbers_whose_sums_do_not_fit_are_refused) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  const auto refused = [](const RecallTask& task) { return message_of([&] { task.validate(); }); };
  EXPECT_EQ(refused({.gap = std::numeric_limits<int64_t>::max()}),
            "recall: gap must be 0 .. 1048576, got 9223372036854775807");
  EXPECT_EQ(refused({.pairs = kHuge, .keys = kHuge}), "recall: pairs must be 1 .. 1048576, got 4611686018427387904");
  for (const RecallTask& task : {RecallTask{.length = kHuge}, {.keys = kHuge}, {.values = kHuge}, {.noise = kHuge}})
    EXPECT_NE(refused(task).find("1048576, got 4611686018427387904"), std::string::npos) << refused(task);
  EXPECT_EQ(message_of([&] { RecallModel{.heads = kHuge}.validate(); }),
            "recall: heads must be 1 .. 1048576, got 4611686018427387904");
}

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
const char* const kFlux = "flux:cheap=(window:size=4,sinks=0),pool_size=6";
const char* const kLandmark = "landmark:block=4,top_k=2,chunk=8,positions=text";
const char* const kMechanisms[] = {kNsa, "superlinear:sw_index=3,num_spans=2,search=learned", kFlux, kLandmark};

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
  const double found = some.score(Scored::trained, 2).found.value();
  EXPECT_GT(found, 0);
  EXPECT_LT(found, 1);
  EXPECT_EQ(message_of([&] { dense.score(Scored::shuffled_routes, 1); }), "recall: no layer has routes to shuffle");
  for (const char* flux : {kFlux, "flux:route=cheap,cheap=(window:size=4,sinks=0)"})
    EXPECT_FALSE(Recall(kTask, kModel, flux, 1).score(Scored::trained, 1).found.has_value()) << flux;
}

TEST(Recall, texts_with_landmarks_ask_for_the_same) {
  const models::Landmarks landmarks{.token = int32_t(kTask.vocabulary()), .block = 5};
  const RecallBatch plain = make_recall(kTask, 3, 1, 1), batch = with_landmarks(plain, landmarks);
  ASSERT_EQ(batch.tokens.size(1), 33 + 8);
  for (int64_t b = 0; b < 3; ++b) {
    std::vector<int64_t> text;
    for (int64_t i = 0; i < batch.tokens.size(1); ++i) {
      const int64_t token = batch.tokens[b][i].item<int64_t>();
      EXPECT_EQ(token == landmarks.token, i % 5 == 4) << i;
      if (i % 5 != 4) text.push_back(token);
    }
    EXPECT_TRUE(at::tensor(text, at::kLong).equal(plain.tokens[b]));
    for (int64_t n = 0; n < 2; ++n) {
      EXPECT_TRUE(
          batch.tokens[b][batch.asked[n].item<int64_t>()].equal(plain.tokens[b][plain.asked[n].item<int64_t>()]));
      EXPECT_TRUE(batch.tokens[b][batch.places[b][n].item<int64_t>()].equal(plain.answers[b][n]));
    }
  }
  const std::string two = "landmark:block=4,top_k=2,chunk=8@0;landmark:block=8,top_k=2,chunk=8@1";
  EXPECT_EQ(message_of([&] { Recall(kTask, kModel, two, 1); }),
            "recall: layers of landmark must have blocks of one length, got 4 and 8");
}

// Training attends to all blocks, scoring fetches some.
TEST(Recall, landmark_is_trained_grouped_and_scored_as_it_fetches) {
  const Recall fetching(kTask, kModel, "landmark:block=4,top_k=1,chunk=4,positions=text", 1);
  const Recall grouped(kTask, kModel, "landmark:block=4,mode=grouped", 1);
  EXPECT_TRUE(fetching.loss(0, 1, 1).loss.equal(grouped.loss(0, 1, 1).loss));
  EXPECT_NE(fetching.score(Scored::trained, 1).loss, grouped.score(Scored::trained, 1).loss);
  const double found = fetching.score(Scored::trained, 4).found.value();
  EXPECT_GT(found, 0);
  EXPECT_LT(found, 1);
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
  const Recall flux(task, kModel, kFlux, 1);
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

at::Tensor decision_of(const attention::Learned& router, const attention::Inputs& in) {
  attention::Inputs given = in;
  given.learned = &router;
  return attention::flux_decision({.pool_size = 6}, given);
}

// Sets a router so that it decides one way for some texts of the batch and the other way for the rest.
void part_texts(const attention::Learned& router, const attention::Inputs& in) {
  const at::Tensor out = router.at("head_out"), bias = router.at("head_out_bias");
  out.copy_(random_tensor(out.sizes(), 8));
  double low = -8, high = 8;  // of the bias for cheap attention: all are full, none is
  for (double full = 0; full == 0 || full == double(in.q.size(0));) {
    const double middle = (low + high) / 2;
    bias.copy_(at::tensor({middle, 0.0}));
    full = decision_of(router, in).sum().item<double>();
    (full > 0 ? low : high) = middle;
  }
}

TEST(Recall, shuffled_routes_are_those_of_the_next_text) {
  RecallTask task = kTask;
  task.near = 0.5;
  const Recall flux(task, kModel, kFlux, 1);
  const at::NoGradGuard no_grad;
  const RecallBatch batch = make_recall(task, kModel.batch, 1, uint64_t{2} << 32);  // the first that is scored
  const auto loss = [&](int64_t shift, bool is_set) {
    const at::Tensor hidden = flux.decoder().forward(batch.tokens, 0, [&](const attention::Inputs& in) {
      const attention::Learned& router = *flux.mechanisms()[size_t(in.layer)].learned();
      if (!is_set) part_texts(router, in);
      const at::Tensor z = decision_of(router, in);
      std::vector<at::Tensor> outs;
      for (int64_t b = 0; b < kModel.batch; ++b) {
        attention::Inputs one = in;
        one.q = in.q.narrow(0, b, 1), one.k = in.k.narrow(0, b, 1), one.v = in.v.narrow(0, b, 1);
        const bool is_full = z[(b + kModel.batch - shift) % kModel.batch].item<double>() == 1;
        outs.push_back(is_full ? attention::Dense{}.attend(one).out
                               : attention::Window{.size = 4, .sinks = 0}.attend(one).out);
      }
      return attention::Attended{at::cat(outs), {}, {}};
    });
    const at::Tensor logits = flux.decoder().logits(hidden.index_select(1, batch.asked));
    return at::cross_entropy_loss(logits.flatten(0, 1), batch.answers.flatten()).item<double>();
  };
  const double own = loss(0, false), others = loss(1, true);
  EXPECT_NEAR(flux.score(Scored::trained, 1).loss, own, 1e-5);
  EXPECT_NEAR(flux.score(Scored::shuffled_routes, 1).loss, others, 1e-5);
  EXPECT_GT(std::abs(own - others), 1e-3);
}

TEST(Recall, flux_may_have_a_fixed_route_and_nested_parts) {
  for (const char* spec :
       {"flux:route=full", "flux:route=cheap,cheap=(nsa:compress=4,stride=2,block=4,blocks=4,window=8)",
        "flux:full=(nsa:compress=4,stride=2,block=4,blocks=4,window=8),cheap=(window:size=4),"
        "pool_size=6"}) {
    const Recall recall(kTask, kModel, spec, 1);
    train(recall, {}, {.steps = 2, .warmup = 0});
    const RecallScore score = recall.score(Scored::trained, 1);
    const bool has_router = std::string_view(spec).starts_with("flux:full");
    EXPECT_EQ(recall.has_routes(), has_router);
    EXPECT_EQ(score.far_full.has_value(), has_router);
    EXPECT_TRUE(score.far_accuracy.has_value());
    EXPECT_FALSE(score.near_accuracy.has_value());
    EXPECT_FALSE(score.near_full.has_value());
    EXPECT_EQ(recall.parameters().contains("flux.lambda1"), has_router);
    if (has_router) {
      EXPECT_EQ(recall.score(Scored::shuffled_routes, 1).loss, score.loss);  // all full
    } else {
      EXPECT_EQ(message_of([&] { recall.score(Scored::shuffled_routes, 1); }),
                "recall: no layer has routes to shuffle");
    }
  }
}

TEST(Recall, noise_of_routers_is_of_the_seed_and_the_step) {
  const Recall flux(kTask, kModel, kFlux, 1);
  const at::NoGradGuard no_grad;
  for (const auto& [name, p] : flux.parameters())
    if (name.find("head_out") != std::string::npos) at::Tensor(p.value).zero_();  // noise alone decides
  const auto full = [&](uint64_t seed) {
    std::vector<double> shares;
    for (int64_t step = 0; step < 8; ++step) shares.push_back(flux.loss(step, 30, seed).notes.at("full"));
    return shares;
  };
  EXPECT_EQ(full(1), full(1));
  EXPECT_NE(full(1), full(2));
  const std::vector<double> shares = full(1);
  EXPECT_GT(std::set<double>(shares.begin(), shares.end()).size(), 1u);
  for (const char* option : {"phase=train", "tau=2", "seed=0"})
    EXPECT_EQ(message_of([&] { Recall(kTask, kModel, fmt::format("dense@0;flux:{}", option), 1); }),
              fmt::format("recall: flux must leave phase, tau and seed to training, got {}; leave it out", option));
}

}  // namespace
}  // namespace foveate::train
