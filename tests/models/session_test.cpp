// A decoder with every mechanism: sessions against stateless forwards, training, sampling, generation.
#include "foveate/models/language/session.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "foveate/base/error.h"
#include "foveate/base/spec.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/language/adapter.h"
#include "foveate/models/language/generate.h"
#include "foveate/models/stored.h"
#include "tests/models/tiny.h"
#include "tests/support/compare.h"

namespace foveate::models {
namespace {

using test::same;

std::vector<int32_t> some_tokens(int64_t count) {
  Random random(5);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(int32_t(random.below(256)));
  return tokens;
}

at::Tensor as_tensor(std::span<const int32_t> tokens) {
  return at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong).unsqueeze(0);
}

const char* kSpecs[] = {"dense", "window:size=7,sinks=2", "window:size=7,sinks=2,positions=cache",
                        "dhsa:query_block=4,budget=8,global_tokens=1,local_tokens=2,chunk=2,decode=sparse",
                        "dense@0;window:size=5@2;dhsa:query_block=4,budget=8,global_tokens=1,local_tokens=2,chunk=2"};

TEST(Session, prefill_equals_the_stateless_forward) {
  const at::NoGradGuard no_grad;
  for (const bool gemma : {false, true}) {
    const Decoder decoder = test::tiny_decoder(gemma);
    const auto tokens = some_tokens(50);
    for (const char* spec : kSpecs) {
      const auto mechanisms = attention::make_mechanisms(spec, 3);
      Session session(decoder, mechanisms);
      EXPECT_TRUE(same(session.prefill(tokens), decoder.forward(as_tensor(tokens), mechanisms), {1e-5, 1e-5})) << spec;
      EXPECT_EQ(session.length(), 50);
    }
  }
}

TEST(Session, learned_positions_end_where_the_model_does) {
  const at::NoGradGuard no_grad;
  DecoderConfig config = test::tiny_decoder().config();
  DecoderWeights weights = test::tiny_decoder().weights();
  config.rope_dim = 0, config.context = 16;
  weights.positions = test::random_tensor({16, config.width}, 3);
  const Decoder decoder(config, weights);
  const auto tokens = some_tokens(17);
  const at::Tensor whole = decoder.forward(as_tensor({tokens.data(), 16}), attention::make_mechanisms("dense", 3));
  Session session(decoder, attention::make_mechanisms("dense", 3));
  session.prefill({tokens.data(), 10});
  EXPECT_TRUE(same(session.decode({tokens.data() + 10, 6}), whole.narrow(1, 10, 6), {1e-5, 1e-5}));
  EXPECT_THROW(session.decode({tokens.data() + 16, 1}), Error);
}

TEST(Session, decode_equals_prefill_for_row_mechanisms) {
  const at::NoGradGuard no_grad;
  const Decoder decoder = test::tiny_decoder();
  const auto tokens = some_tokens(60);
  for (const char* spec :
       {"dense", "window:size=7,sinks=2", "window:size=7,sinks=2,positions=cache", "dense@1;window:size=4"}) {
    const auto mechanisms = attention::make_mechanisms(spec, 3);
    Session session(decoder, mechanisms);
    std::vector<at::Tensor> rows = {session.prefill(std::span(tokens).first(20))};
    for (size_t i = 20; i < 60; ++i) rows.push_back(session.decode(std::span(tokens).subspan(i, 1)));
    EXPECT_TRUE(same(at::cat(rows, 1), decoder.forward(as_tensor(tokens), mechanisms), {2e-5, 2e-5})) << spec;
  }
}

TEST(Session, chunked_prefill_equals_one_prefill_at_multiples) {
  const at::NoGradGuard no_grad;
  const Decoder decoder = test::tiny_decoder();
  const auto tokens = some_tokens(45);
  for (const char* spec : kSpecs) {
    const auto mechanisms = attention::make_mechanisms(spec, 3);
    Session session(decoder, mechanisms), whole(decoder, mechanisms);
    const int64_t step = session.chunk_multiple() * 4;
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < 45; i += step)
      rows.push_back(
          session.prefill(std::span(tokens).subspan(size_t(i), size_t(std::min(step, 45 - i))), i + step >= 45));
    EXPECT_TRUE(same(at::cat(rows, 1), whole.prefill(tokens), {2e-5, 2e-5})) << spec;
  }
}

