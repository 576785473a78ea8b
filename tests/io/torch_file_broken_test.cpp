// Broken and hostile files of torch.save, each named after its defect: every one gives one line that says where and
// what.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/io/torch_defects.h"
#include "tests/support/damage.h"

namespace foveate::io {
namespace {

using namespace test;

TEST(BrokenTorchFile, the_helpers_make_good_files) {
  EXPECT_EQ(pickle_error(kGoodPickle), "no error");
  EXPECT_EQ(items_error([](auto&) {}), "no error");
  EXPECT_EQ(tensor_error(1, {5}, {1}), "no error");
}

// Other formats

TEST(BrokenTorchFile, empty_file) {
  EXPECT_EQ(file_error(""), "f: must be a zip file of torch.save: bytes 0 .. 3 must be 'PK\\x03\\x04'");
}

TEST(BrokenTorchFile, legacy_format) {
  EXPECT_EQ(file_error("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."),
            "f: must be a zip file, is in the format of torch < 1.6: load it in torch and torch.save it again");
}

TEST(BrokenTorchFile, plain_pickle) {
  EXPECT_EQ(file_error("\x80\x04N."), "f: must be a zip file, is a plain pickle: pickles are never executed");
}

TEST(BrokenTorchFile, torchscript) {
  EXPECT_EQ(items_error([](auto& items) {
              items.push_back({"m/constants.pkl", "\x80\2)."});
            }),
            "f: must be a file of torch.save, is TorchScript, a program");
}

// The archive

TEST(BrokenTorchFile, archive_cut_off) {
  const std::string bytes = torch_file(kGoodPickle, kSix);
  EXPECT_EQ(file_error(bytes.substr(0, bytes.size() - 30)),
            "f: must be a zip archive, its end record is missing: is the file cut off?");
}

TEST(BrokenTorchFile, bytes_behind_the_archive) {
  EXPECT_EQ(file_error(torch_file(kGoodPickle, kSix) + "more"),
            "f: must be a zip archive, its end record is missing: is the file cut off?");
}

TEST(BrokenTorchFile, archive_without_entries) {
  const std::string empty = zip_file({}, false);
  EXPECT_EQ(file_error("PK\3\4" + empty),
            "f: the directory at byte 0 must end where its end record starts, at byte 4, got 0 bytes");
}

TEST(BrokenTorchFile, absurd_number_of_entries) {
  std::string bytes = torch_file(kGoodPickle, kSix);
  const uint64_t many = uint64_t(1) << 60;
  std::memcpy(bytes.data() + bytes.size() - 22 - 20 - 56 + 32, &many, 8);
  EXPECT_TRUE(file_error(bytes).ends_with("entries must fit its 222 bytes, got 1152921504606846976"))
      << file_error(bytes);
}

TEST(BrokenTorchFile, directory_past_the_end) {
  std::string bytes = torch_file(kGoodPickle, kSix);
  const uint64_t far = ~uint64_t{0} - 5;
  std::memcpy(bytes.data() + bytes.size() - 22 - 20 - 56 + 48, &far, 8);
  EXPECT_TRUE(file_error(bytes).starts_with("f: the directory at byte 18446744073709551610 must end where its "));
}

TEST(BrokenTorchFile, zip64_record_past_the_end) {
  std::string bytes = torch_file(kGoodPickle, kSix);
  const uint64_t far = ~uint64_t{0} - 5;
  std::memcpy(bytes.data() + bytes.size() - 22 - 20 + 8, &far, 8);
  EXPECT_TRUE(file_error(bytes).starts_with("f: the zip64 end record at byte 18446744073709551610 must stand before"));
}

TEST(BrokenTorchFile, compressed_pickle) {
  EXPECT_EQ(items_error([](auto& items) { items[0].method = 8; }),
            "f: entry 'm/data.pkl' must be stored, got compression method 8");
}

TEST(BrokenTorchFile, compressed_bomb_as_a_storage) {
  // 24 bytes that claim to be a gigabyte: nothing is ever decompressed
  EXPECT_EQ(items_error([](auto& items) { items[3].method = 8, items[3].packed = 24, items[3].size = 1 << 30; }),
            "f: entry 'm/data/0' must be stored, got compression method 8");
}

TEST(BrokenTorchFile, encrypted_entry) {
  EXPECT_TRUE(items_error([](auto& items) { items[3].flags |= 1; }).ends_with(" must not be encrypted"));
}

TEST(BrokenTorchFile, stored_entry_of_two_sizes) {
  EXPECT_TRUE(items_error([](auto& items) {
                items[3].packed = 12;
              }).ends_with("must be as long as its data, got 12 bytes of 24"));
}

TEST(BrokenTorchFile, entry_that_is_longer_than_the_file) {
  const std::string message = items_error([](auto& items) { items[3].size = 1 << 30; });
  EXPECT_TRUE(message.starts_with("f: entry 'm/data/0' at byte ")) << message;
  EXPECT_TRUE(message.ends_with(", got 1073741824 bytes")) << message;
}

TEST(BrokenTorchFile, header_of_an_entry_past_the_end) {
  EXPECT_TRUE(items_error([](auto& items) {
                items[3].header = 1 << 30;
              }).starts_with("f: the header of entry 'm/data/0' at byte 1073741824 must stand before the directory"));
}

TEST(BrokenTorchFile, header_that_is_no_header) {
  EXPECT_EQ(items_error([](auto& items) { items[3].header = 1; }),
            "f: a local header must stand at byte 1, got 0x0004034b");
}

TEST(BrokenTorchFile, header_of_another_entry) {
  EXPECT_EQ(items_error([](auto& items) { items[3].header = 0; }),
            "f: the header at byte 0 must be of entry 'm/data/0', got 'm/data.pkl', compression 0");
}

TEST(BrokenTorchFile, overlapping_entries) {
  const std::string message = items_error([](auto& items) { items[0].size = uint32_t(items[0].bytes.size() + 1); });
  EXPECT_TRUE(message.starts_with("f: entries 'm/data.pkl' and 'm/byteorder' must not overlap, got an end at byte "))
      << message;
}

TEST(BrokenTorchFile, entry_inside_another) {
  // quoted overlap, as zip bombs have: the storage's bytes hold a whole entry of their own
  const std::string inner = zip_file({{"m/data/1", std::string(8, 'x')}}, false);
  std::vector<ZipItem> items = torch_items(kGoodPickle, {{"0", inner.substr(0, 24)}});
  items[3].bytes = inner;
  const uint32_t start = uint32_t(zip_file(items).find(inner));
  items.push_back({.name = "m/data/1", .bytes = std::string(8, 'x'), .header = start});
  EXPECT_TRUE(file_error(zip_file(items)).starts_with("f: entries 'm/data/0' and 'm/data/1' must not overlap"));
}

TEST(BrokenTorchFile, duplicate_entry) {
  EXPECT_EQ(items_error([](auto& items) { items.push_back(items[3]); }), "f: entry 'm/data/0' must stand once");
}

TEST(BrokenTorchFile, missing_pickle) {
  EXPECT_EQ(items_error([](auto& items) { items.erase(items.begin()); }), "f: must have an entry 'm/data.pkl'");
}

TEST(BrokenTorchFile, missing_version) {
  EXPECT_EQ(items_error([](auto& items) { items.erase(items.begin() + 2); }), "f: must have an entry 'm/version'");
}

TEST(BrokenTorchFile, version_11) {
  EXPECT_TRUE(items_error([](auto& items) { items[2].bytes = "11\n"; }).ends_with(R"( must be 1 .. 10, got '11\n')"));
}

TEST(BrokenTorchFile, version_that_is_no_number) {
  for (const char* text : {"", "\n", "x", "3x", "-3", " 3", "99999999999999999999"})
    EXPECT_NE(items_error([&](auto& items) { items[2].bytes = text; }).find(" must be 1 .. 10, got "),
              std::string::npos)
        << text;
}

TEST(BrokenTorchFile, format_version_2) {
  EXPECT_TRUE(items_error([](auto& items) {
                items.push_back({"m/.format_version", "2"});
              }).ends_with(" must be 1 .. 1, got '2'"));
}

TEST(BrokenTorchFile, big_endian) {
  EXPECT_TRUE(items_error([](auto& items) { items[1].bytes = "big"; }).ends_with(" must be 'little', got 'big'"));
}

// Tensors

TEST(BrokenTorchFile, missing_storage) {
  EXPECT_TRUE(storage_error("9", 6).ends_with("entry 'data/9' of its bytes is missing"));
}

TEST(BrokenTorchFile, storage_that_leaves_its_folder) {
  EXPECT_TRUE(storage_error("../data.pkl", 6).ends_with("entry 'data/../data.pkl' of its bytes is missing"));
}

TEST(BrokenTorchFile, storage_that_is_too_small) {
  EXPECT_TRUE(storage_error("0", 7).ends_with(
      "its storage of 7 elements of 4 bytes must be all of entry 'm/data/0', got 24 bytes"));
}

TEST(BrokenTorchFile, storage_whose_bytes_overflow) {
  EXPECT_TRUE(storage_error("0", (int64_t(1) << 62) + 6)
                  .ends_with("its storage of 4611686018427387910 elements of 4 bytes must be all of entry 'm/data/0', "
                             "got 24 bytes"));
}

TEST(BrokenTorchFile, storage_of_negative_size) {
  EXPECT_TRUE(storage_error("0", -6).ends_with("must be all of entry 'm/data/0', got 24 bytes"));
}

TEST(BrokenTorchFile, storage_of_half_an_element) {
  EXPECT_TRUE(storage_error("0", 1, "ComplexDoubleStorage").ends_with("must be all of entry 'm/data/0', got 24 bytes"));
}

TEST(BrokenTorchFile, storage_type_that_is_no_storage) {
  EXPECT_TRUE(storage_error("0", 6, "float32").ends_with("the storage's type must be a storage, got torch.float32"));
}

TEST(BrokenTorchFile, untyped_storage_of_a_tensor_without_type) {
  PickleWriter pickle;
  pickle.global("torch._utils", "_rebuild_tensor_v2").raw("(").storage("UntypedStorage", "0", 24, "torch.storage");
  EXPECT_TRUE(pickle_error(pickle.view(0, {6}, {1}).raw("tR").end()).ends_with("must have one type"));
}

TEST(BrokenTorchFile, quantized_storage) {
  EXPECT_TRUE(storage_error("0", 24, "QUInt8Storage").starts_with("f: pickle names 'torch.QUInt8Storage' at byte "));
}

TEST(BrokenTorchFile, negative_offset) {
  EXPECT_TRUE(tensor_error(-1, {1}, {1}).ends_with(": the offset must be >= 0, got -1"));
}

TEST(BrokenTorchFile, negative_size) {
  EXPECT_TRUE(tensor_error(0, {-1}, {1}).ends_with(": shape must be >= 0, got -1"));
}

TEST(BrokenTorchFile, negative_stride) {
  EXPECT_TRUE(tensor_error(5, {6}, {-1}).ends_with(": strides must be >= 0, got -1"));
}

TEST(BrokenTorchFile, strides_of_other_length_than_the_shape) {
  EXPECT_TRUE(tensor_error(0, {6}, {1, 1}).ends_with(": shape [6] and strides [1, 1] must be as long"));
}

TEST(BrokenTorchFile, sixty_five_dimensions) {
  EXPECT_TRUE(tensor_error(0, std::vector<int64_t>(65, 1), std::vector<int64_t>(65, 1))
                  .ends_with(": shape must have <= 64 sizes, got 65"));
}

TEST(BrokenTorchFile, offset_past_the_end) {
  EXPECT_TRUE(tensor_error(6, {}, {}).ends_with(": offset 6 must be in the 6 elements of its storage"));
}

TEST(BrokenTorchFile, view_past_the_end) {
  EXPECT_TRUE(tensor_error(1, {2, 3}, {3, 1})
                  .ends_with(": shape [2, 3], strides [3, 1] and offset 1 must stay in the 6 elements of its storage"));
}

TEST(BrokenTorchFile, view_whose_end_overflows) {
  const int64_t half = int64_t(1) << 62;
  for (const auto& strides : {std::vector<int64_t>{half, half}, {half, 1}, {1, half + (half - 1)}})
    EXPECT_TRUE(tensor_error(0, {3, 3}, strides).ends_with("must stay in the 6 elements of its storage"));
}

TEST(BrokenTorchFile, sizes_whose_product_overflows) {
  const int64_t size = int64_t(1) << 32;
  EXPECT_NE(tensor_error(0, {size, size, size}, {0, 0, 0}).find("must have <= "), std::string::npos);
}

TEST(BrokenTorchFile, one_element_expanded_to_a_terabyte) {
  EXPECT_NE(tensor_error(0, {int64_t(1) << 38}, {0}).find(": shape [274877906944] must have <= "), std::string::npos);
}

TEST(BrokenTorchFile, offset_that_is_text) {
  PickleWriter pickle;
  pickle.global("torch._utils", "_rebuild_tensor_v2").raw("(").storage("FloatStorage", "0", 6).text("0");
  EXPECT_TRUE(pickle_error(pickle.integers({6}).integers({1}).raw("\x89}tR").end())
                  .ends_with(": the offset must be of the kind that torch writes"));
}

TEST(BrokenTorchFile, tensor_without_arguments) {
  EXPECT_TRUE(pickle_error(PickleWriter().global("torch._utils", "_rebuild_tensor_v2").raw(")R").end())
                  .ends_with(": must have 6 or 7 arguments, got 0"));
}

TEST(BrokenTorchFile, parameter_without_arguments) {
  EXPECT_TRUE(pickle_error(PickleWriter().global("torch._utils", "_rebuild_parameter").raw(")R").end())
                  .ends_with(": torch._utils._rebuild_parameter must have more arguments, got 0"));
}

TEST(BrokenTorchFile, parameter_of_a_number) {
  EXPECT_TRUE(pickle_error(PickleWriter().global("torch._utils", "_rebuild_parameter").raw("K\1\x85R").end())
                  .ends_with(": torch._utils._rebuild_parameter must be of a tensor"));
}

TEST(BrokenTorchFile, parameters_of_parameters_without_end) {
  PickleWriter pickle;
  for (int i = 0; i < 100'000; ++i) pickle.global("torch._utils", "_rebuild_parameter");
  pickle.tensor("0", 6, 0, {6}, {1});
  for (int i = 0; i < 100'000; ++i) pickle.raw("\x85R");
  EXPECT_TRUE(pickle_error(pickle.end()).ends_with(": must stand in <= 8 wrappings"));
}

TEST(BrokenTorchFile, parameters_of_parameters_in_many_places) {  // each place would cost the whole chain
  PickleWriter pickle;
  for (int i = 0; i < 50'000; ++i) pickle.global("torch._utils", "_rebuild_parameter");
  pickle.tensor("0", 6, 0, {6}, {1});
  for (int i = 0; i < 50'000; ++i) pickle.raw("\x85R");
  pickle.raw("q\1\x30](");
  for (int i = 0; i < 250'000; ++i) pickle.raw("h\1");
  EXPECT_TRUE(pickle_error(pickle.raw("e").end()).ends_with(": must stand in <= 8 wrappings"));
}

TEST(BrokenTorchFile, tensor_of_a_foreign_class) {
  PickleWriter pickle;
  pickle.global("torch._tensor", "_rebuild_from_type_v2").raw("(").global("torch._utils", "_rebuild_tensor_v2");
  EXPECT_TRUE(pickle_error(pickle.global("torch", "Size").raw(")}tR").end())
                  .ends_with(": must be a plain tensor, got 'torch.Size'"));
}

TEST(BrokenTorchFile, storage_that_is_no_reference) {
  PickleWriter pickle;
  pickle.global("torch._utils", "_rebuild_tensor_v2").raw("(N").view(0, {6}, {1});
  EXPECT_TRUE(pickle_error(pickle.raw("tR").end()).ends_with(": the storage must be of the kind that torch writes"));
}

TEST(BrokenTorchFile, reference_that_is_no_storage) {
  PickleWriter pickle;
  pickle.global("torch._utils", "_rebuild_tensor_v2").raw("((").text("module").raw("NNNNtQ").view(0, {6}, {1});
  EXPECT_TRUE(
      pickle_error(pickle.raw("tR").end()).ends_with(": the storage's id must be ('storage', type, key, place, size)"));
}

std::string good_file() {
  PickleWriter pickle;
  pickle.raw("}q\1(").text("a").tensor("0", 6, 0, {2, 3}, {3, 1}).text("b").raw("](").tensor("0", 6, 1, {}, {});
  pickle.tensor("1", 2, 0, {2}, {1}, "HalfStorage").raw("e").text("epoch").raw("K\3").text("s").raw("h\1\x85u0h\1");
  pickle.raw("\x30}").text("x").tensor("0", 6, 0, {6}, {1}).raw("s");
  return torch_file(pickle.end(), {{"0", std::string(24, '\1')}, {"1", "half"}});
}

TEST(BrokenTorchFile, every_truncation_of_a_good_file) {
  test::expect_truncations_are_refused(good_file(), "f: ", file_error);
}

TEST(BrokenTorchFile, random_damage_gives_a_file_or_one_line) {
  test::expect_damage_gives_a_file_or_one_line(good_file(), file_error);
}

}  // namespace
}  // namespace foveate::io
