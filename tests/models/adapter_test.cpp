// Learned parts of mechanisms: given, saved, loaded, refused.
#include "foveate/models/language/adapter.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "foveate/attention/dense.h"
#include "foveate/base/error.h"
#include "foveate/models/language/session.h"
#include "tests/models/tiny.h"
#include "tests/support/files.h"
#include "tests/support/messages.h"

namespace foveate::models {
namespace {

using attention::Inputs;
using attention::Mechanism;
using test::message_of;
using test::same;

// Dense attention times a learned factor, and a learned product of the hidden state beside it.
struct Scaled {
  static constexpr std::string_view name = "scaled";
  static constexpr attention::Kind kind = attention::Kind::row;
  static void fields(auto&, auto&&) {}
  void validate() const {}
  std::vector<attention::LearnedPart> learned_parts(const attention::LayerShape& shape) const {
    return {{"factor", {1}, {attention::Init::Kind::constant, 2}},
            {"shift.weight", {shape.heads, shape.width}, {attention::Init::Kind::normal, 0.1}}};
  }
  attention::Attended attend(const Inputs& in) const {
    attention::Attended dense = attention::Dense{}.attend(in);
    const at::Tensor shift = in.hidden->matmul(learned(in, name, "shift.weight").t()).transpose(1, 2).unsqueeze(3);
    dense.out = dense.out * learned(in, name, "factor") + shift;
    return dense;
  }
  std::unique_ptr<attention::State> make_state(const attention::StateOptions& options) const {
    return std::make_unique<attention::PlainState<Scaled>>(*this, std::nullopt, options);
  }
};

// Dense attention that keeps what it was given: rows, and the values of these rows.
struct Watching {
  static constexpr std::string_view name = "watching";
  static constexpr attention::Kind kind = attention::Kind::row;
  struct Seen {
    int64_t layer;
    at::Tensor hidden, values;
  };
  static std::vector<Seen>& seen() {
    static std::vector<Seen> all;
    return all;
  }
  static void fields(auto&, auto&&) {}
  void validate() const {}
  attention::Attended attend(const Inputs& in) const {
    const int64_t rows = in.q.size(2);
    seen().push_back({in.layer, in.hidden->clone(), in.v.narrow(2, in.v.size(2) - rows, rows).clone()});
    return attention::Dense{}.attend(in);
  }
  std::unique_ptr<attention::State> make_state(const attention::StateOptions& options) const {
    return std::make_unique<attention::PlainState<Watching>>(*this, std::nullopt, options);
  }
};

TEST(Hidden, is_what_the_layers_projections_read_of_a_sessions_new_rows) {
  for (const bool gemma : {false, true}) {
    const Decoder decoder = test::tiny_decoder(gemma);
    Session session(decoder, std::vector<Mechanism>(3, Watching{}));
    const std::vector<int32_t> tokens = {5, 6, 7, 8, 9, 10};
    Watching::seen().clear();
    session.prefill(std::span(tokens).first(3), /*ends_prompt=*/false);
    session.prefill(std::span(tokens).subspan(3, 1));
    session.decode(std::span(tokens).last(2));
    ASSERT_EQ(Watching::seen().size(), 9u);
    for (const auto& [layer, hidden, values] : Watching::seen()) {
      const at::Tensor want =
          at::linear(hidden, decoder.weights().layers[size_t(layer)].value.weight);  // [1, n, 2 * 8]
      EXPECT_TRUE(same(values, want.unflatten(2, {2, 8}).transpose(1, 2), {1e-5, 1e-5})) << layer;
    }
  }
}

class AdapterFiles : public testing::Test {
 protected:
  std::string path(const char* name) const { return folder_.file(name); }
  const test::TemporaryFolder folder_{"adapter"};
  const Decoder decoder_ = test::tiny_decoder();
  const std::vector<Mechanism> plain_ = {Scaled{}, attention::Dense{}, Scaled{}};
};

TEST_F(AdapterFiles, a_saved_adapter_gives_the_same_parts_to_sessions_and_forwards) {
  const at::NoGradGuard no_grad;
  const auto mechanisms = equip_anew(plain_, decoder_, 3);
  EXPECT_FALSE(mechanisms[0].learned()->at("shift.weight").equal(mechanisms[2].learned()->at("shift.weight")));
  EXPECT_TRUE(mechanisms[0].learned()->at("factor").equal(at::full({1}, 2.0f)));
  Adapter::save(path("a.safetensors"), decoder_, mechanisms);
  const std::string paths[] = {path("a.safetensors")};
  const auto loaded = Adapter::load(paths, decoder_).equip(plain_, decoder_);
  const std::vector<int32_t> tokens = {5, 6, 7, 8, 9};
  const at::Tensor ids = at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong).unsqueeze(0);
  const at::Tensor want = decoder_.forward(ids, mechanisms);
  EXPECT_TRUE(decoder_.forward(ids, loaded).equal(want));
  Session session(decoder_, loaded);
  session.prefill(std::span(tokens).first(3));
  EXPECT_TRUE(same(session.decode(std::span(tokens).last(2)), want.narrow(1, 3, 2), {1e-5, 1e-5}));
  const std::vector<Mechanism> dense(3, attention::Dense{});
  EXPECT_FALSE(same(decoder_.forward(ids, dense), want, {1e-2, 1e-2}));
  EXPECT_NO_THROW(decoder_.forward(ids, Adapter::load(paths, decoder_).equip(dense, decoder_)));
}

TEST_F(AdapterFiles, gradients_reach_the_parts) {
  auto mechanisms = equip_anew(plain_, decoder_, 3);
  attention::Learned parts = *mechanisms[2].learned();
  for (auto& [name, part] : parts) part.requires_grad_();
  mechanisms[2] = mechanisms[2].with(parts, layer_shape(decoder_.config()));
  decoder_.forward(at::tensor({1, 2, 3}, at::kLong).unsqueeze(0), mechanisms).square().sum().backward();
  for (const auto& [name, part] : parts) EXPECT_GT(part.grad().abs().sum().item<double>(), 0) << name;
}

TEST_F(AdapterFiles, what_is_missing_or_of_another_model_is_refused) {
  const auto mechanisms = equip_anew(plain_, decoder_, 3);
  const std::string good = path("a.safetensors");
  Adapter::save(good, decoder_, mechanisms);
  const auto load = [&](std::vector<std::string> paths, const Decoder& decoder) {
    return message_of([&] { Adapter::load(paths, decoder); });
  };
  const Decoder other = test::tiny_decoder(true);
  EXPECT_EQ(load({good}, other), fmt::format("{}: model must be '{}', got '{}': the adapter is of another model", good,
                                             other.fingerprint(), decoder_.fingerprint()));
  EXPECT_EQ(load({good, good}, decoder_),
            good + ": 'layers.0.scaled.factor' is in an earlier adapter too; give one of them");
  EXPECT_EQ(message_of([&] { Adapter().equip(plain_, decoder_); }),
            "scaled: has learned parts, got no adapter with them for layer 0; give --adapter FILE");
  const std::vector<Mechanism> front = {Scaled{}, Scaled{}, attention::Dense{}};
  const std::string paths[] = {good};
  EXPECT_EQ(message_of([&] { Adapter::load(paths, decoder_).equip(front, decoder_); }),
            "scaled: has learned parts, got no adapter with them for layer 1; give --adapter FILE");
  const attention::LayerShape shape = layer_shape(decoder_.config());
  EXPECT_EQ(message_of([&] {
              plain_[0].with({{"factor", at::full({2}, 1.0f)}}, shape);
            }),
            "scaled: factor must be [1], got [2]");
  EXPECT_EQ(message_of([&] {
              plain_[0].with({{"factor", at::full({1}, 1.0f)}}, shape);
            }),
            "scaled: the adapter must have shift.weight, got none");
  attention::Learned more = *mechanisms[0].learned();
  more.emplace("bias", at::full({1}, 1.0f));
  EXPECT_EQ(message_of([&] { plain_[0].with(more, shape); }), "scaled: has no learned part bias, got one");
  const std::vector<int32_t> tokens = {1};
  EXPECT_EQ(message_of([&] { Session(decoder_, plain_).prefill(tokens); }),
            "scaled: has learned parts, got no adapter; give the file that training wrote");
  Session session(decoder_, mechanisms);
  session.prefill(tokens);
  session.save(path("s.safetensors"));
  Session(decoder_, mechanisms).load(path("s.safetensors"));
  EXPECT_NE(message_of([&] {
              Session(decoder_, equip_anew(plain_, decoder_, 4)).load(path("s.safetensors"));
            }).find(": choose the same --adapter"),
            std::string::npos);
  EXPECT_NE(load({path("s.safetensors")}, decoder_).find("got 'session 1': this is no adapter"), std::string::npos);
}

}  // namespace
}  // namespace foveate::models