class SessionFile : public testing::Test {
 protected:
  std::string path_ = (std::filesystem::temp_directory_path() / fmt::format("foveate_session_{}", ::getpid())).string();
  ~SessionFile() override { std::filesystem::remove(path_); }

  // What loading the file into a session of these options says.
  std::string failure(const Decoder& decoder, const char* spec, SessionOptions options = {}) const {
    Session session(decoder, attention::make_mechanisms(spec, 3), options);
    try {
      session.load(path_);
      return {};
    } catch (const Error& error) {
      EXPECT_EQ(session.length(), 0);
      return error.what();
    }
  }
};

// Every mechanism with something to save: beside the cache where it keeps more.
const char* kSaved[] = {
    "dense",
    "window:size=7,sinks=2,positions=cache",
    "neighborhood:kernel=4,dilation=2,stride=2",
    "triangle:size=7,sinks=2,last=5",
    "dhsa:query_block=4,budget=8,global_tokens=1,local_tokens=2,chunk=2,decode=sparse",
    "dhsa:chunks=learned,theta=0,query_block=4,budget=8,global_tokens=1,local_tokens=2,decode=sparse@0;"
    "dhsa:chunks=shared,query_block=4,budget=8,global_tokens=1,local_tokens=2,decode=sparse",
    "dhsa:chunks=learned,theta=0,query_block=4,budget=8,global_tokens=1,local_tokens=2@0;"
    "dhsa:chunks=shared,query_block=4,budget=8,global_tokens=1,local_tokens=2@1;"
    "dhsa:chunks=shared,lists=shared,query_block=4,budget=8,global_tokens=1,local_tokens=2@2",
    "dhsa_blocks:density=0.5,query_block=16,key_block=16",
    "block_topk:query_block=4,block=4,blocks=3",
    "xattention:block=8,stride=2,tau=0.5",
    "vertical_slash:vertical=4,slash=3,last_queries=8,first_columns=1,first_distances=2,block=8",
    "flexprefill:gamma=0.3,min_budget=1,block=8",
    "quest:page=4,budget=8,least_pages=1",
    "nsa:compress=8,stride=4,block=8,blocks=3,window=6,phi=weighted",
    "hisa:topk=9,block=4,block_topk=3,heads=3,dim=16",
    "landmark:block=4,top_k=2,chunk=8",
    "landmark:block=4,top_k=2,chunk=8,max_blocks=3",
    "landmark:block=4,top_k=2,chunk=8,offload=/tmp",
    "superlinear:num_spans=2,sw_index=2,search_power=0.5",
    "cca:group=4,window=6,keep_raw=true",
    "hyper:min_seq_len=6,block_size=4,sample_size=5",
    "duo:size=7,sinks=2,full_heads=1",
    "duo:size=7,sinks=2,full_heads=none",
    "duo:size=7,sinks=2",
    "flux:cheap=(duo:size=7,sinks=2,full_heads=1)",
    "flux:route=cheap,cheap=(window:size=7,sinks=2)",
    "dense@0;window:size=5@2;duo:size=7,full_heads=0@1"};

TEST_F(SessionFile, of_every_mechanism_is_tried_here) {
  for (const attention::MechanismInfo& info : attention::list_mechanisms())
    EXPECT_TRUE(std::ranges::any_of(kSaved, [&](const char* spec) {
      return parse_layered_spec(spec, 3)[0].name == info.name;
    })) << info.name;
}

TEST_F(SessionFile, goes_on_with_the_same_bits) {
  const Decoder decoder = test::tiny_decoder();
  const auto tokens = some_tokens(60);
  for (const char* spec : kSaved)
    for (const auto cache : {attention::CacheType::model, attention::CacheType::q8}) {
      const auto mechanisms = equip_anew(attention::make_mechanisms(spec, 3), decoder, 4);
      Session session(decoder, mechanisms, {.cache = cache});
      session.prefill(std::span(tokens).first(30));
      session.decode(std::span(tokens).subspan(30, 10));
      session.save(path_);
      Session other(decoder, mechanisms, {.cache = cache});
      other.load(path_);
      EXPECT_EQ(other.length(), 40);
      EXPECT_EQ(other.tokens(), std::vector(tokens.begin(), tokens.begin() + 40));
      for (size_t i = 40; i < 60; ++i)
        ASSERT_TRUE(
            other.decode(std::span(tokens).subspan(i, 1)).equal(session.decode(std::span(tokens).subspan(i, 1))))
            << spec << " token " << i;
    }
}

