// Good safetensors files and folders.
#include "foveate/io/safetensors.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "tests/support/safetensors_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::SafetensorsWriter;
using test::TemporaryFile;
using test::TemporaryFolder;

template <class T>
std::string packed(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<float> floats_of(const StoredTensor& tensor) {
  std::vector<float> values(size_t(tensor.elements()));
  to_floats(tensor, values);
  return values;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Safetensors, reads_names_shapes_types_and_bytes) {
  const std::string bytes = SafetensorsWriter()
                                .tensor("b", "F32", {2, 3}, packed<float>({1, 2, 3, 4, 5, 6}))
                                .tensor("a", "I16", {2}, packed<int16_t>({-7, 8}))
                                .bytes();
  const TemporaryFile path("good.safetensors", bytes);
  const Safetensors file = Safetensors::open(path.path());
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  const StoredTensor& b = file.tensor("b");
  EXPECT_EQ(&b, &file.tensors()[1]);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.strides, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(b.type, DType::f32);
  EXPECT_EQ(b.file, path.path());
  EXPECT_EQ(b.offset, bytes.size() - 28);
  EXPECT_EQ(floats_of(b), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  std::vector<std::byte> raw(4);
  copy_elements(file.tensor("a"), raw);
  EXPECT_EQ(std::memcmp(raw.data(), "\xF9\xFF\x08\x00", 4), 0);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(Safetensors, of_no_tensors_is_good) {
  EXPECT_TRUE(Safetensors::parse(as_bytes(test::safetensors_file("{}")), "f").tensors().empty());
  EXPECT_TRUE(
      Safetensors::parse(as_bytes(test::safetensors_file(R"({"__metadata__":{"a":"b"}}   )")), "f").tensors().empty());
}

TEST(Safetensors, scalars_and_tensors_without_elements_are_read) {
  const std::string bytes = SafetensorsWriter()
                                .tensor("none", "F32", {3, 0, 4611686018427387904}, "")
                                .tensor("scalar", "F64", {}, packed<double>({0.5}))
                                .tensor("nothing", "U8", {0}, "")
                                .bytes();
  const Safetensors file = Safetensors::parse(as_bytes(bytes), "f");
  EXPECT_EQ(file.tensor("none").elements(), 0);
  EXPECT_TRUE(floats_of(file.tensor("none")).empty());
  EXPECT_EQ(file.tensor("scalar").elements(), 1);
  EXPECT_EQ(floats_of(file.tensor("scalar")), std::vector<float>{0.5f});
  copy_elements(file.tensor("nothing"), {});
}

TEST(Safetensors, unaligned_data_is_read) {
  const std::vector<double> values = {1.5, -2.25};
  for (const int shift : {1, 2, 3, 4, 5, 6, 7}) {
    const std::string bytes = SafetensorsWriter()
                                  .tensor("shift", "U8", {shift}, std::string(size_t(shift), 'x'))
                                  .tensor("w", "F64", {2}, packed(values))
                                  .tensor("v", "F32", {1}, packed<float>({3}))
                                  .bytes();
    const Safetensors file = Safetensors::parse(as_bytes(bytes), "f");
    EXPECT_EQ(floats_of(file.tensor("w")), (std::vector<float>{1.5f, -2.25f}));
    EXPECT_EQ(floats_of(file.tensor("v")), std::vector<float>{3});
  }
}

TEST(Safetensors, all_types_of_whole_bytes_have_their_size) {
  const std::vector<std::pair<std::string, size_t>> types = {
      {"BOOL", 1},        {"U8", 1},          {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"U16", 2},
      {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"I16", 2}, {"F16", 2},     {"BF16", 2},    {"U32", 4},     {"I32", 4},
      {"F32", 4},         {"C64", 8},         {"F64", 8}, {"I64", 8},     {"U64", 8},
  };
  for (const auto& [name, size] : types) {
    const std::string bytes = SafetensorsWriter().tensor("w", name, {3}, std::string(3 * size, 'x')).bytes();
    const Safetensors file = Safetensors::parse(as_bytes(bytes), "f");
    EXPECT_EQ(type_name(file.tensor("w").type), name);
  }
}

TEST(Safetensors, floats_keep_infinities_zeros_and_the_payloads_of_nans) {
  const std::string bytes = SafetensorsWriter()
                                .tensor("f32", "F32", {2}, packed<uint32_t>({0xFFC12345u, 0x80000000u}))
                                .tensor("bf16", "BF16", {2}, packed<uint16_t>({0x7FA1u, 0xFF80u}))
                                .tensor("f16", "F16", {2}, packed<uint16_t>({0x7D01u, 0xFC00u}))
                                .bytes();
  const Safetensors file = Safetensors::parse(as_bytes(bytes), "f");
  const auto bits = [&](const char* name) {
    std::vector<uint32_t> list;
    for (const float value : floats_of(file.tensor(name))) list.push_back(std::bit_cast<uint32_t>(value));
    return list;
  };
  EXPECT_EQ(bits("f32"), (std::vector<uint32_t>{0xFFC12345u, 0x80000000u}));
  EXPECT_EQ(bits("bf16"), (std::vector<uint32_t>{0x7FA10000u, 0xFF800000u}));
  EXPECT_EQ(bits("f16"), (std::vector<uint32_t>{0x7FA02000u, 0xFF800000u}));
}

TEST(Safetensors, to_floats_names_what_it_cannot_do) {
  const std::string bytes = SafetensorsWriter().tensor("w", "I32", {1}, "abcd").bytes();
  const Safetensors file = Safetensors::parse(as_bytes(bytes), "f");
  std::vector<float> one(1), two(2);
  EXPECT_EQ(error_of([&] { to_floats(file.tensor("w"), one); }),
            fmt::format("f: tensor 'w' at byte {}: type must be one of: F64 F32 F16 BF16; got I32", bytes.size() - 4));
  EXPECT_EQ(error_of([&] { to_floats(file.tensor("w"), two); }), "f: tensor 'w' has 1 elements, got room for 2");
  EXPECT_EQ(error_of([&] { copy_elements(file.tensor("w"), {}); }), "f: tensor 'w' has 4 bytes, got room for 0");
  EXPECT_EQ(error_of([&] { file.tensor("no\n"); }), R"(f: tensor 'no\n' is missing)");
}

TEST(StoredTensor, with_strides_is_gathered) {
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};
  StoredTensor tensor = {"w", {3, 2}, {1, 3}, DType::f32, std::as_bytes(std::span(values)), "f", 0};
  EXPECT_FALSE(tensor.is_contiguous());
  EXPECT_EQ(floats_of(tensor), (std::vector<float>{0, 3, 1, 4, 2, 5}));
  tensor.shape = {2, 1, 2, 2}, tensor.strides = {3, 77, 1, 0};
  EXPECT_EQ(floats_of(tensor), (std::vector<float>{0, 0, 1, 1, 3, 3, 4, 4}));
  tensor.shape = {1, 2, 3}, tensor.strides = {99, 3, 1};
  EXPECT_TRUE(tensor.is_contiguous());
}

TEST(Safetensors, a_folder_with_one_file_is_read) {
  TemporaryFolder folder("one_file");
  folder.add("model.safetensors", SafetensorsWriter().tensor("w", "U8", {1}, "x").bytes());
  EXPECT_EQ(Safetensors::open_folder(folder.path()).tensor("w").file, folder.file("model.safetensors"));
}

TEST(Safetensors, a_folder_of_shards_is_one_model) {
  TemporaryFolder folder("shards");
  folder.add("model-1.safetensors", SafetensorsWriter().tensor("a", "U8", {1}, "x").tensor("c", "U8", {1}, "z").bytes())
      .add("model-2.safetensors",
           SafetensorsWriter().tensor("b", "U8", {1}, "y").tensor("more", "U8", {1}, "m").bytes())
      .add("model.safetensors.index.json",
           R"({"metadata": {"total_size": 3},
               "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}})");
  const Safetensors files = Safetensors::open_folder(folder.path());
  EXPECT_EQ(files.path(), folder.path());
  EXPECT_EQ(files.tensors().size(), 4u);
  for (const auto& [name, value] : {std::pair("a", 'x'), {"b", 'y'}, {"c", 'z'}, {"more", 'm'}})
    EXPECT_EQ(char(files.tensor(name).bytes[0]), value);
  EXPECT_EQ(files.tensor("b").file, folder.file("model-2.safetensors"));
}

}  // namespace
}  // namespace foveate::io
