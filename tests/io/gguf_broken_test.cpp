// Broken GGUF files, each named after its defect: every one gives one line that says where and what.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "foveate/io/gguf.h"
#include "tests/support/damage.h"
#include "tests/support/gguf_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::ByteWriter;
using test::GgufWriter;
using test::TemporaryFile;

constexpr uint32_t kText = 8, kArray = 9, kU32 = 4;

std::string error_of(const std::string& bytes) {
  try {
    Gguf::parse(as_bytes(bytes), "f");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string open_error(const std::string& path) {
  try {
    Gguf::open(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

ByteWriter header(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
  ByteWriter writer;
  writer.raw("GGUF").put(version).put(tensors).put(pairs);
  return writer;
}

// A file whose only tensor, "w", has these dimensions (fastest first), type and offset, and 64 bytes of data.
std::string one_tensor(const std::vector<uint64_t>& dims, uint32_t type = 0, uint64_t offset = 0) {
  ByteWriter writer = header(1, 0);
  writer.put("w").put(uint32_t(dims.size()));
  for (const uint64_t size : dims) writer.put(size);
  return writer.put(type).put(offset).pad_to(32).raw(std::string(64, '\0')).data();
}

std::string two_tensors(std::string_view first, std::string_view second, uint64_t second_offset) {
  ByteWriter writer = header(2, 0);
  for (const auto& [name, offset] : {std::pair(first, uint64_t{0}), std::pair(second, second_offset)})
    writer.put(name).put(uint32_t(1)).put(uint64_t(9)).put(uint32_t(0)).put(offset);
  return writer.pad_to(32).raw(std::string(128, '\0')).data();
}

std::string with_alignment(uint32_t alignment) {
  return header(0, 1).put("general.alignment").put(kU32).put(alignment).data();
}

TEST(BrokenGguf, the_helpers_make_good_files) {
  EXPECT_EQ(error_of(one_tensor({4, 4})), "no error");
  EXPECT_EQ(error_of(two_tensors("a", "b", 64)), "no error");
  EXPECT_EQ(error_of(with_alignment(64)), "no error");
}

TEST(BrokenGguf, empty_file) {
  const TemporaryFile file("empty.gguf", "");
  EXPECT_EQ(open_error(file.path()),
            file.path() + ": file ends inside the magic number at byte 0: 4 bytes needed, 0 left");
}

TEST(BrokenGguf, bad_magic) {
  EXPECT_EQ(error_of("GGML" + std::string(60, '\0')), "f: not a GGUF file: bytes 0 .. 3 must be 'GGUF'");
}

TEST(BrokenGguf, version_1) {
  EXPECT_EQ(error_of(header(0, 0, 1).data()), "f: version at byte 4 must be 2 or 3, got 1");
}

TEST(BrokenGguf, version_4) {
  EXPECT_EQ(error_of(header(0, 0, 4).data()), "f: version at byte 4 must be 2 or 3, got 4");
}

TEST(BrokenGguf, version_0) {
  EXPECT_EQ(error_of(header(0, 0, 0).data()), "f: version at byte 4 must be 2 or 3, got 0");
}

TEST(BrokenGguf, big_endian) {
  EXPECT_EQ(error_of(header(0, 0, 0x03000000).data()),
            "f: version at byte 4 must be little-endian, got 0x3000000 of a big-endian file");
}

TEST(BrokenGguf, truncated_in_the_version) {
  EXPECT_EQ(error_of("GGUF\3"), "f: file ends inside the version at byte 4: 4 bytes needed, 1 left");
}

TEST(BrokenGguf, truncated_in_the_counts) {
  EXPECT_EQ(error_of(header(0, 0).data().substr(0, 20)),
            "f: file ends inside the metadata count at byte 16: 8 bytes needed, 4 left");
}

TEST(BrokenGguf, truncated_in_a_metadata_key) {
  EXPECT_EQ(error_of(header(0, 1).put(uint64_t(30)).raw("general.name").data()),
            "f: a metadata key at byte 24: count must fit the 12 bytes left, got 30 of >= 1 bytes");
}

TEST(BrokenGguf, truncated_in_a_metadata_value) {
  EXPECT_EQ(error_of(header(0, 1).put("k").put(uint32_t(12)).raw("1234567").data()),
            "f: file ends inside key 'k' at byte 37: 8 bytes needed, 7 left");
}

TEST(BrokenGguf, truncated_in_an_array_of_texts) {
  ByteWriter writer = header(0, 1);
  writer.put("k").put(kArray).put(kText).put(uint64_t(2)).put("first one").put(uint32_t(7));
  EXPECT_EQ(error_of(writer.data()), "f: file ends inside key 'k' at byte 66: 8 bytes needed, 4 left");
}

TEST(BrokenGguf, truncated_in_the_tensor_infos) {
  EXPECT_EQ(error_of(one_tensor({4, 4}).substr(0, 24 + 9 + 4 + 16 + 4 + 3)),
            "f: file ends inside tensor 'w' at byte 57: 8 bytes needed, 3 left");
}

TEST(BrokenGguf, truncated_tensor_data) {
  EXPECT_EQ(error_of(one_tensor({4, 4}).substr(0, 96 + 63)),
            "f: tensor 'w' at byte 96 + 0 must end in the file, got 16 blocks of 4 bytes in a file of 159 bytes");
}

TEST(BrokenGguf, truncated_before_the_tensor_data) {
  EXPECT_EQ(error_of(one_tensor({4, 4}).substr(0, 70)),
            "f: tensor 'w' at byte 96 + 0 must end in the file, got 16 blocks of 4 bytes in a file of 70 bytes");
}

TEST(BrokenGguf, absurd_tensor_count) {
  EXPECT_EQ(error_of(header(uint64_t(1) << 60, 0).data()),
            "f: the tensor count at byte 8: count must fit the 8 bytes left, got 1152921504606846976 of >= 32 bytes");
}

TEST(BrokenGguf, absurd_metadata_count) {
  EXPECT_EQ(
      error_of(header(0, ~uint64_t{0}).data()),
      "f: the metadata count at byte 16: count must fit the 0 bytes left, got 18446744073709551615 of >= 13 bytes");
}

TEST(BrokenGguf, absurd_key_length) {
  EXPECT_EQ(error_of(header(0, 1).put(uint64_t(1) << 40).raw(std::string(40, 'k')).data()),
            "f: a metadata key at byte 24: count must fit the 40 bytes left, got 1099511627776 of >= 1 bytes");
}

TEST(BrokenGguf, absurd_text_length) {
  EXPECT_EQ(error_of(header(0, 1).put("k").put(kText).put(~uint64_t{0} - 7).raw("text").data()),
            "f: key 'k' at byte 37: count must fit the 4 bytes left, got 18446744073709551608 of >= 1 bytes");
}

TEST(BrokenGguf, absurd_array_length) {
  EXPECT_EQ(error_of(header(0, 1).put("k").put(kArray).put(uint32_t(6)).put(uint64_t(1) << 62).data()),
            "f: key 'k' at byte 41: count must fit the 0 bytes left, got 4611686018427387904 of >= 4 bytes");
}

TEST(BrokenGguf, absurd_array_of_texts) {
  ByteWriter writer = header(0, 1).put("k").put(kArray).put(kText).put(uint64_t(1) << 32).raw(std::string(80, '\0'));
  EXPECT_EQ(error_of(writer.data()),
            "f: key 'k' at byte 41: count must fit the 80 bytes left, got 4294967296 of >= 8 bytes");
}

TEST(BrokenGguf, nested_arrays) {
  ByteWriter writer = header(0, 1).put("k").put(kArray);
  for (int i = 0; i < 100000; ++i) writer.put(kArray).put(uint64_t(1));
  EXPECT_EQ(error_of(writer.data()), "f: key 'k' at byte 37: values must not be arrays of arrays");
}

TEST(BrokenGguf, unknown_value_type) {
  EXPECT_EQ(error_of(header(0, 1).put("k").put(uint32_t(13)).raw("........").data()),
            "f: key 'k' at byte 33: value type must be 0 .. 12, got 13");
}

TEST(BrokenGguf, unknown_value_type_in_an_array) {
  EXPECT_EQ(error_of(header(0, 1).put("k").put(kArray).put(uint32_t(77)).put(uint64_t(0)).data()),
            "f: key 'k' at byte 37: value type must be 0 .. 12, got 77");
}

TEST(BrokenGguf, duplicate_key) {
  ByteWriter writer = header(0, 2);
  for (int i = 0; i < 2; ++i) writer.put("twice").put(kU32).put(uint32_t(i));
  EXPECT_EQ(error_of(writer.data()), "f: key 'twice' at byte 45 must stand once");
}

TEST(BrokenGguf, duplicate_tensor_name) {
  EXPECT_EQ(error_of(two_tensors("w", "w", 64)), "f: tensor 'w' at byte 57 must stand once");
}

TEST(BrokenGguf, no_dimensions) {
  EXPECT_EQ(error_of(one_tensor({})), "f: tensor 'w' at byte 24 must have 1 .. 4 dimensions, got 0");
}

TEST(BrokenGguf, five_dimensions) {
  EXPECT_EQ(error_of(one_tensor({1, 1, 1, 1, 1})), "f: tensor 'w' at byte 24 must have 1 .. 4 dimensions, got 5");
}

TEST(BrokenGguf, absurd_number_of_dimensions) {
  EXPECT_EQ(error_of(header(1, 0).put("w").put(~uint32_t{0}).raw(std::string(64, '\1')).data()),
            "f: tensor 'w' at byte 24 must have 1 .. 4 dimensions, got 4294967295");
}

TEST(BrokenGguf, zero_dimension) {
  EXPECT_EQ(error_of(one_tensor({4, 0})),
            "f: tensor 'w' at byte 24: dimension 1 must be 1 .. 2305843009213693951, got 0");
}

TEST(BrokenGguf, absurd_dimension) {
  EXPECT_EQ(error_of(one_tensor({~uint64_t{0}})),
            "f: tensor 'w' at byte 24: dimension 0 must be 1 .. 9223372036854775807, got 18446744073709551615");
}

TEST(BrokenGguf, dimensions_whose_product_overflows) {
  const uint64_t size = uint64_t(1) << 32;
  EXPECT_EQ(error_of(one_tensor({size, size, size, size})),
            "f: tensor 'w' at byte 24: dimension 1 must be 1 .. 2147483647, got 4294967296");
}

TEST(BrokenGguf, dimensions_whose_bytes_overflow) {
  EXPECT_EQ(error_of(one_tensor({uint64_t(1) << 62})),
            "f: tensor 'w' at byte 64 + 0 must end in the file, got 4611686018427387904 blocks of 4 bytes in a file of "
            "128 bytes");
}

TEST(BrokenGguf, row_length_not_a_multiple_of_the_block) {
  EXPECT_EQ(error_of(one_tensor({48, 2}, uint32_t(GgmlType::q8_0))),
            "f: tensor 'w' at byte 24: rows of Q8_0 must be a multiple of 32, got 48");
}

TEST(BrokenGguf, unknown_tensor_type) {
  EXPECT_EQ(error_of(one_tensor({4, 4}, 99)),
            "f: tensor 'w' at byte 24: type must be one of: F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K "
            "BF16; got "
            "type 99");
}

TEST(BrokenGguf, unsupported_tensor_type) {
  EXPECT_TRUE(error_of(one_tensor({256}, 16)).ends_with("Q6_K BF16; got IQ2_XXS"));
}

TEST(BrokenGguf, offset_past_the_end) {
  EXPECT_EQ(error_of(one_tensor({4}, 0, 1 << 20)),
            "f: tensor 'w' at byte 64 + 1048576 must end in the file, got 4 blocks of 4 bytes in a file of 128 bytes");
}

TEST(BrokenGguf, offset_that_wraps_around) {
  EXPECT_EQ(
      error_of(one_tensor({4}, 0, ~uint64_t{0} - 31)),
      "f: tensor 'w' at byte 64 + 18446744073709551584 must end in the file, got 4 blocks of 4 bytes in a file of "
      "128 bytes");
}

TEST(BrokenGguf, misaligned_offset) {
  EXPECT_EQ(error_of(one_tensor({4}, 0, 16)), "f: tensor 'w' at byte 64 + 16 must be aligned to 32 bytes");
}

TEST(BrokenGguf, overlapping_tensors) {
  EXPECT_EQ(error_of(two_tensors("a", "b", 32)),
            "f: tensors 'a' and 'b' must not overlap, got 36 bytes at byte 96 and a start at byte 128");
}

TEST(BrokenGguf, tensors_in_the_same_place) {
  EXPECT_TRUE(
      error_of(two_tensors("a", "b", 0)).ends_with("must not overlap, got 36 bytes at byte 96 and a start at byte 96"));
}

TEST(BrokenGguf, alignment_0) {
  EXPECT_EQ(error_of(with_alignment(0)), "f: key 'general.alignment' must be a power of two <= 2^20, got 0");
}

TEST(BrokenGguf, alignment_not_a_power_of_two) {
  EXPECT_EQ(error_of(with_alignment(24)), "f: key 'general.alignment' must be a power of two <= 2^20, got 24");
}

TEST(BrokenGguf, absurd_alignment) {
  EXPECT_EQ(error_of(with_alignment(1U << 31)),
            "f: key 'general.alignment' must be a power of two <= 2^20, got 2147483648");
}

TEST(BrokenGguf, alignment_that_is_text) {
  EXPECT_EQ(error_of(GgufWriter().set("general.alignment", "32").bytes()),
            "f: key 'general.alignment' must be an integer, got text");
}

TEST(BrokenGguf, name_with_control_characters) {
  EXPECT_EQ(error_of(header(1, 0).put("w\n\x1B[31m").put(uint32_t(9)).raw(std::string(64, '\0')).data()),
            R"(f: tensor 'w\n\x1b[31m' at byte 24 must have 1 .. 4 dimensions, got 9)");
}

TEST(BrokenGguf, missing_file) {
  const std::string path = test::temporary_path("no_such.gguf");
  EXPECT_EQ(open_error(path), path + ": cannot be opened: No such file or directory");
}

TEST(BrokenGguf, folder_instead_of_a_file) {
  EXPECT_EQ(open_error(testing::TempDir()), testing::TempDir() + ": must be a regular file, got a folder");
}

TEST(BrokenGguf, pipe_instead_of_a_file) {
  const std::string path = test::temporary_path("pipe.gguf");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(open_error(path), path + ": must be a regular file, got a pipe or device");
  std::filesystem::remove(path);
}

TEST(BrokenGguf, file_that_may_not_be_read) {
  const TemporaryFile file("secret.gguf", GgufWriter().bytes());
  ASSERT_EQ(::chmod(file.path().c_str(), 0), 0);
  const bool is_root = ::geteuid() == 0;  // root may read everything: be nobody for a moment
  if (is_root && ::seteuid(65534) != 0) GTEST_SKIP() << "root that cannot become another user";
  const std::string message = open_error(file.path());
  ASSERT_TRUE(!is_root || ::seteuid(0) == 0);
  EXPECT_EQ(message, file.path() + ": cannot be opened: Permission denied");
}

std::string good_file() {
  GgufWriter writer;
  writer.set("general.architecture", "llama").set("tokens", std::vector<std::string>{"a", "bc"});
  writer.set("scores", std::vector<float>{1, 2}).set("flag", true);
  writer.tensor("a", {2, 32}, GgmlType::q8_0, std::string(68, '\1'));
  writer.tensor("b", {3}, GgmlType::f32, std::string(12, '\2'));
  return writer.bytes();
}

TEST(BrokenGguf, every_truncation_of_a_good_file) {
  test::expect_truncations_are_refused(good_file(), "f: ", error_of);
}

TEST(BrokenGguf, random_damage_gives_a_file_or_one_line) {
  test::expect_damage_gives_a_file_or_one_line(good_file(), error_of);
}

}  // namespace
}  // namespace foveate::io