TEST_F(SessionFile, with_keys_of_groups_beside_those_of_all_is_refused) {
  const Decoder decoder = test::tiny_decoder();
  Session session(decoder, attention::make_mechanisms("dense", 3));
  session.prefill(some_tokens(20));
  session.save(path_);
  const io::Safetensors file = io::Safetensors::open(path_);
  std::vector<at::Tensor> kept;
  std::vector<io::StoredTensor> stored;
  for (const io::StoredTensor& t : file.tensors()) {
    at::Tensor numbers = restore(t).clone();
    if (t.name == "layer.1.k") {  // two heads in two parts
      stored.push_back(store("layer.1.full.k", kept.emplace_back(numbers.narrow(1, 1, 1).contiguous())));
      numbers = numbers.narrow(1, 0, 1).contiguous();
    }
    stored.push_back(store(t.name, kept.emplace_back(numbers)));
  }
  const auto metadata = file.metadata();
  io::write_safetensors(path_, stored, {metadata.begin(), metadata.end()});
  EXPECT_NE(failure(decoder, "dense").find("layer.1.: k must have 2 heads, got 1"), std::string::npos)
      << failure(decoder, "dense");
}

TEST_F(SessionFile, of_something_else_is_refused_by_name) {
  const Decoder decoder = test::tiny_decoder(), other = test::tiny_decoder(/*gemma=*/true);
  const auto tokens = some_tokens(20);
  Session session(decoder, attention::make_mechanisms("window:size=7", 3));
  session.prefill(tokens);
  session.save(path_);
  EXPECT_EQ(failure(decoder, "window:size=7"), "");
  EXPECT_NE(failure(other, "window:size=7").find("the session is of another model"), std::string::npos);
  EXPECT_NE(failure(decoder, "window:size=8").find("choose the same --attention"), std::string::npos);
  EXPECT_NE(failure(decoder, "window:size=7", {.cache = attention::CacheType::q8}).find("choose the same --cache"),
            std::string::npos);
  EXPECT_THROW(session.load(path_), Error) << "a session that has read may not load";
  const auto bytes = std::filesystem::file_size(path_);
  for (const auto kept : {bytes - 1, bytes / 2, uintmax_t{100}, uintmax_t{4}, uintmax_t{0}}) {
    session.save(path_);
    std::filesystem::resize_file(path_, kept);
    EXPECT_NE(failure(decoder, "window:size=7"), "") << kept << " bytes";
  }
  std::filesystem::remove(path_);
  EXPECT_NE(failure(decoder, "window:size=7"), "");
  EXPECT_THROW(session.save("/no/such/folder/session"), Error);
}

TEST(Session, truncation_returns_to_an_earlier_state) {
  const at::NoGradGuard no_grad;
  const Decoder decoder = test::tiny_decoder();
  const auto tokens = some_tokens(40);
  for (const char* spec : kSpecs) {
    Session session(decoder, attention::make_mechanisms(spec, 3), {.rollback = 8, .observe = {}});
    session.prefill(std::span(tokens).first(32));
    const at::Tensor want = session.decode(std::span(tokens).subspan(32, 8));
    session.truncate(32);
    EXPECT_TRUE(same(session.decode(std::span(tokens).subspan(32, 8)), want, {1e-5, 1e-5})) << spec;
  }
}

TEST(Session, refuses_what_it_cannot_do) {
  const Decoder decoder = test::tiny_decoder();
  EXPECT_THROW(Session(decoder, attention::make_mechanisms("dense", 2)), Error);
  Session session(decoder, attention::make_mechanisms("dense", 3));
  EXPECT_THROW(session.prefill({}), Error);
  EXPECT_THROW(session.prefill(std::vector<int32_t>{258}), Error);
  EXPECT_THROW(session.prefill(std::vector<int32_t>{-1}), Error);
}

