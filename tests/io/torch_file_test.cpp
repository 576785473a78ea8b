// Good files of torch.save; tests/python/test_torch_file.py reads what torch itself writes.
#include "foveate/io/torch_file.h"

#include <gtest/gtest.h>

#include "tests/support/torch_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::PickleWriter;
using test::torch_file;
using test::zip_file;

std::string packed(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

const std::vector<test::Storage> kSix = {{"0", packed({0, 1, 2, 3, 4, 5})}};

std::vector<float> floats_of(const StoredTensor& tensor) {
  std::vector<float> values(size_t(tensor.elements()));
  to_floats(tensor, values);
  return values;
}

TorchFile parse(const std::string& bytes) { return TorchFile::parse(as_bytes(bytes), "f"); }

// A dict of one tensor "w" of the storage "0" with six floats.
std::string one_tensor(int64_t offset, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  return torch_file(PickleWriter().raw("}").text("w").tensor("0", 6, offset, shape, strides).raw("s").end(), kSix);
}

TEST(TorchFile, reads_names_shapes_types_and_bytes) {
  const std::string bytes = one_tensor(1, {2, 2}, {2, 1});
  const test::TemporaryFile path("good.pt", bytes);
  const TorchFile file = TorchFile::open(path.path());
  ASSERT_EQ(file.tensors().size(), 1u);
  const StoredTensor& w = file.tensor("w");
  EXPECT_EQ(w.type, DType::f32);
  EXPECT_EQ(w.file, path.path());
  EXPECT_EQ(bytes.substr(w.offset, 16), packed({1, 2, 3, 4}));
  EXPECT_EQ(floats_of(w), (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(w.bytes.size(), 16u);
  EXPECT_EQ(file.find("v"), nullptr);
}

TEST(TorchFile, views_are_gathered) {
  const auto read = [](int64_t offset, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    const std::string bytes = one_tensor(offset, shape, strides);
    return floats_of(parse(bytes).tensor("w"));
  };
  EXPECT_EQ(read(0, {3, 2}, {1, 3}), (std::vector<float>{0, 3, 1, 4, 2, 5}));  // transposed
  EXPECT_EQ(read(5, {}, {}), std::vector<float>{5});
  EXPECT_EQ(read(1, {3}, {2}), (std::vector<float>{1, 3, 5}));
  EXPECT_EQ(read(4, {2, 3}, {1, 0}), (std::vector<float>{4, 4, 4, 5, 5, 5}));  // expanded
  EXPECT_EQ(read(0, {3, 2}, {1, 1}), (std::vector<float>{0, 1, 1, 2, 2, 3}));  // overlapping
  EXPECT_TRUE(read(17, {0, 4611686018427387904}, {1, 1}).empty());             // an offset behind the end harms nobody
}

TEST(TorchFile, names_are_paths_through_dicts_and_lists) {
  PickleWriter pickle;
  pickle.raw("}(").text("model").raw("}").text("fc.weight").tensor("0", 6, 0, {6}, {1}).raw("s");
  pickle.text("epoch").raw("K\3").text("list").raw("](N").tensor("0", 6, 1, {}, {}).raw("e");
  pickle.raw("K\7").raw(")").text("pair").raw("\x88\x89\x86").text("seed").raw("\x8a\x09........\x01").raw("u");
  const std::string bytes = torch_file(pickle.end(), kSix);
  const TorchFile file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "model.fc.weight");
  EXPECT_EQ(floats_of(file.tensor("list.1")), std::vector<float>{1});
  EXPECT_EQ(file.others(), (std::vector<std::string>{"epoch", "list.0", "pair.0", "pair.1", "seed"}));
}

TEST(TorchFile, a_bare_tensor_has_an_empty_name) {
  const std::string bytes = torch_file(PickleWriter().tensor("0", 6, 0, {2, 3}, {3, 1}).end(), kSix);
  EXPECT_EQ(parse(bytes).tensor("").shape, (std::vector<int64_t>{2, 3}));
}

TEST(TorchFile, parameters_are_tensors) {
  PickleWriter pickle;
  pickle.raw("}").text("p").global("torch._utils", "_rebuild_parameter").tensor("0", 6, 0, {6}, {1});
  pickle.raw("\x88").global("collections", "OrderedDict").raw(")R\x87Rs");
  pickle.text("q").global("torch._tensor", "_rebuild_from_type_v2").raw("(");
  pickle.global("torch._utils", "_rebuild_tensor_v2").global("torch.nn.parameter", "Parameter");
  pickle.raw("(").storage("FloatStorage", "0", 6).view(2, {}, {}).raw("t").raw("}tRs");
  const std::string bytes = torch_file(pickle.end(), kSix);
  EXPECT_EQ(floats_of(parse(bytes).tensor("p")), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(floats_of(parse(bytes).tensor("q")), std::vector<float>{2});
}

TEST(TorchFile, zip_archives_with_and_without_zip64_records_are_read) {
  const auto items = test::torch_items(PickleWriter().tensor("0", 6, 0, {6}, {1}).end(), kSix);
  for (const bool with_zip64 : {true, false})
    EXPECT_EQ(floats_of(parse(zip_file(items, with_zip64)).tensor("")).size(), 6u);
}

TEST(TorchFile, zip64_sizes_in_the_extra_field_are_read) {
  auto items = test::torch_items(PickleWriter().tensor("0", 6, 0, {6}, {1}).end(), kSix);
  items[3].size = 0xFFFFFFFF;
  items[3].extra = test::ByteWriter()
                       .put(uint16_t(7))
                       .put(uint16_t(2))
                       .raw("xx")
                       .put(uint16_t(1))
                       .put(uint16_t(16))
                       .put(uint64_t(24))
                       .put(uint64_t(24))
                       .data();
  EXPECT_EQ(floats_of(parse(zip_file(items)).tensor("")).size(), 6u);
}

TEST(TorchFile, containers_may_stand_in_two_places) {
  PickleWriter pickle;
  pickle.raw("}").text("a").raw("}q\1").text("w").tensor("0", 6, 0, {6}, {1}).raw("ss").text("b").raw("h\1s");
  const std::string bytes = torch_file(pickle.end(), kSix);
  EXPECT_EQ(parse(bytes).tensor("b.w").bytes.data(), parse(bytes).tensor("a.w").bytes.data());
}

}  // namespace
}  // namespace foveate::io
