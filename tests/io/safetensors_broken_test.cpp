// Broken safetensors files, folders and JSON, each named after its defect: every one gives one line that says where and
// what.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "foveate/io/json.h"
#include "foveate/io/safetensors.h"
#include "tests/support/damage.h"
#include "tests/support/safetensors_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::ByteWriter;
using test::safetensors_file;
using test::SafetensorsWriter;
using test::TemporaryFile;
using test::TemporaryFolder;

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string file_error(const std::string& bytes) {
  return error_of([&] { Safetensors::parse(as_bytes(bytes), "f"); });
}

std::string header_error(std::string_view header, std::string_view data = "") {
  return file_error(safetensors_file(header, data));
}

// The error of a file whose only entry "w" is this JSON, with 8 bytes of data.
std::string entry_error(std::string_view entry) {
  return header_error(fmt::format(R"({{"w":{}}})", entry), "8 bytes!");
}

std::string shape_error(std::string_view shape, std::string_view offsets = "[0,8]") {
  return entry_error(fmt::format(R"({{"dtype":"F32","shape":{},"data_offsets":{}}})", shape, offsets));
}

TEST(BrokenSafetensors, the_helpers_make_good_files) { EXPECT_EQ(shape_error("[2]"), "no error"); }

TEST(BrokenSafetensors, empty_file) {
  const TemporaryFile file("empty.safetensors", "");
  EXPECT_EQ(error_of([&] { Safetensors::open(file.path()); }),
            file.path() + ": file ends inside the header's length at byte 0: 8 bytes needed, 0 left");
}

TEST(BrokenSafetensors, truncated_header) {
  EXPECT_EQ(file_error(ByteWriter().put(uint64_t(9)).raw("{}").data()),
            "f: the header's length at byte 0 must be <= 100000000 and fit the 2 bytes left, got 9");
}

TEST(BrokenSafetensors, absurd_header_length) {
  EXPECT_EQ(file_error(ByteWriter().put(~uint64_t{0}).raw("{}").data()),
            "f: the header's length at byte 0 must be <= 100000000 and fit the 2 bytes left, got 18446744073709551615");
}

TEST(BrokenSafetensors, header_above_the_formats_limit) {
  const std::string bytes = ByteWriter().put(uint64_t(100'000'001)).raw("{" + std::string(100'000'000, ' ')).data();
  EXPECT_EQ(file_error(bytes),
            "f: the header's length at byte 0 must be <= 100000000 and fit the 100000001 bytes left, got 100000001");
}

TEST(BrokenSafetensors, big_endian_header_length) {
  EXPECT_EQ(file_error(std::string("\0\0\0\0\0\0\0\2{}", 10)),
            "f: the header's length at byte 0 must be <= 100000000 and fit the 2 bytes left, got 144115188075855872");
}

TEST(BrokenSafetensors, gguf_file) {
  EXPECT_TRUE(file_error("GGUF" + std::string(60, '\0')).starts_with("f: the header's length at byte 0 must be <= "));
}

TEST(BrokenSafetensors, empty_header) { EXPECT_EQ(header_error(""), "f: the header at byte 8 must start with '{'"); }

TEST(BrokenSafetensors, header_that_starts_with_a_space) {
  EXPECT_EQ(header_error(" {}"), "f: the header at byte 8 must start with '{'");
}

TEST(BrokenSafetensors, header_that_starts_with_a_byte_order_mark) {
  EXPECT_EQ(header_error("\xEF\xBB\xBF{}"), "f: the header at byte 8 must start with '{'");
}

TEST(BrokenSafetensors, header_that_is_an_array) {
  EXPECT_EQ(header_error("[1]"), "f: the header at byte 8 must start with '{'");
}

TEST(BrokenSafetensors, header_that_is_not_closed) {
  EXPECT_EQ(header_error(R"({"w":)"), "f: the header at byte 8: must be valid JSON, is not at byte 6");
}

TEST(BrokenSafetensors, header_with_text_behind_its_end) {
  EXPECT_EQ(header_error("{} {}"), "f: the header at byte 8: must be valid JSON, is not at byte 4");
}

