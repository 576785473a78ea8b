// Learned parts in the layers of a frozen model.
#include "foveate/train/layers.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "foveate/attention/dense.h"
#include "foveate/models/language/adapter.h"
#include "tests/models/tiny.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::train {
namespace {

using attention::Mechanism;
using test::message_of;

const char* const kHisa = "hisa:heads=2,dim=8,topk=8,block=4,block_topk=2@0,2;dense";
const char* const kDhsa =
    "dhsa:chunks=learned,boundary_heads=2,half_window=2,query_block=8,budget=24,global_tokens=2,local_tokens=4,theta=0,"
    "nms_window=2@1;dense";

// Words of one repeated byte, of random lengths: attention changes where they meet.
std::vector<int32_t> text(int64_t tokens) {
  Random random(5);
  std::vector<int32_t> all;
  while (std::ssize(all) < tokens) all.insert(all.end(), 4 + random.below(9), int32_t(random.below(20)));
  all.resize(size_t(tokens));
  return all;
}

class Layers : public testing::Test {
 protected:
  LayerTraining training(const char* spec, LayerTask task, std::vector<int32_t> tokens = text(600)) const {
    return LayerTraining(decoder_, anew(spec), std::move(tokens), 256, {.length = 64, .held_out = 2}, std::move(task));
  }
  std::vector<Mechanism> anew(const char* spec) const {
    return models::equip_anew(attention::make_mechanisms(spec, 3), decoder_, 1);
  }
  static Trainer trainer(const LayerTraining& training) {
    return Trainer(training.parameters(), [&](int64_t step, uint64_t seed) { return training.loss(step, seed); },
                   {.steps = 30, .warmup = 3, .lr = 5e-3}, {});
  }
  const models::Decoder decoder_ = test::tiny_decoder();
};

TEST_F(Layers, learn_while_the_model_stays) {
  for (const auto& [spec, task] : {std::pair{kHisa, indexer_task()}, {kDhsa, boundaries_task()}}) {
    const LayerTraining layers = training(spec, task), twin = training(spec, task);
    const std::string fingerprint = decoder_.fingerprint();
    const LayerScore before = layers.score(anew(spec));
    EXPECT_EQ(before.loss, layers.score(layers.mechanisms()).loss);
    Trainer first = trainer(layers), second = trainer(twin);
    run(first, {}), run(second, {});
    const LayerScore after = layers.score(layers.mechanisms());
    EXPECT_LT(after.loss, before.loss) << spec;
    EXPECT_GT(after.kept_mass, 0);
    EXPECT_LE(after.kept_mass, 1);
    EXPECT_EQ(decoder_.fingerprint(), fingerprint);
    for (const auto& [name, tensor] : decoder_.weights().named()) EXPECT_FALSE(tensor.requires_grad()) << name;
    for (const auto& [name, p] : layers.parameters())
      EXPECT_TRUE(p.value.equal(twin.parameters().at(name).value)) << name;
    for (const auto& [name, value] : after.notes) EXPECT_GE(value, 0) << name;
  }
}

TEST_F(Layers, score_only_where_something_is_learned) {
  const LayerTraining hisa = training(kHisa, indexer_task());
  EXPECT_EQ(hisa.score(hisa.mechanisms()).kept_mass_by_layer.size(), 2u);
  EXPECT_EQ(hisa.parameters().size(), 10u);
  EXPECT_TRUE(hisa.parameters().contains("layers.2.hisa.query"));
  const LayerTraining dhsa = training(kDhsa, boundaries_task());
  const LayerScore score = dhsa.score(dhsa.mechanisms());
  EXPECT_EQ(score.kept_mass_by_layer.size(), 1u);
  EXPECT_GE(score.notes.at("chunks"), 1);
  EXPECT_GT(score.notes.at("boundaries"), 0);
  std::vector<Mechanism> even = dhsa.mechanisms();
  even[1] = boundaries_task().unlearned(even[1]);
  EXPECT_TRUE(std::isnan(dhsa.score(even).loss));
  EXPECT_GT(dhsa.score(even).kept_mass, 0);
}

TEST_F(Layers, adapters_give_what_was_learned) {
  const test::TemporaryFolder folder("layers");
  const LayerTraining layers = training(kHisa, indexer_task());
  Trainer learning = trainer(layers);
  run(learning, {});
  const std::string paths[] = {folder.file("a.safetensors")};
  models::Adapter::save(paths[0], decoder_, layers.mechanisms());
  const auto loaded = models::Adapter::load(paths, decoder_).equip(attention::make_mechanisms(kHisa, 3), decoder_);
  EXPECT_EQ(layers.score(loaded).kept_mass_by_layer, layers.score(layers.mechanisms()).kept_mass_by_layer);
}

TEST_F(Layers, steps_do_not_read_what_is_scored) {
  std::vector<int32_t> changed = text(600);
  std::fill(changed.end() - 128, changed.end(), 7);
  const LayerTraining a = training(kHisa, indexer_task()), b = training(kHisa, indexer_task(), changed);
  EXPECT_NE(a.text_hash(), b.text_hash());
  EXPECT_NE(a.score(a.mechanisms()).loss, b.score(b.mechanisms()).loss);
  Trainer first = trainer(a), second = trainer(b);
  EXPECT_EQ(run(first, {}).loss, run(second, {}).loss);
}

TEST(BoundaryNotes, count_what_is_said_and_what_is_true_among_the_gaps_that_count) {
  const auto flags = [](std::vector<int64_t> all) { return at::tensor(all, at::kLong).gt(0); };
  // Of the seven gaps that count five are said to be boundaries, three are, two are both.
  const at::Tensor logits = at::tensor({9.0, 2.0, 0.1, 5.0, 1.2, 0.3, -0.1, -7.0, -3.0, 4.0}).unsqueeze(0);
  const at::Tensor targets = flags({1, 1, 1, 0, 0, 0, 1, 0, 1, 1}).unsqueeze(0);
  const auto notes = boundary_notes(logits, targets, flags({0, 1, 1, 1, 1, 1, 1, 1, 0, 0}));
  EXPECT_DOUBLE_EQ(notes.at("precision"), 2.0 / 5);
  EXPECT_DOUBLE_EQ(notes.at("recall"), 2.0 / 3);
  EXPECT_DOUBLE_EQ(notes.at("f1"), 2 * (2.0 / 5 * 2 / 3) / (2.0 / 5 + 2.0 / 3));
  EXPECT_DOUBLE_EQ(notes.at("boundaries"), 3.0 / 7);
  const auto none =
      boundary_notes(logits - 99, targets.logical_and(targets.logical_not()), flags({1, 1, 1, 1, 1, 1, 1, 1, 1, 1}));
  for (const auto& [name, value] : none) EXPECT_EQ(value, 0) << name;
}

TEST_F(Layers, refusals) {
  EXPECT_EQ(message_of([&] { training(kHisa, indexer_task(), text(191)); }),
            "train: the text must have a window to learn from and 2 to score, 192 tokens, got 191");
  EXPECT_EQ(message_of([&] { training("dense", indexer_task()); }),
            "train indexer: some layer must have hisa with learned parts, got none");
  EXPECT_NE(message_of([&] {
              training(kDhsa, indexer_task());
            }).find("train indexer: learned parts must be those of hisa, got dhsa:"),
            std::string::npos);
  EXPECT_EQ(message_of([&] { LayerTraining(decoder_, anew(kHisa), text(9000), 256, {.length = 513}, indexer_task()); }),
            "train: length must be <= the model's 512 tokens, got 513");
  const TextOptions huge{.length = 64, .held_out = int64_t{1} << 53};  // times 64 it wraps to 0
  EXPECT_EQ(message_of([&] { LayerTraining(decoder_, anew(kHisa), text(600), 256, huge, indexer_task()); }),
            "text: held_out must be 1 .. 1073741824, got 9007199254740992");
}

}  // namespace
}  // namespace foveate::train
