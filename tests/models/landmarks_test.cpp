// Landmark tokens around a tiny decoder: where they stand, what they predict, reading and generating with them.
#include "foveate/models/language/landmarks.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "foveate/models/language/generate.h"
#include "tests/models/tiny.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using test::message_of;
using test::same;

constexpr int32_t kLandmark = 258;  // behind the bytes, <s> and </s>

Decoder decoder() { return add_landmark(test::tiny_decoder()); }

std::vector<int32_t> some_tokens(int64_t count) {
  Random random(5);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(int32_t(random.below(256)));
  return tokens;
}

TEST(Landmarks, close_every_block) {
  const Landmarks landmarks{.token = 9, .block = 4};
  const std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(with_landmarks(tokens, landmarks), (std::vector<int32_t>{1, 2, 3, 9, 4, 5, 6, 9, 7}));
  EXPECT_EQ(with_landmarks(tokens, landmarks, 6), (std::vector<int32_t>{1, 9, 2, 3, 4, 9, 5, 6, 7, 9}));
  EXPECT_EQ(with_landmarks({}, landmarks), std::vector<int32_t>{});
  const std::vector<int32_t> with_one{1, 9};
  EXPECT_THROW(with_landmarks(with_one, landmarks), Error);
  EXPECT_THROW(with_landmarks(tokens, {.token = 9, .block = 1}), Error);
}

TEST(Landmarks, predict_by_either_recipe) {
  const std::vector<int32_t> tokens{1, 2, 9, 3, 4, 9};
  const Landmarks before{.token = 9, .block = 3}, own{.token = 9, .block = 3, .logits = Landmarks::Logits::own};
  EXPECT_EQ(landmark_targets(tokens, before), (std::vector<int64_t>{2, 3, kNoTarget, 4, kNoTarget, kNoTarget}));
  EXPECT_EQ(landmark_targets(tokens, own), (std::vector<int64_t>{2, 9, 3, 4, 9, kNoTarget}));
}

TEST(Landmarks, a_new_token_is_the_mean_of_all) {
  const Decoder before = test::tiny_decoder(), after = decoder();
  EXPECT_EQ(after.config().vocabulary, 259);
  for (const auto& [old, grown] : {std::pair(before.weights().embedding, after.weights().embedding),
                                   {before.weights().head, after.weights().head}}) {
    EXPECT_TRUE(grown.narrow(0, 0, 258).equal(old));
    EXPECT_TRUE(same(grown[258], old.sum(0) / 258, {1e-6, 1e-5}));
  }
  EXPECT_TRUE(after.weights().head.is_same(after.weights().embedding));
}

TEST(Landmarks, must_be_in_the_vocabulary) {
  const Decoder without = test::tiny_decoder();
  Session session(without, attention::make_mechanisms("landmark:block=4,chunk=4", 3));
  EXPECT_EQ(message_of([&] { LandmarkSession(session, {.token = kLandmark, .block = 4}); }),
            "landmarks: the token must be in the model's vocabulary of 258, got 258; add_landmark adds one");
  EXPECT_EQ(message_of([&] { LandmarkSession(session, {.token = 5, .block = 8}); }),
            "landmarks: blocks must be those of the mechanism, got 8 for landmark:block=4,chunk=4");
  const auto tokenizer = test::byte_tokenizer();
  EXPECT_EQ(message_of([&] { find_landmark(*tokenizer); }),
            "landmarks: the vocabulary must hold '<landmark>', got none; train a model with it (add_landmark)");
  EXPECT_EQ(find_landmark(*tokenizer, "</s>"), 257);
}

TEST(Landmarks, a_session_reads_them_by_itself) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const auto tokens = some_tokens(40);
  for (const auto logits : {Landmarks::Logits::before, Landmarks::Logits::own}) {
    const Landmarks landmarks{.token = kLandmark, .block = 4, .logits = logits};
    const auto all = with_landmarks(tokens, landmarks);
    std::vector<int64_t> wide(all.begin(), all.end()), rows;
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i] != kLandmark)
        rows.push_back(int64_t(i) +
                       (logits == Landmarks::Logits::own && i + 1 < all.size() && all[i + 1] == kLandmark));
    // where landmarks are moved to one place, those of the first layer, of one embedding, tie up to rounding
    for (const char* spec : {"landmark:block=4,top_k=2,chunk=8,positions=text", "landmark:block=4,mode=grouped"}) {
      const auto mechanisms = attention::make_mechanisms(spec, 3);
      const at::Tensor want = model.forward(at::tensor(wide, at::kLong).unsqueeze(0), mechanisms)
                                  .index_select(1, at::tensor(rows, at::kLong));
      Session inner(model, mechanisms);
      LandmarkSession session(inner, landmarks);
      const std::span<const int32_t> given(tokens);
      std::vector<at::Tensor> parts = {session.prefill(given.first(9), false), session.prefill(given.subspan(9, 6)),
                                       session.decode(given.subspan(15, 5))};
      for (size_t i = 20; i < 40; ++i) parts.push_back(session.decode(given.subspan(i, 1)));
      EXPECT_TRUE(same(at::cat(parts, 1), want, {1e-4, 1e-4})) << spec;
      EXPECT_EQ(inner.length(), std::ssize(all));
    }
  }
}