TEST(BrokenSafetensors, header_with_zeros_behind_its_end) {
  EXPECT_EQ(header_error(std::string_view("{}\0\0", 4)),
            "f: the header at byte 8: must be valid JSON, is not at byte 3");
}

TEST(BrokenSafetensors, header_with_a_comma_too_many) {
  EXPECT_EQ(header_error("{\"__metadata__\":{},}"), "f: the header at byte 8: must be valid JSON, is not at byte 20");
}

TEST(BrokenSafetensors, header_with_a_comment) {
  EXPECT_EQ(header_error("{/**/}"), "f: the header at byte 8: must be valid JSON, is not at byte 2");
}

TEST(BrokenSafetensors, header_that_is_not_utf_8) {
  EXPECT_EQ(header_error("{\"a\xFF\":{}}"), "f: the header at byte 8: must be valid JSON, is not at byte 4");
}

TEST(BrokenSafetensors, metadata_that_is_not_utf_8) {
  EXPECT_EQ(header_error("{\"__metadata__\":{\"a\":\"\xC0\xAF\"}}"),
            "f: the header at byte 8: must be valid JSON, is not at byte 23");
}

TEST(BrokenSafetensors, half_of_a_surrogate_pair) {
  EXPECT_TRUE(header_error(R"({"\ud800":{}})").starts_with("f: the header at byte 8: must be valid JSON, is not at"));
}

TEST(BrokenSafetensors, nested_too_deep) {
  const std::string header = "{\"w\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(header_error(header), "f: the header at byte 8: JSON must have <= 64 levels");
}

TEST(BrokenSafetensors, number_that_no_double_holds) {
  EXPECT_EQ(shape_error("[1e999]"), "f: the header at byte 8: must be valid JSON, has a number that no double holds");
}

TEST(BrokenSafetensors, duplicate_tensor_name) {
  const std::string bytes = SafetensorsWriter().tensor("w", "U8", {1}, "x").tensor("w", "U8", {1}, "y").bytes();
  EXPECT_EQ(file_error(bytes), "f: the header at byte 8: key 'w' must stand once in its object");
}

TEST(BrokenSafetensors, duplicate_key_in_an_entry) {
  EXPECT_EQ(entry_error(R"({"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]})"),
            "f: the header at byte 8: key 'dtype' must stand once in its object");
}

TEST(BrokenSafetensors, metadata_that_is_not_an_object) {
  EXPECT_EQ(header_error(R"({"__metadata__":"text"})"),
            "f: the header at byte 8: __metadata__ must be an object of texts");
}

TEST(BrokenSafetensors, metadata_that_holds_numbers) {
  EXPECT_EQ(header_error(R"({"__metadata__":{"a":1}})"),
            "f: the header at byte 8: __metadata__ must be an object of texts");
}

TEST(BrokenSafetensors, entry_that_is_not_an_object) {
  EXPECT_EQ(entry_error("[]"), "f: tensor 'w' must be an object");
}

TEST(BrokenSafetensors, missing_dtype) {
  EXPECT_EQ(entry_error(R"({"shape":[2],"data_offsets":[0,8]})"), "f: tensor 'w': dtype must be text");
}

TEST(BrokenSafetensors, unknown_dtype) {
  EXPECT_EQ(entry_error(R"({"dtype":"float32","shape":[2],"data_offsets":[0,8]})"),
            "f: tensor 'w': dtype must be one of the format's of whole bytes, got 'float32'");
}

TEST(BrokenSafetensors, dtype_of_half_a_byte) {
  EXPECT_EQ(entry_error(R"({"dtype":"F4","shape":[16],"data_offsets":[0,8]})"),
            "f: tensor 'w': dtype must be one of the format's of whole bytes, got 'F4'");
}

TEST(BrokenSafetensors, dtype_that_is_a_number) {
  EXPECT_EQ(entry_error(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), "f: tensor 'w': dtype must be text");
}

