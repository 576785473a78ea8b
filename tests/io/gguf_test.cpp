#include "foveate/io/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "foveate/base/timer.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/real_model.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::GgufWriter;
using test::TemporaryFile;

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Two tensors, some metadata.
GgufWriter small_file() {
  GgufWriter file;
  file.set("general.architecture", "llama").set("llama.block_count", uint32_t(2));
  file.set("tokens", std::vector<std::string>{"a", "", "\xE2\x96\x81the"});
  file.tensor("norm", {3}, GgmlType::f32, floats({1, 2, 3}));
  file.tensor("weight", {2, 2}, GgmlType::f32, floats({4, 5, 6, 7}));
  return file;
}

TEST(Gguf, reads_tensors_with_shapes_in_torch_order) {
  GgufWriter writer = small_file();
  writer.tensor("cube", {4, 3, 2, 32}, GgmlType::q8_0, std::string(4 * 3 * 2 * 34, 'x'));
  const std::string bytes = writer.bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "small");
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.tensors()[0].name, "norm");
  const GgufTensor& cube = file.tensor("cube");
  EXPECT_EQ(cube.shape, (std::vector<int64_t>{4, 3, 2, 32}));
  EXPECT_EQ(cube.elements(), 4 * 3 * 2 * 32);
  EXPECT_EQ(cube.type, GgmlType::q8_0);
  EXPECT_EQ(cube.bytes.size(), size_t(4 * 3 * 2 * 34));
  EXPECT_EQ(cube.bytes.data(), as_bytes(bytes).data() + cube.offset);
  const GgufTensor* weight = file.find("weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(std::memcmp(weight->bytes.data(), floats({4, 5, 6, 7}).data(), 16), 0);
  EXPECT_EQ(weight->offset % 32, 0U);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_EQ(message_of([&] { file.tensor("absent"); }), "small: tensor 'absent' is missing");
}

TEST(Gguf, opens_the_same_from_a_mapped_file_and_keeps_it_mapped_in_copies) {
  const TemporaryFile stored("good.gguf", small_file().bytes());
  const Gguf copy = [&] { return Gguf(Gguf::open(stored.path())); }();
  EXPECT_EQ(copy.path(), stored.path());
  EXPECT_EQ(std::memcmp(copy.tensor("norm").bytes.data(), floats({1, 2, 3}).data(), 12), 0);
}

TEST(Gguf, reads_version_2_and_other_alignments) {
  for (const uint64_t alignment : {1, 8, 64, 4096}) {
    GgufWriter writer;
    writer.version = 2;
    writer.alignment = alignment;
    writer.tensor("a", {1}, GgmlType::f32, floats({1})).tensor("b", {1}, GgmlType::f32, floats({2}));
    const std::string bytes = writer.bytes();
    const Gguf file = Gguf::parse(as_bytes(bytes), "aligned");
    EXPECT_EQ(std::memcmp(file.tensor("b").bytes.data(), floats({2}).data(), 4), 0) << alignment;
    EXPECT_EQ(file.tensor("b").offset % alignment, 0U);
  }
}

TEST(Gguf, reads_a_file_of_metadata_alone) {
  const std::string padded = GgufWriter().set("a", uint32_t(1)).bytes();
  const std::string bytes = padded.substr(0, 24 + 8 + 1 + 4 + 4);
  EXPECT_EQ(Gguf::parse(as_bytes(bytes), "x").integer("a"), 1);
  EXPECT_TRUE(Gguf::parse(as_bytes(bytes), "x").tensors().empty());
}

