// What a model finds, against one stateless forward for every prefix: a tiny model with random weights, so that right
// answers come first as often as chance has it.
#include "foveate/eval/recall.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <set>

#include "foveate/attention/dense.h"
#include "foveate/eval/heat_map.h"
#include "tests/models/tiny.h"

namespace foveate::eval {
namespace {

using Tokens = std::vector<int32_t>;

const std::vector<attention::Mechanism>& dense() {
  static const std::vector<attention::Mechanism> all(3, attention::Dense{});
  return all;
}

// log P(answer | context), token by token.
double logprob(const models::Decoder& decoder, Tokens context, const Tokens& answer) {
  double sum = 0;
  for (const int32_t token : answer) {
    const at::Tensor ids = at::tensor(std::vector<int64_t>(context.begin(), context.end()), at::kLong).unsqueeze(0);
    const at::Tensor last = decoder.forward(ids, dense()).select(1, -1).squeeze(0);
    sum += decoder.logits(last).log_softmax(-1)[token].item<double>();
    context.push_back(token);
  }
  return sum;
}

// How many references rank first, each behind those before it or, if `forgets`, behind the leads alone.
double firsts_of(const models::Decoder& decoder, const Codec& codec, const RulerSample& sample, bool forgets) {
  Tokens context = sample.tokens;
  const auto read = [&](const std::string& text) {
    for (const int32_t token : codec.encode(text)) context.push_back(token);
  };
  double firsts = 0;
  for (size_t r = 0; r < sample.references.size(); ++r) {
    if (!sample.leads[r].empty()) read(sample.leads[r]);
    const double right = logprob(decoder, context, codec.encode(" " + sample.references[r]));
    bool is_first = true;
    for (const std::string& wrong : sample.distractors[r])
      is_first &= right > logprob(decoder, context, codec.encode(" " + wrong));
    firsts += is_first;
    if (!forgets) read(" " + sample.references[r]);
  }
  return firsts;
}

TEST(Recall, references_are_ranked_behind_those_before_them) {
  const at::NoGradGuard no_grad;
  const models::Decoder decoder = test::tiny_decoder();
  const auto tokenizer = test::byte_tokenizer();
  const Codec codec = codec_of(*tokenizer);
  std::vector<RulerSample> samples;
  for (const char* prompt : {"Tell me:", "One two three", "A long road", "say", "What is it?", "xyz"}) {
    RulerSample sample{.tokens = codec.encode(prompt), .answer_budget = 3};
    sample.references = {"ab", "cde", "f", "gh", "k", "m", "p", "r"};
    sample.leads = {"", ",", ", and", "", "", ",", "", ""};
    sample.distractors = {{"xy", "zz"}, {"cdf", "b"}, {"g", "h"}, {"gi", "ab"}, {"l", "n"}, {"o"}, {"q", "s"}, {"t"}};
    samples.push_back(sample);
  }
  double all = 0;
  int told_apart = 0;
  const auto results = run_ruler(decoder, dense(), *tokenizer, samples, attention::CacheType::model);
  ASSERT_EQ(results.size(), samples.size());
  for (size_t i = 0; i < samples.size(); ++i) {
    const double firsts = firsts_of(decoder, codec, samples[i], false);
    EXPECT_DOUBLE_EQ(results[i].ranked_first, firsts / 8) << i;
    all += firsts;
    told_apart += firsts != firsts_of(decoder, codec, samples[i], true);
  }
  EXPECT_GT(all, 8);  // of 48; chance alone has 18
  EXPECT_LT(all, 40);
  EXPECT_GE(told_apart, 2);  // what was read before matters
}

TEST(Recall, a_heat_maps_cells_are_the_needles_of_their_depth) {
  const at::NoGradGuard no_grad;
  const models::Decoder decoder = test::tiny_decoder();
  const auto tokenizer = test::byte_tokenizer();
  const Codec codec = codec_of(*tokenizer);
  std::string prose;
  for (int i = 0; i < 400; ++i) prose += "Rain fell on the old town. ";
  const HeatMapOptions options{.lengths = {1500, 1800}, .depths = 3, .prompts = 8};
  HeatPrompts prompts = make_heat_prompts(codec, codec.encode(prose), options);
  for (NeedleSet& set : prompts.needles)
    for (Haystack& haystack : set.haystacks)
      for (Needle& needle : haystack.needles) needle.distractors.resize(1);
  for (auto& passkeys : prompts.passkeys)
    for (Passkey& passkey : passkeys) passkey.tokens.resize(20);  // nothing of them is asked here
  const HeatMap map = run_heat_map(decoder, dense(), *tokenizer, prompts, attention::CacheType::model);
  std::set<double> values;
  for (size_t l = 0; l < 2; ++l)
    for (size_t d = 0; d < 3; ++d) {
      double first = 0;
      for (const Haystack& haystack : prompts.needles[l].haystacks)
        for (const Needle& needle : haystack.needles) {
          if (needle.depth_percent != options.depth_percent()[d]) continue;
          NeedleSet one = prompts.needles[l];
          one.haystacks = {haystack}, one.haystacks[0].needles = {needle};
          first += run_needles(decoder, dense(), *tokenizer, one, attention::CacheType::model).ranked_first.at(0) / 8;
        }
      EXPECT_DOUBLE_EQ(map.needle[l][d], first) << l << " " << d;
      values.insert(first);
    }
  EXPECT_GT(values.size(), 2u);  // else places could be mistaken for each other
}

}  // namespace
}  // namespace foveate::eval