TEST(BrokenSafetensors, missing_shape) {
  EXPECT_EQ(entry_error(R"({"dtype":"F32","data_offsets":[0,8]})"),
            "f: tensor 'w': shape must be an array of <= 64 integers");
}

TEST(BrokenSafetensors, shape_that_is_an_object) {
  EXPECT_EQ(shape_error(R"({"0":2})"), "f: tensor 'w': shape must be an array of <= 64 integers");
}

TEST(BrokenSafetensors, negative_size) {
  EXPECT_EQ(shape_error("[-2]"), "f: tensor 'w': shape must hold integers 0 .. 2^63 - 1");
}

TEST(BrokenSafetensors, size_that_is_not_whole) {
  EXPECT_EQ(shape_error("[2.0]"), "f: tensor 'w': shape must hold integers 0 .. 2^63 - 1");
}

TEST(BrokenSafetensors, size_of_more_than_63_bits) {
  EXPECT_EQ(shape_error("[9223372036854775808]"), "f: tensor 'w': shape must hold integers 0 .. 2^63 - 1");
}

TEST(BrokenSafetensors, size_of_more_than_64_bits) {
  EXPECT_EQ(shape_error("[18446744073709551618]"), "f: tensor 'w': shape must hold integers 0 .. 2^63 - 1");
}

TEST(BrokenSafetensors, sizes_whose_product_overflows) {
  EXPECT_EQ(shape_error("[4294967296,4294967296,4294967296,4294967296]"),
            "f: tensor 'w': shape [4294967296, 4294967296, 4294967296, 4294967296] must have < 2^63 bytes");
}

TEST(BrokenSafetensors, sizes_whose_product_overflows_to_the_right_size) {
  EXPECT_EQ(shape_error("[2,4611686018427387904,4,1]"),
            "f: tensor 'w': shape [2, 4611686018427387904, 4, 1] must have < 2^63 bytes");
}

TEST(BrokenSafetensors, sizes_that_overflow_before_a_zero) {
  EXPECT_EQ(shape_error("[4611686018427387904,4611686018427387904,0]", "[0,0]"),
            "f: tensor 'w': shape [4611686018427387904, 4611686018427387904, 0] must have < 2^63 bytes");
}

TEST(BrokenSafetensors, sixty_five_dimensions) {
  EXPECT_EQ(shape_error(fmt::format("[{}]", fmt::join(std::vector<int>(65, 1), ","))),
            "f: tensor 'w': shape must be an array of <= 64 integers");
}

TEST(BrokenSafetensors, one_offset) {
  EXPECT_EQ(shape_error("[2]", "[0]"), "f: tensor 'w': data_offsets must be a begin and an end, got [0]");
}

TEST(BrokenSafetensors, three_offsets) {
  EXPECT_EQ(shape_error("[2]", "[0,4,8]"), "f: tensor 'w': data_offsets must be an array of <= 2 integers");
}

TEST(BrokenSafetensors, offsets_in_the_wrong_order) {
  EXPECT_EQ(shape_error("[2]", "[8,0]"), "f: tensor 'w': data_offsets must be a begin and an end, got [8, 0]");
}

TEST(BrokenSafetensors, offset_past_the_end) {
  EXPECT_EQ(shape_error("[2]", "[4,12]"),
            "f: tensor 'w' at byte 63 + 4 must end in the file, got an end at 12 of 8 bytes of data");
}

TEST(BrokenSafetensors, absurd_offsets) {
  EXPECT_EQ(shape_error("[2]", "[9223372036854775799,9223372036854775807]"),
            "f: tensor 'w' at byte 98 + 9223372036854775799 must end in the file, got an end at 9223372036854775807 of "
            "8 bytes of data");
}

TEST(BrokenSafetensors, shape_that_contradicts_the_offsets) {
  EXPECT_EQ(shape_error("[3]"), "f: tensor 'w' at byte 62 + 0: F32 of shape [3] must have 12 bytes, got 8");
}

TEST(BrokenSafetensors, overlapping_tensors) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})";
  EXPECT_EQ(header_error(header, "6bytes"), "f: tensor 'b' must start at byte 117, where the one before ends, got 115");
}