TEST(Gguf, reads_every_scalar_type) {
  GgufWriter writer;
  writer.set("u8", uint8_t(200)).set("i8", int8_t(-100)).set("u16", uint16_t(60000)).set("i16", int16_t(-30000));
  writer.set("u32", uint32_t(4000000000)).set("i32", int32_t(-2000000000)).set("u64", uint64_t(1) << 62);
  writer.set("i64", int64_t(-1) << 62).set("f32", 0.5f).set("f64", -0.1).set("yes", true).set("no", false);
  writer.set("text", "two\nlines").set("huge", ~uint64_t{0});
  const std::string bytes = writer.bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "x");
  EXPECT_EQ(file.integer("u8"), 200);
  EXPECT_EQ(file.integer("i8"), -100);
  EXPECT_EQ(file.integer("u16"), 60000);
  EXPECT_EQ(file.integer("i16"), -30000);
  EXPECT_EQ(file.integer("u32"), 4000000000);
  EXPECT_EQ(file.integer("i32"), -2000000000);
  EXPECT_EQ(file.integer("u64"), int64_t(1) << 62);
  EXPECT_EQ(file.integer("i64"), -(int64_t(1) << 62));
  EXPECT_EQ(file.number("f32"), 0.5);
  EXPECT_EQ(file.number("f64"), -0.1);
  EXPECT_EQ(file.number("i8"), -100.0);
  EXPECT_EQ(file.number("huge"), 0x1p64);
  EXPECT_EQ(file.boolean("yes"), true);
  EXPECT_EQ(file.boolean("no"), false);
  EXPECT_EQ(file.string("text"), "two\nlines");
  EXPECT_EQ(message_of([&] { file.integer("huge"); }), "x: key 'huge' must be < 2^63, got 18446744073709551615");
}

TEST(Gguf, reads_arrays_of_every_type) {
  GgufWriter writer;
  writer.set("u8", std::vector<uint8_t>{0, 255}).set("i8", std::vector<int8_t>{-128, 127});
  writer.set("u16", std::vector<uint16_t>{65535}).set("i16", std::vector<int16_t>{-32768});
  writer.set("u32", std::vector<uint32_t>{4294967295}).set("i32", std::vector<int32_t>{-5, 6});
  writer.set("u64", std::vector<uint64_t>{uint64_t(1) << 63}).set("i64", std::vector<int64_t>{-7});
  writer.set("f32", std::vector<float>{0.25f, -INFINITY}).set("f64", std::vector<double>{0.1});
  writer.set("bool", std::vector<bool>{true, false, true}).set("none", std::vector<float>{});
  writer.set("text", std::vector<std::string>{"", "b"}).set("no text", std::vector<std::string>{});
  const std::string bytes = writer.bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "x");
  using List = std::vector<double>;
  EXPECT_EQ(file.numbers("u8"), (List{0, 255}));
  EXPECT_EQ(file.numbers("i8"), (List{-128, 127}));
  EXPECT_EQ(file.numbers("u16"), (List{65535}));
  EXPECT_EQ(file.numbers("i16"), (List{-32768}));
  EXPECT_EQ(file.numbers("u32"), (List{4294967295}));
  EXPECT_EQ(file.numbers("i32"), (List{-5, 6}));
  EXPECT_EQ(file.numbers("u64"), (List{0x1p63}));
  EXPECT_EQ(file.numbers("i64"), (List{-7}));
  EXPECT_EQ(file.numbers("f32"), (List{0.25, -INFINITY}));
  EXPECT_EQ(file.numbers("f64"), (List{0.1}));
  EXPECT_EQ(file.numbers("bool"), (List{1, 0, 1}));
  EXPECT_EQ(file.numbers("none"), List{});
  EXPECT_EQ(*file.strings("text"), (std::vector<std::string>{"", "b"}));
  EXPECT_TRUE(file.strings("no text")->empty());
}

TEST(Gguf, gives_nothing_for_an_absent_key) {
  const std::string bytes = small_file().bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "x");
  EXPECT_FALSE(file.has("absent"));
  EXPECT_TRUE(file.has("tokens"));
  EXPECT_EQ(file.string("absent"), std::nullopt);
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  EXPECT_EQ(file.number("absent"), std::nullopt);
  EXPECT_EQ(file.boolean("absent"), std::nullopt);
  EXPECT_EQ(file.numbers("absent"), std::nullopt);
  EXPECT_EQ(file.strings("absent"), nullptr);
}

TEST(Gguf, names_key_wanted_and_found_type) {
  GgufWriter writer;
  writer.set("t", "x").set("i", 1).set("f", 1.0).set("b", true).set("u", uint64_t(1));
  writer.set("n", std::vector<int>{1}).set("o", std::vector<bool>{true}).set("s", std::vector<std::string>{"x"});
  const std::string bytes = writer.bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "m.gguf");
  EXPECT_EQ(message_of([&] { file.string("i"); }), "m.gguf: key 'i' must be text, got an integer");
  EXPECT_EQ(message_of([&] { file.string("u"); }), "m.gguf: key 'u' must be text, got an integer");
  EXPECT_EQ(message_of([&] { file.integer("f"); }), "m.gguf: key 'f' must be an integer, got a number");
  EXPECT_EQ(message_of([&] { file.integer("b"); }), "m.gguf: key 'b' must be an integer, got a boolean");
  EXPECT_EQ(message_of([&] { file.number("t"); }), "m.gguf: key 't' must be a number, got text");
  EXPECT_EQ(message_of([&] { file.boolean("n"); }), "m.gguf: key 'n' must be a boolean, got an array of numbers");
  EXPECT_EQ(message_of([&] { file.strings("o"); }),
            "m.gguf: key 'o' must be an array of texts, got an array of booleans");
  EXPECT_EQ(message_of([&] { file.numbers("s"); }),
            "m.gguf: key 's' must be an array of numbers, got an array of texts");
}

