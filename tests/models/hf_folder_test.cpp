// Hugging Face folders that are good, and config.json files that are not: what is wrong is named.
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/models/language/decoder.h"
#include "foveate/models/language/encoder.h"
#include "tests/support/compare.h"
#include "tests/support/damage.h"
#include "tests/support/files.h"
#include "tests/support/safetensors_writer.h"

namespace foveate::models {
namespace {

using nlohmann::json;
using test::SafetensorsWriter;
using test::TemporaryFolder;

constexpr int64_t kWidth = 16, kHeads = 4, kKvHeads = 2, kHeadDim = 4, kWide = 24, kVocabulary = 11;

struct Folder {
  json config = {{"model_type", "llama"},      {"hidden_size", kWidth},           {"num_attention_heads", kHeads},
                 {"num_hidden_layers", 1},     {"num_key_value_heads", kKvHeads}, {"intermediate_size", kWide},
                 {"vocab_size", kVocabulary},  {"max_position_embeddings", 64},   {"rms_norm_eps", 1e-5},
                 {"tie_word_embeddings", true}};
  std::map<std::string, std::vector<int64_t>> tensors = {
      {"model.embed_tokens.weight", {kVocabulary, kWidth}},
      {"model.norm.weight", {kWidth}},
      {"model.layers.0.input_layernorm.weight", {kWidth}},
      {"model.layers.0.post_attention_layernorm.weight", {kWidth}},
      {"model.layers.0.self_attn.q_proj.weight", {kHeads * kHeadDim, kWidth}},
      {"model.layers.0.self_attn.k_proj.weight", {kKvHeads * kHeadDim, kWidth}},
      {"model.layers.0.self_attn.v_proj.weight", {kKvHeads * kHeadDim, kWidth}},
      {"model.layers.0.self_attn.o_proj.weight", {kWidth, kHeads* kHeadDim}},
      {"model.layers.0.mlp.gate_proj.weight", {kWide, kWidth}},
      {"model.layers.0.mlp.up_proj.weight", {kWide, kWidth}},
      {"model.layers.0.mlp.down_proj.weight", {kWidth, kWide}},
  };
};

std::string weights_of(const Folder& folder) {
  SafetensorsWriter writer;
  uint64_t seed = 0;
  for (const auto& [name, shape] : folder.tensors) {
    const at::Tensor values = test::random_tensor(shape, ++seed).mul(0.3);
    writer.tensor(name, "F32", shape, {static_cast<const char*>(values.const_data_ptr()), values.nbytes()});
  }
  return writer.bytes();
}

// What loading says, with the folder's path as FOLDER.
template <class Load>
std::string error_in(const std::string& config, const std::string& weights, const Load& load) {
  TemporaryFolder on_disk("hf_folder");
  on_disk.add("config.json", config).add("model.safetensors", weights);
  std::string message = "no error";
  try {
    load(on_disk.path());
  } catch (const Error& error) {
    message = error.what();
  }
  for (size_t at; (at = message.find(on_disk.path())) != std::string::npos;)
    message.replace(at, on_disk.path().size(), "FOLDER");
  return message;
}

void load_decoder(const std::string& path) { Decoder::load(Checkpoint::open(path), at::kFloat); }

std::string message_of(const std::function<void(Folder&)>& change) {
  Folder folder;
  change(folder);
  return error_in(folder.config.dump(), weights_of(folder), load_decoder);
}

TEST(HfFolder, a_good_one_runs) {
  const at::NoGradGuard no_grad;
  const Folder folder;
  TemporaryFolder on_disk("hf_folder");
  on_disk.add("config.json", folder.config.dump()).add("model.safetensors", weights_of(folder));
  const Decoder decoder = Decoder::load(Checkpoint::open(on_disk.path()), at::kFloat);
  EXPECT_TRUE(decoder.weights().head.is_same(decoder.weights().embedding));
  int64_t numbers = 0;
  for (const auto& [name, shape] : folder.tensors)
    numbers += std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  EXPECT_EQ(decoder.parameter_count(), numbers);
  EXPECT_EQ(Decoder::load(Checkpoint::open(on_disk.path()), at::kBFloat16).parameter_count(), numbers);
  EXPECT_EQ(decoder.weights().packed_count(), 0);
}

TEST(HfFolder, a_copy_of_a_tied_head_is_left_alone) {
  EXPECT_EQ(message_of([](Folder& f) { f.tensors["lm_head.weight"] = {1, 1}; }), "no error");
}

TEST(HfFolder, names_may_lack_their_prefix) {
  EXPECT_EQ(message_of([](Folder& f) {
              std::map<std::string, std::vector<int64_t>> bare;
              for (const auto& [name, shape] : f.tensors) bare[name.substr(6)] = shape;
              f.tensors = bare;
            }),
            "no error");
}

struct Defect {
  const char* name;
  std::function<void(Folder&)> change;
  std::string part;  // of the message
};

std::function<void(Folder&)> with(const char* key, json value) {
  return [=](Folder& f) { f.config[key] = value; };
}

const json kCrossedBands = {{"rope_type", "llama3"},
                            {"factor", 8},
                            {"low_freq_factor", 4},
                            {"high_freq_factor", 1},
                            {"original_max_position_embeddings", 32}};

const std::vector<Defect> kDefects = {
    {"no model_type", [](Folder& f) { f.config.erase("model_type"); }, "config.json: key 'model_type' is missing"},
    {"unknown model_type", with("model_type", "mamba"),
     "unsupported model_type 'mamba', supported: llama mistral qwen2 qwen3 gemma2 gemma3_text olmo2 phi3 gpt2 "
     "gpt_neox"},
    {"model_type no text", with("model_type", 3), "key 'model_type' must be text, got '3'"},
    {"width missing", [](Folder& f) { f.config.erase("hidden_size"); }, "key 'hidden_size' is missing"},
    {"width null", with("hidden_size", nullptr), "key 'hidden_size' is missing"},
    {"width negative", with("hidden_size", -16), "key 'hidden_size' must be 1 .. 2^32, got '-16'"},
    {"width zero", with("hidden_size", 0), "'hidden_size' must be 1 .. 2^32"},
    {"width a fraction", with("hidden_size", 16.5), "'hidden_size' must be 1 .. 2^32, got '16.5'"},
    {"width text", with("hidden_size", "16"), "'hidden_size' must be 1 .. 2^32"},
    {"width beyond 64 bits", with("hidden_size", ~uint64_t{0}), "'hidden_size' must be 1 .. 2^32"},
    {"width absurd", with("hidden_size", int64_t{1} << 32), "width must be <= 2^24, got 4294967296"},
    {"heads absurd", with("num_attention_heads", int64_t{1} << 31), "hidden_size must be a multiple of"},
    {"head dim absurd", with("head_dim", int64_t{1} << 32), "head dim must be <= 2^24"},
    {"heads that do not divide the width", with("num_attention_heads", 5), "must be a multiple of"},
    {"key heads that do not divide", with("num_key_value_heads", 3), "must be a multiple of key heads, got 4 and 3"},
    {"layers absurd", with("num_hidden_layers", 1000000), "num_hidden_layers must be <= 4096, got 1000000"},
    {"more layers than tensors", with("num_hidden_layers", 2), "layers.1."},
    {"epsilon text", with("rms_norm_eps", "small"), "key 'rms_norm_eps' must be a number"},
    {"epsilon missing", [](Folder& f) { f.config.erase("rms_norm_eps"); }, "key 'rms_norm_eps' is missing"},
    {"activation unknown", with("hidden_act", "relu2"), "must be one of: silu gelu gelu_new gelu_pytorch_tanh"},
    {"epsilon negative", with("rms_norm_eps", -1), "epsilon must be >= 0, got -1"},
    {"scale negative", [](Folder& f) { f.config["model_type"] = "gemma2", f.config["query_pre_attn_scalar"] = -1; },
     "the logits' scale must be > 0"},
    {"soft cap zero", [](Folder& f) { f.config["model_type"] = "gemma2", f.config["final_logit_softcapping"] = 0; },
     "the final logits' soft cap must be > 0, got 0"},
    {"model_type with control characters", with("model_type", "a\n\x1b[2Jb"), "unsupported model_type"},
    {"activation with control characters", with("hidden_act", "a\nb"), "must be one of: silu"},
    {"rope type with control characters", with("rope_scaling", {{"type", "a\nb"}}), "rope_type must be one of"},
    {"config without end", [](Folder& f) { f.config["x"] = std::string(size_t{1} << 24, ' '); },
     "must have <= 16777216 bytes"},
    {"ties no truth", with("tie_word_embeddings", 1), "must be true or false, got '1'"},
    {"biases in part", with("attention_bias", true), "attention_bias without mlp_bias"},
    {"rope type unknown", with("rope_scaling", {{"type", "yarn"}, {"factor", 4}}),
     "rope_type must be one of: default linear llama3; got 'yarn'"},
    {"rope factor missing", with("rope_scaling", {{"type", "linear"}}), "rope_scaling: key 'factor' is missing"},
    {"rope factor zero", with("rope_scaling", {{"type", "linear"}, {"factor", 0}}), "factor must be > 0, got 0"},
    {"rope base negative", with("rope_theta", -1), "rope_theta must be > 0, got -1"},
    {"llama 3 bands crossed", with("rope_parameters", kCrossedBands), "0 < low_freq_factor < high_freq_factor"},
    {"rope parameters no object", with("rope_parameters", 7), "key 'rope_parameters' must be an object"},
    {"rotary part absurd", with("partial_rotary_factor", 1e300), "partial_rotary_factor must rotate an even part"},
    {"rotary part negative", with("partial_rotary_factor", -1), "partial_rotary_factor must rotate an even part"},
    {"rotary part odd", with("partial_rotary_factor", 0.75), "partial_rotary_factor must rotate an even part"},
    {"vocabulary against embedding", with("vocab_size", 12), "must be [12, 16], got [11, 16]"},
    {"feed-forward against tensors", with("intermediate_size", 32), "must be [32, 16], got [24, 16]"},
    {"head untied but missing", with("tie_word_embeddings", false), "tensor 'lm_head.weight' is missing"},
    {"layer types too few",
     [](Folder& f) { f.config["model_type"] = "mistral", f.config["layer_types"] = json::array(); },
     "layer_types must list 1 layers, got 0"},
    {"layer type unknown",
     [](Folder& f) { f.config["model_type"] = "mistral", f.config["layer_types"] = {"chunked_attention"}; },
     "must be full_attention or sliding_attention, got 'chunked_attention'"},
    {"window missing",
     [](Folder& f) { f.config["model_type"] = "mistral", f.config["layer_types"] = {"sliding_attention"}; },
     "layer_types has sliding_attention, but sliding_window is missing"},
    {"tensor missing", [](Folder& f) { f.tensors.erase("model.layers.0.self_attn.k_proj.weight"); },
     "tensor 'model.layers.0.self_attn.k_proj.weight' is missing"},
    {"tensor turned",
     [](Folder& f) {
       f.tensors["model.layers.0.mlp.up_proj.weight"] = {kWidth, kWide};
     },
     "must be [24, 16], got [16, 24]"},
};

TEST(HfFolder, names_what_is_wrong) {
  ASSERT_EQ(message_of([](Folder&) {}), "no error");
  for (const Defect& defect : kDefects) {
    const std::string message = message_of(defect.change);
    EXPECT_TRUE(message.starts_with("FOLDER")) << defect.name << ": " << message;
    EXPECT_NE(message.find(defect.part), std::string::npos) << defect.name << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << defect.name << ": " << message;
  }
}

TEST(HfFolder, every_truncation_of_config_json_is_refused) {
  const std::string config = Folder().config.dump(), weights = weights_of({});
  test::expect_truncations_are_refused(config, "FOLDER/config.json",
                                       [&](const std::string& text) { return error_in(text, weights, load_decoder); });
}

TEST(HfFolder, an_integer_tensor_is_no_weight) {
  TemporaryFolder on_disk("hf_folder");
  on_disk.add("config.json", Folder().config.dump());
  on_disk.add("model.safetensors",
              SafetensorsWriter().tensor("model.embed_tokens.weight", "I32", {11, 16}, std::string(704, '\0')).bytes());
  try {
    load_decoder(on_disk.path());
    FAIL() << "it was loaded";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("I32"), std::string::npos) << error.what();
  }
}

TEST(HfFolder, a_decoder_is_no_encoder) {
  const auto load = [](const std::string& path) { Encoder::load(path, at::kFloat); };
  EXPECT_EQ(error_in(Folder().config.dump(), "", load),
            "FOLDER/config.json: model_type must be bert for an encoder, got 'llama'");
  const json bert = {{"model_type", "bert"},        {"hidden_size", 16},      {"num_attention_heads", 5},
                     {"num_hidden_layers", 1},      {"intermediate_size", 8}, {"vocab_size", 4},
                     {"max_position_embeddings", 8}};
  EXPECT_EQ(error_in(bert.dump(), "", load), "FOLDER: the width must be a multiple of the heads, got 16 and 5");
}

TEST(HfFolder, an_encoder_may_want_other_vectors_than_means) {
  const json bert = {{"model_type", "bert"},        {"hidden_size", 8},       {"num_attention_heads", 2},
                     {"num_hidden_layers", 1},      {"intermediate_size", 8}, {"vocab_size", 4},
                     {"max_position_embeddings", 8}};
  SafetensorsWriter writer;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    writer.tensor(name, "F32", shape, std::string(size_t(4 * count), '\0'));
  };
  add("embeddings.word_embeddings.weight", {4, 8}), add("embeddings.position_embeddings.weight", {8, 8});
  add("embeddings.token_type_embeddings.weight", {2, 8});
  add("embeddings.LayerNorm.gamma", {8}), add("embeddings.LayerNorm.beta", {8});  // the older names
  for (const char* norm : {"attention.output.LayerNorm", "output.LayerNorm"}) {
    add(fmt::format("encoder.layer.0.{}.weight", norm), {8});
    add(fmt::format("encoder.layer.0.{}.bias", norm), {8});
  }
  for (const char* name : {"attention.self.query", "attention.self.key", "attention.self.value",
                           "attention.output.dense", "intermediate.dense", "output.dense"}) {
    add(fmt::format("encoder.layer.0.{}.weight", name), {8, 8});
    add(fmt::format("encoder.layer.0.{}.bias", name), {8});
  }
  TemporaryFolder folder("encoder");
  folder.add("config.json", bert.dump()).add("model.safetensors", writer.bytes());
  EXPECT_TRUE(Encoder::load(folder.path(), at::kFloat).config().pools_means);
  std::filesystem::create_directories(folder.file("1_Pooling"));
  folder.add("1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  EXPECT_FALSE(Encoder::load(folder.path(), at::kFloat).config().pools_means);
}

}  // namespace
}  // namespace foveate::models