TEST(Decoder, one_training_step_changes_every_parameter_with_every_mechanism) {
  for (const bool gemma : {false, true})
    for (const char* spec : kSpecs) {
      const Decoder decoder = test::tiny_decoder(gemma);
      for (const auto& [name, weight] : decoder.weights().named()) weight.requires_grad_(true);
      const at::Tensor tokens = as_tensor(some_tokens(41));
      const auto mechanisms = attention::make_mechanisms(spec, 3);
      const auto loss = [&] {
        const at::Tensor hidden = decoder.forward(tokens.narrow(1, 0, 40), mechanisms);
        return at::cross_entropy_loss(decoder.logits(hidden.squeeze(0)), tokens[0].narrow(0, 1, 40));
      };
      const at::Tensor before = loss();
      before.backward();
      const at::NoGradGuard no_grad;
      for (const auto& [name, weight] : decoder.weights().named()) {
        ASSERT_TRUE(weight.grad().defined()) << name;
        EXPECT_GT(weight.grad().abs().max().item<float>(), 0) << name << " " << spec;
        weight.sub_(weight.grad() * 0.05);
      }
      EXPECT_LT(loss().item<float>(), before.item<float>()) << spec;
    }
}

TEST(Sampling, temperature_zero_takes_the_best_and_the_lower_of_equals) {
  Random random(1);
  EXPECT_EQ(sample(std::vector<float>{1, 3, 3, 2}, {}, random), 1);
}

TEST(Sampling, filters_keep_what_they_say) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  const auto seen = [&](Sampling sampling) {
    std::set<int32_t> ids;
    Random random(2);
    for (int i = 0; i < 2000; ++i) ids.insert(sample(logits, sampling, random));
    return ids;
  };
  EXPECT_EQ(seen({.temperature = 1}), (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(seen({.temperature = 1, .top_k = 2}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(seen({.temperature = 1, .top_p = 0.6}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(seen({.temperature = 1, .top_p = 0.5}), (std::set<int32_t>{0}));
  EXPECT_EQ(seen({.temperature = 1, .min_p = 0.2}), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(seen({.temperature = 1, .min_p = 1}), (std::set<int32_t>{0}));
}

TEST(Sampling, frequencies_follow_probabilities) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::vector<int> counts(3);
  Random random(3);
  for (int i = 0; i < 20000; ++i) ++counts[size_t(sample(logits, {.temperature = 1}, random))];
  EXPECT_NEAR(counts[0], 10000, 400);
  EXPECT_NEAR(counts[1], 6000, 400);
}

TEST(Sampling, refuses_illegal_values) {
  EXPECT_THROW((Sampling{.temperature = -1}.validate()), Error);
  EXPECT_THROW((Sampling{.top_k = -1}.validate()), Error);
  EXPECT_THROW((Sampling{.top_p = 0}.validate()), Error);
  EXPECT_THROW((Sampling{.top_p = 1.1}.validate()), Error);
  EXPECT_THROW((Sampling{.min_p = -0.1}.validate()), Error);
  Random random(1);
  EXPECT_THROW(sample({}, {}, random), Error);
  EXPECT_THROW(sample(std::vector<float>{NAN, 1}, {}, random), Error);
}

TEST(Generate, same_seed_same_text_and_pieces_join_to_it) {
  const Decoder decoder = test::tiny_decoder();
  const auto tokenizer = test::byte_tokenizer();
  const auto run = [&](uint64_t seed, std::vector<std::string> stop, std::string* joined) {
    Session session(decoder, attention::make_mechanisms("dense", 3));
    const at::Tensor hidden = session.prefill(some_tokens(10)).select(1, -1).squeeze(0);
    return generate(session, *tokenizer, hidden,
                    {.max_tokens = 60, .sampling = {.temperature = 1}, .stop = std::move(stop), .seed = seed},
                    [&](std::string_view text) {
                      if (joined) *joined += text;
                      return true;
                    });
  };
  std::string joined;
  const Generated a = run(1, {}, &joined), b = run(1, {}, nullptr), c = run(2, {}, nullptr);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_NE(a.tokens, c.tokens);
  EXPECT_EQ(joined, a.text);
  EXPECT_EQ(tokenizer->decode(a.tokens), a.text);
  const std::string stop = a.text.substr(20, 2);
  joined.clear();
  const Generated stopped = run(1, {stop, "never to be seen"}, &joined);
  EXPECT_EQ(stopped.text, a.text.substr(0, a.text.find(stop)));
  EXPECT_EQ(stopped.reason, Generated::Reason::stop_string);
  EXPECT_EQ(joined, stopped.text);
}

}  // namespace
}  // namespace foveate::models
