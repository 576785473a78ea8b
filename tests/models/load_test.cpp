// Model files that are good, and files that are not: what is wrong is named.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <functional>

#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/models/language/decoder.h"
#include "tests/support/compare.h"
#include "tests/support/gguf_writer.h"

namespace foveate::models {
namespace {

using test::GgufWriter;

constexpr int64_t kWidth = 16, kHeads = 4, kKvHeads = 2, kHeadDim = 4, kFeedForward = 24, kVocabulary = 11;

// What a small model file holds; tests change it before it is written.
struct FileParts {
  std::string architecture = "llama";
  std::map<std::string, uint32_t> counts;
  std::map<std::string, float> numbers;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<int64_t>> tensors;  // name -> shape
};

FileParts small_model() {
  FileParts parts;
  parts.counts = {{"block_count", 2},
                  {"context_length", 64},
                  {"embedding_length", kWidth},
                  {"feed_forward_length", kFeedForward},
                  {"attention.head_count", kHeads},
                  {"attention.head_count_kv", kKvHeads}};
  parts.numbers = {{"attention.layer_norm_rms_epsilon", 1e-5f}, {"rope.freq_base", 1e4f}};
  parts.tensors = {{"token_embd.weight", {kVocabulary, kWidth}}, {"output_norm.weight", {kWidth}}};
  for (int layer = 0; layer < 2; ++layer) {
    const auto name = [&](std::string_view field) { return fmt::format("blk.{}.{}.weight", layer, field); };
    parts.tensors[name("attn_norm")] = parts.tensors[name("ffn_norm")] = {kWidth};
    parts.tensors[name("attn_q")] = {kHeads * kHeadDim, kWidth};
    parts.tensors[name("attn_k")] = parts.tensors[name("attn_v")] = {kKvHeads * kHeadDim, kWidth};
    parts.tensors[name("attn_output")] = {kWidth, kHeads * kHeadDim};
    parts.tensors[name("ffn_gate")] = parts.tensors[name("ffn_up")] = {kFeedForward, kWidth};
    parts.tensors[name("ffn_down")] = {kWidth, kFeedForward};
  }
  return parts;
}

std::string write(const FileParts& parts) {
  GgufWriter writer;
  writer.set("general.architecture", parts.architecture);
  for (const auto& [key, value] : parts.counts) writer.set(parts.architecture + "." + key, value);
  for (const auto& [key, value] : parts.numbers) writer.set(parts.architecture + "." + key, value);
  for (const auto& [key, value] : parts.texts) writer.set(parts.architecture + "." + key, value);
  uint64_t seed = 0;
  for (const auto& [name, shape] : parts.tensors) {
    const at::Tensor values = test::random_tensor(shape, ++seed).mul(0.3);
    writer.tensor(name, shape, io::GgmlType::f32,
                  {static_cast<const char*>(values.const_data_ptr()), size_t(values.nbytes())});
  }
  return writer.bytes();
}

std::string message_of(const std::function<void(FileParts&)>& change) {
  FileParts parts = small_model();
  change(parts);
  const std::string bytes = write(parts);
  try {
    Decoder::load(io::Gguf::parse(test::as_bytes(bytes), "model.gguf"), at::kFloat);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Load, a_good_file_runs) {
  const at::NoGradGuard no_grad;
  const std::string bytes = write(small_model());
  const io::Gguf file = io::Gguf::parse(test::as_bytes(bytes), "model.gguf");
  const Decoder decoder = Decoder::load(file, at::kFloat);
  EXPECT_EQ(decoder.layers(), 2);
  EXPECT_EQ(decoder.config().head_dim, kHeadDim);
  EXPECT_TRUE(decoder.weights().head.is_same(decoder.weights().embedding));  // tied
  EXPECT_EQ(decoder.weights().named().size(), 2u + 2 * 9);
  const at::Tensor tokens = at::Tensor(test::random_tensor({1, 9}, 1)).abs().mul(3).to(at::kLong);
  const auto dense = attention::make_mechanisms("dense", 2);
  const at::Tensor logits = decoder.logits(decoder.forward(tokens, dense));
  EXPECT_EQ(logits.sizes(), (std::vector<int64_t>{1, 9, kVocabulary}));
  EXPECT_TRUE(logits.isfinite().all().item<bool>());
}

TEST(Load, an_untied_head_is_used) {
  FileParts parts = small_model();
  parts.tensors["output.weight"] = {kVocabulary, kWidth};
  const std::string bytes = write(parts);
  const Decoder decoder = Decoder::load(io::Gguf::parse(test::as_bytes(bytes), "model.gguf"), at::kFloat);
  EXPECT_FALSE(decoder.weights().head.equal(decoder.weights().embedding));
  EXPECT_EQ(decoder.weights().named().size(), 3u + 2 * 9);
}

// Rotating adjacent pairs of the file's rows is rotating halves of ours: the same dot products.
TEST(Load, llama_query_rows_are_unpermuted) {
  const std::string bytes = write(small_model());
  const io::Gguf file = io::Gguf::parse(test::as_bytes(bytes), "model.gguf");
  const at::Tensor ours = Decoder::load(file, at::kFloat).weights().layers[0].query.weight;
  const auto* stored = reinterpret_cast<const float*>(file.tensor("blk.0.attn_q.weight").bytes.data());
  for (int64_t head = 0; head < kHeads; ++head)
    for (int64_t pair = 0; pair < kHeadDim / 2; ++pair)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t in = 0; in < kWidth; ++in)
          EXPECT_EQ(ours[head * kHeadDim + half * kHeadDim / 2 + pair][in].item<float>(),
                    stored[(head * kHeadDim + 2 * pair + half) * kWidth + in]);
}

TEST(Load, names_what_is_wrong) {
  const std::vector<std::pair<std::function<void(FileParts&)>, std::string>> defects = {
      {[](FileParts& p) { p.tensors.erase("blk.1.attn_k.weight"); }, "tensor 'blk.1.attn_k.weight' is missing"},
      {[](FileParts& p) { p.tensors.erase("token_embd.weight"); }, "token_embd.weight"},
      {[](FileParts& p) { p.tensors.erase("output_norm.weight"); }, "output_norm.weight"},
      {[](FileParts& p) {
         p.tensors["blk.0.ffn_up.weight"] = {kWidth, kFeedForward};
       },
       "tensor 'blk.0.ffn_up.weight' must be [24, 16], got [16, 24]"},
      {[](FileParts& p) { p.tensors["blk.0.attn_norm.weight"] = {kWidth + 1}; }, "must be [16], got [17]"},
      {[](FileParts& p) { p.architecture = "mamba"; },
       "unsupported architecture 'mamba', supported: llama gemma2 gemma3 gpt2 gptneox olmo2 phi3 qwen2 qwen3"},
      {[](FileParts& p) { p.counts.erase("embedding_length"); }, "key 'llama.embedding_length' is missing"},
      {[](FileParts& p) { p.counts["block_count"] = 0; }, "'llama.block_count' must be"},
      {[](FileParts& p) { p.counts["block_count"] = 4000000000u; }, "block_count must be <= the file's"},
      {[](FileParts& p) { p.counts["attention.head_count_kv"] = 3; }, "multiple of key heads, got 4 and 3"},
      {[](FileParts& p) { p.counts["rope.dimension_count"] = 6; }, "rope.dimension_count must be even and <= 4, got 6"},
      {[](FileParts& p) { p.texts["rope.scaling.type"] = "yarn"; },
       "rope.scaling.type must be one of: none linear; got 'yarn'"},
      {[](FileParts& p) { p.texts["rope.scaling.type"] = "linear"; }, "key 'llama.rope.scaling.factor' is missing"},
      {[](FileParts& p) { p.tensors["rope_freqs.weight"] = {3}; }, "'rope_freqs.weight' must be [2], got [3]"},
      {[](FileParts& p) { p.tensors["rope_factors_long.weight"] = {2}; }, "(long rope) is not supported"},
      {[](FileParts& p) {
         p.tensors["rope_freqs.weight"] = {2};  // random, so one of them is negative
       },
       "rotary: divisors must be finite and > 0"},
      {[](FileParts& p) { p.architecture = "qwen2"; }, "tensor 'blk.0.attn_q.bias' is missing"},
      {[](FileParts& p) { p.architecture = "gpt2"; }, "key 'gpt2.attention.layer_norm_epsilon' is missing"},
      {[](FileParts& p) { p.numbers.erase("attention.layer_norm_rms_epsilon"); }, "layer_norm_rms_epsilon' is missing"},
  };
  for (const auto& [change, part] : defects) {
    const std::string message = message_of(change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace foveate::models