TEST(Gguf, names_types_that_it_cannot_read) {
  EXPECT_EQ(type_name(16), "IQ2_XXS");
  EXPECT_EQ(type_name(uint32_t(GgmlType::q6_k)), "Q6_K");
  EXPECT_EQ(type_name(uint32_t(GgmlType::bf16)), "BF16");
  EXPECT_EQ(type_name(39), "MXFP4");
  EXPECT_EQ(type_name(99), "type 99");
}

TEST(Gguf, loads_a_vocabulary_of_262144_tokens_fast) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 262144; ++i) tokens.push_back("token" + std::to_string(i));
  const std::string bytes = GgufWriter().set("tokens", tokens).set("scores", std::vector<float>(262144)).bytes();
  const Timer timer;
  const Gguf file = Gguf::parse(as_bytes(bytes), "x");
  EXPECT_LT(timer.seconds(), 0.3);
  EXPECT_EQ(*file.strings("tokens"), tokens);
}

std::map<std::string, int> tensors_by_type(const Gguf& file) {
  std::map<std::string, int> counts;
  for (const GgufTensor& tensor : file.tensors()) ++counts[type_name(uint32_t(tensor.type))];
  return counts;
}

TEST(Gguf, reads_the_smollm2_file) {
  const auto path = test::real_model("smollm2");
  if (!path) GTEST_SKIP() << test::no_model("smollm2");
  const Gguf file = Gguf::open(*path);
  EXPECT_EQ(tensors_by_type(file), (std::map<std::string, int>{{"F32", 61}, {"Q4_1", 210}, {"Q8_0", 1}}));
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.integer("llama.block_count"), 30);
  EXPECT_EQ(file.number("llama.rope.freq_base"), 100000);
  EXPECT_EQ(file.strings("tokenizer.ggml.tokens")->size(), 49152U);
  EXPECT_EQ(file.tensor("blk.0.attn_k.weight").shape, (std::vector<int64_t>{192, 576}));
}

TEST(Gguf, reads_the_gemma3_file) {
  const auto path = test::real_model("gemma3");
  if (!path) GTEST_SKIP() << test::no_model("gemma3");
  const Gguf file = Gguf::open(*path);
  EXPECT_EQ(tensors_by_type(file),
            (std::map<std::string, int>{{"F32", 109}, {"Q4_K", 27}, {"Q5_0", 81}, {"Q6_K", 9}, {"Q8_0", 10}}));
  EXPECT_EQ(file.string("general.architecture"), "gemma3");
  EXPECT_EQ(file.strings("tokenizer.ggml.tokens")->size(), 262144U);
  EXPECT_EQ(file.numbers("tokenizer.ggml.scores")->size(), 262144U);
  EXPECT_EQ(file.tensor("token_embd.weight").shape, (std::vector<int64_t>{262144, 640}));
}

TEST(Printable, keeps_a_message_on_one_short_line) {
  EXPECT_EQ(printable("blk.0"), "'blk.0'");
  EXPECT_EQ(printable("a\nb\x1B\xFF"), R"('a\nb\x1b\xff')");
  EXPECT_EQ(printable(std::string(1000, 'x')), "'" + std::string(80, 'x') + "'...");
}

TEST(MappedFile, moves_its_mapping) {
  const TemporaryFile stored("mapped", "abc");
  MappedFile first(stored.path());
  const MappedFile second(std::move(first));
  EXPECT_EQ(std::memcmp(second.bytes().data(), "abc", 3), 0);
  EXPECT_EQ(second.bytes().size(), 3U);
  EXPECT_TRUE(MappedFile(TemporaryFile("nothing", "").path()).bytes().empty());
}

}  // namespace
}  // namespace foveate::io