TEST(Landmarks, training_moves_the_landmarks_embedding_and_every_parameter) {
  for (const auto recipe : {Landmarks::Logits::before, Landmarks::Logits::own})
    for (const char* spec : {"landmark:block=4,mode=grouped", "landmark:block=4,top_k=2,chunk=8"}) {
      const Decoder model = decoder();
      for (const auto& [name, weight] : model.weights().named()) weight.requires_grad_(true);
      const Landmarks landmarks{.token = kLandmark, .block = 4, .logits = recipe};
      const auto text = with_landmarks(some_tokens(40), landmarks);
      const at::Tensor tokens = at::tensor(std::vector<int64_t>(text.begin(), text.end()), at::kLong).unsqueeze(0);
      const at::Tensor targets = at::tensor(landmark_targets(text, landmarks), at::kLong);
      const auto mechanisms = attention::make_mechanisms(spec, 3);
      const auto loss = [&] {
        const at::Tensor logits = model.logits(model.forward(tokens, mechanisms).squeeze(0));
        return at::cross_entropy_loss(logits, targets, {}, at::Reduction::Mean, kNoTarget);
      };
      const at::Tensor before = loss();
      before.backward();
      const at::NoGradGuard no_grad;
      for (const auto& [name, weight] : model.weights().named()) {
        ASSERT_TRUE(weight.grad().defined()) << name;
        EXPECT_GT(weight.grad().abs().max().item<float>(), 0) << name << " " << spec;
        if (weight.is_same(model.weights().embedding)) {
          EXPECT_GT(weight.grad()[kLandmark].abs().max().item<float>(), 0) << spec;
        }
        weight.sub_(weight.grad() * 0.05);
      }
      EXPECT_LT(loss().item<float>(), before.item<float>()) << spec;
    }
}

// A disk that fills in the middle of the layers: none has read the call.
TEST(Landmarks, a_full_disk_leaves_all_layers_where_they_were) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const auto text = with_landmarks(some_tokens(60), {.token = kLandmark, .block = 4});
  const std::span<const int32_t> given(text);
  const std::string spec = "landmark:block=4,top_k=2,chunk=8,positions=text";
  const auto on_disk = attention::make_mechanisms(spec + ",offload=" + testing::TempDir(), 3);
  Session session(model, on_disk), other(model, attention::make_mechanisms(spec, 3));
  session.prefill(given.first(20));
  other.prefill(given.first(20));
  size_t read = 20;
  std::string message;
  {
    const test::FullDisk disk(4000);
    message = message_of([&] {
      for (; read < given.size(); ++read) session.decode(given.subspan(read, 1));
    });
  }
  EXPECT_NE(message.find("offload: the disk of"), std::string::npos) << message;
  EXPECT_EQ(session.length(), int64_t(read));
  EXPECT_EQ(session.tokens(), std::vector(text.begin(), text.begin() + int64_t(read)));
  other.prefill(given.subspan(20, read - 20));
  for (; read < given.size(); ++read)
    ASSERT_TRUE(same(session.decode(given.subspan(read, 1)), other.decode(given.subspan(read, 1)), {1e-4, 1e-4}))
        << read;
}

// Layers in front of the one that fails go back, or where they cannot, the session is empty: never half a call.
TEST(Landmarks, a_full_disk_of_the_last_layer_leaves_all_or_nothing) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const auto text = with_landmarks(some_tokens(60), {.token = kLandmark, .block = 4});
  const std::span<const int32_t> given(text);
  const std::string landmark = "landmark:block=4,top_k=2,chunk=8,positions=text",
                    offload = ",offload=" + testing::TempDir();
  for (const std::string& other : {landmark, std::string("window:size=3,sinks=1")}) {
    Session session(model, attention::make_mechanisms(other + "@0-1;" + landmark + offload + "@2", 3));
    session.prefill(given.first(20));
    const size_t next = 20, rows = 30;
    {
      const test::FullDisk disk(2000);
      EXPECT_NE(message_of([&] { session.prefill(given.subspan(next, rows)); }).find("offload: the disk of"),
                std::string::npos);
    }
    const bool is_kept = other == landmark;  // a window has dropped what it would need
    ASSERT_EQ(session.length(), is_kept ? 20 : 0) << other;
    const size_t from = is_kept ? next : 0;
    EXPECT_EQ(session.tokens(), std::vector(text.begin(), text.begin() + int64_t(from)));
    Session whole(model, attention::make_mechanisms(other + "@0-1;" + landmark + "@2", 3));
    if (from > 0) whole.prefill(given.first(from));
    EXPECT_TRUE(same(session.prefill(given.subspan(from)), whole.prefill(given.subspan(from)), {1e-4, 1e-4})) << other;
  }
}

TEST(Landmarks, are_never_generated) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const auto mechanisms = attention::make_mechanisms("landmark:block=4,top_k=2,chunk=8", 3);
  const auto tokenizer = test::byte_tokenizer();
  const auto prompt = some_tokens(21);
  Session inner(model, mechanisms);
  const Landmarks landmarks{.token = kLandmark, .block = 4};
  LandmarkSession session(inner, landmarks);
  at::Tensor hidden = session.prefill(prompt).select(1, 20).squeeze(0);
  EXPECT_EQ(session.logits(hidden)[kLandmark].item<float>(), -INFINITY);
  EXPECT_TRUE(session.logits(hidden).narrow(0, 0, 258).isfinite().all().item<bool>());
  const GenerateOptions options{.max_tokens = 30, .sampling = {.temperature = 3}, .seed = 4};
  const Generated got = generate(session, *tokenizer, hidden, options);
  EXPECT_EQ(std::ranges::count(got.tokens, kLandmark), 0);
  // what was read is the text with its landmarks
  std::vector<int32_t> text = prompt;
  text.insert(text.end(), got.tokens.begin(), got.tokens.end());
  if (got.reason == Generated::Reason::end_token) text.resize(prompt.size() + got.tokens.size());
  EXPECT_EQ(inner.tokens(), with_landmarks(text, landmarks));
}

}  // namespace
}  // namespace foveate::models