TEST(BrokenSafetensors, tensors_in_the_same_place) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  EXPECT_EQ(header_error(header, "data"), "f: tensor 'b' must start at byte 117, where the one before ends, got 113");
}

TEST(BrokenSafetensors, gap_between_tensors) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})";
  EXPECT_EQ(header_error(header, "datagdata"),
            "f: tensor 'b' must start at byte 117, where the one before ends, got 118");
}

TEST(BrokenSafetensors, data_of_no_tensor_at_the_end) {
  EXPECT_EQ(file_error(SafetensorsWriter().tensor("w", "U8", {1}, "x").bytes() + "more"),
            "f: the file must end with its last tensor at byte 62, got 66 bytes");
}

TEST(BrokenSafetensors, truncated_data) {
  const std::string bytes = SafetensorsWriter().tensor("w", "U8", {4}, "data").bytes();
  EXPECT_EQ(file_error(bytes.substr(0, bytes.size() - 1)),
            "f: tensor 'w' at byte 61 + 0 must end in the file, got an end at 4 of 3 bytes of data");
}

TEST(BrokenSafetensors, name_with_control_characters) {
  EXPECT_EQ(header_error(R"({"w\n\u001b[31m":[]})"), R"(f: tensor 'w\n\x1b[31m' must be an object)");
}

TEST(BrokenSafetensors, name_of_a_megabyte) {
  const std::string message = header_error(fmt::format(R"({{"{}":[]}})", std::string(1 << 20, 'w')));
  EXPECT_EQ(message, "f: tensor '" + std::string(80, 'w') + "'... must be an object");
}

// A folder with two shards, a and b, that `change` damages.
std::string folder_error(const std::function<void(TemporaryFolder&)>& change) {
  TemporaryFolder folder("broken_folder");
  folder.add("1.safetensors", SafetensorsWriter().tensor("a", "U8", {1}, "x").bytes());
  folder.add("2.safetensors", SafetensorsWriter().tensor("b", "U8", {1}, "y").bytes());
  folder.add("model.safetensors.index.json", R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  change(folder);
  std::string message = error_of([&] { Safetensors::open_folder(folder.path()); });
  for (size_t at; (at = message.find(folder.path())) != std::string::npos;)
    message.replace(at, folder.path().size(), "FOLDER");
  return message;
}

std::string index_error(std::string_view index) {
  return folder_error([&](TemporaryFolder& folder) { folder.add("model.safetensors.index.json", index); });
}

void remove(const TemporaryFolder& folder, const char* name) { std::filesystem::remove(folder.file(name)); }

TEST(BrokenSafetensors, the_folder_is_good_before_it_is_damaged) {
  EXPECT_EQ(folder_error([](TemporaryFolder&) {}), "no error");
}

TEST(BrokenSafetensors, folder_that_is_missing) {
  EXPECT_EQ(error_of([] { Safetensors::open_folder("/no/such"); }),
            "/no/such: must be a folder with model.safetensors or model.safetensors.index.json");
}

TEST(BrokenSafetensors, folder_with_only_pickles) {
  const std::string message = folder_error([](TemporaryFolder& folder) {
    remove(folder, "model.safetensors.index.json");
    folder.add("pytorch_model-00002-of-00002.bin", "\x80\2.").add("pytorch_model-00001-of-00002.bin", "\x80\2.");
    folder.add("config.json", "{}");
  });
  EXPECT_EQ(message,
            "FOLDER: must have model.safetensors, has only 'pytorch_model-00001-of-00002.bin': pickles are never "
            "executed, convert it");
}

TEST(BrokenSafetensors, folder_with_nothing_to_read) {
  EXPECT_EQ(folder_error([](TemporaryFolder& folder) { remove(folder, "model.safetensors.index.json"); }),
            "FOLDER: must be a folder with model.safetensors or model.safetensors.index.json");
}

TEST(BrokenSafetensors, missing_shard) {
  EXPECT_EQ(folder_error([](TemporaryFolder& folder) { remove(folder, "2.safetensors"); }),
            "FOLDER/2.safetensors: cannot be opened: No such file or directory");
}

TEST(BrokenSafetensors, broken_shard) {
  EXPECT_EQ(folder_error([](TemporaryFolder& folder) { folder.add("2.safetensors", "short"); }),
            "FOLDER/2.safetensors: file ends inside the header's length at byte 0: 8 bytes needed, 5 left");
}

TEST(BrokenSafetensors, shard_that_is_a_folder) {
  EXPECT_EQ(index_error(R"({"weight_map":{"a":".."}})"), "FOLDER/..: must be a regular file, got a folder");
}

TEST(BrokenSafetensors, tensor_in_two_shards) {
  const std::string message = folder_error([](TemporaryFolder& folder) {
    folder.add("2.safetensors", SafetensorsWriter().tensor("a", "U8", {1}, "x").tensor("b", "U8", {1}, "y").bytes());
  });
  EXPECT_EQ(message, "FOLDER/2.safetensors: tensor 'a' must stand in one file");
}

TEST(BrokenSafetensors, index_with_a_tensor_that_no_shard_has) {
  EXPECT_EQ(index_error(R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})"),
            "FOLDER/model.safetensors.index.json: tensor 'c' must be in '2.safetensors', is nowhere");
}

TEST(BrokenSafetensors, index_that_names_the_wrong_shard) {
  EXPECT_EQ(index_error(R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})"),
            "FOLDER/model.safetensors.index.json: tensor 'a' must be in '2.safetensors', is in FOLDER/1.safetensors");
}

