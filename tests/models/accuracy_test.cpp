// Errors of attention on queries, keys and values of a real model's layers.
#include "tests/support/accuracy.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include "foveate/io/tokenizer.h"
#include "foveate/models/language/decoder.h"
#include "tests/support/mixed_text.h"
#include "tests/support/real_model.h"

namespace foveate::models {
namespace {

using namespace foveate::test;

class RealAccuracyAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, RealAccuracyAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

// The inputs of some layers, in the order of the layers.
std::vector<AccuracyInputs> captured(const std::string& path) {
  const at::NoGradGuard no_grad;
  const io::Gguf file = io::Gguf::open(path);
  const Decoder decoder = Decoder::load(file, at::kFloat);
  std::vector<int32_t> ids = io::make_tokenizer(io::read_vocabulary(file))->encode(mixed_text().front().text);
  ids.resize(200);
  std::vector<AccuracyInputs> all;
  const auto mechanisms = attention::make_mechanisms("dense", decoder.layers());
  const std::vector<int64_t> wanted = {0, decoder.layers() / 2, decoder.layers() - 1};
  decoder.forward(at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0), 0,
                  [&](const attention::Inputs& in) {
                    if (std::ranges::find(wanted, in.layer) != wanted.end())
                      all.push_back({"layer " + std::to_string(in.layer), in.q.to(at::kDouble), in.k.to(at::kDouble),
                                     in.v.to(at::kDouble), random_tensor(in.q.sizes(), 1, at::kDouble)});
                    return mechanisms[size_t(in.layer)].attend(in);
                  });
  return all;
}

TEST_P(RealAccuracyAtLevel, is_within_twice_the_error_of_torchs_attention) {
  const auto path = real_model("smollm2");
  if (!path) GTEST_SKIP() << no_model("smollm2");
  static const std::vector<AccuracyInputs> inputs = captured(*path);
  ASSERT_EQ(inputs.size(), 3u);
  for (const AccuracyInputs& x : inputs) expect_accuracy_of_torch(x);
}

}  // namespace
}  // namespace foveate::models