TEST(BrokenSafetensors, index_without_weight_map) {
  const std::string message =
      "FOLDER/model.safetensors.index.json: weight_map must be an object of tensors and their files";
  for (const char* index : {"{}", "[]", "7", "\"weight_map\"", R"({"weight_map":[]})", R"({"weight_map":{}})"})
    EXPECT_EQ(index_error(index), message) << index;
}

TEST(BrokenSafetensors, index_that_is_not_json) {
  EXPECT_EQ(index_error("{"), "FOLDER/model.safetensors.index.json: must be valid JSON, is not at byte 2");
}

TEST(BrokenSafetensors, index_that_is_empty) {
  EXPECT_EQ(index_error(""), "FOLDER/model.safetensors.index.json: must be valid JSON, is not at byte 1");
}

TEST(BrokenSafetensors, index_with_a_tensor_twice) {
  EXPECT_EQ(index_error(R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})"),
            "FOLDER/model.safetensors.index.json: key 'a' must stand once in its object");
}

TEST(BrokenSafetensors, index_with_a_file_that_is_a_number) {
  EXPECT_EQ(index_error(R"({"weight_map":{"a":1}})"),
            "FOLDER/model.safetensors.index.json: the file of tensor 'a' must be text");
}

TEST(BrokenSafetensors, index_that_leaves_its_folder) {
  for (const char* name : {"../1.safetensors", "/etc/passwd", "a/b", "..\\\\b", "1.safetensors\\u0000", ""})
    EXPECT_TRUE(index_error(fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", name))
                    .starts_with("FOLDER/model.safetensors.index.json: the file of tensor 'a' must be a name in the "
                                 "same folder, got '"))
        << name;
}

std::string good_file() {
  return SafetensorsWriter()
      .entry(R"("__metadata__":{"format":"pt"})")
      .tensor("a", "BF16", {2, 3}, std::string(12, '\1'))
      .tensor("b.c", "F64", {}, std::string(8, '\2'))
      .tensor("d", "F32", {0, 7}, "")
      .bytes();
}

TEST(BrokenSafetensors, every_truncation_of_a_good_file) {
  test::expect_truncations_are_refused(good_file(), "f: ", file_error);
}

TEST(BrokenSafetensors, random_damage_gives_a_file_or_one_line) {
  test::expect_damage_gives_a_file_or_one_line(good_file(), file_error);
}

}  // namespace
}  // namespace foveate::io
