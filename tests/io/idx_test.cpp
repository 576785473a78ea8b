// IDX arrays, plain and packed by gzip, and broken ones, each named after its defect.
#include "foveate/io/idx.h"

#include <gtest/gtest.h>

#include "foveate/io/gzip.h"
#include "tests/support/damage.h"
#include "tests/support/files.h"
#include "tests/support/idx_writer.h"
#include "tests/support/messages.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::gzip;
using test::idx_file;
using test::message_of;

std::string error_of(const std::string& bytes) {
  return message_of([&] { parse_idx(as_bytes(bytes), "f"); });
}

TEST(Idx, plain_and_packed_files_give_the_same_array) {
  const std::string bytes = idx_file({2, 1, 3}, "abcdef");
  const test::TemporaryFile packed("a.idx.gz", gzip(bytes));
  for (const IdxArray& array : {parse_idx(as_bytes(bytes), "f"), read_idx(packed.path())}) {
    EXPECT_EQ(array.shape, (std::vector<int64_t>{2, 1, 3}));
    EXPECT_EQ(std::string(array.values.begin(), array.values.end()), "abcdef");
  }
  EXPECT_EQ(parse_idx(as_bytes(idx_file({0, 5}, "")), "f").shape, (std::vector<int64_t>{0, 5}));
}

TEST(Idx, packed_files_may_be_longer_than_what_is_inflated_at_once) {
  std::string values(3'000'000, '\0');
  Random random(1);
  for (char& c : values) c = char(random.below(256));
  const IdxArray array = parse_idx(as_bytes(gzip(idx_file({3000, 1000}, values))), "f");
  EXPECT_EQ(std::string(array.values.begin(), array.values.end()), values);
}

TEST(BrokenIdx, cut_short) {
  test::expect_truncations_are_refused(idx_file({2, 2}, "abcd"), "f: ", error_of);
  test::expect_truncations_are_refused(gzip(idx_file({2, 2}, "abcd")), "f: ", error_of);
}

TEST(BrokenIdx, bytes_changed_at_random) {
  test::expect_damage_gives_a_file_or_one_line(idx_file({2, 2}, "abcd"), error_of);
  test::expect_damage_gives_a_file_or_one_line(gzip(idx_file({2, 2}, "abcd")), error_of);
}

TEST(BrokenIdx, another_kind_of_file) {
  EXPECT_EQ(error_of("\x89PNG...."), "f: must be an IDX file of 1 .. 4 axes, got magic number 0x89504e47");
  EXPECT_EQ(error_of(idx_file({}, "")), "f: must be an IDX file of 1 .. 4 axes, got magic number 0x00000800");
}

TEST(BrokenIdx, numbers_of_another_type) {
  EXPECT_EQ(error_of(idx_file({1}, "abcd", 13)), "f: must hold unsigned bytes (type 8), got type 13");
}

TEST(BrokenIdx, absurd_shape) {
  EXPECT_EQ(error_of(idx_file({0xFFFFFFFF, 0xFFFFFFFF}, "")),
            "f: must have at most 1073741824 numbers, got 1 times 4294967295 or more");
  EXPECT_EQ(error_of(idx_file({0, 0xFFFFFFFF, 2}, "a")),
            "f: [0, 4294967295, 2] must have 0 bytes behind the shape, got 1");
}

TEST(BrokenIdx, more_bytes_than_the_shape_says) {
  EXPECT_EQ(error_of(idx_file({2}, "abc")), "f: [2] must have 2 bytes behind the shape, got 3");
}

TEST(BrokenIdx, wrong_checksum_or_a_second_member) {
  const std::string good = gzip(idx_file({2}, "ab"));
  std::string bytes = good;
  bytes[bytes.size() - 8] ^= 1;
  EXPECT_EQ(error_of(bytes), "f: must be a whole gzip file, zlib says: incorrect data check");
  EXPECT_EQ(error_of(good + "xyz"), "f: must end with gzip's data, got 3 bytes more");
}

TEST(BrokenIdx, a_file_that_inflates_without_end) {
  const std::string bytes = gzip(std::string(10'000'000, '\0'));
  EXPECT_EQ(message_of([&] { inflate_gzip(as_bytes(bytes), "f", 1000); }), "f: must hold at most 1000 bytes");
  EXPECT_EQ(inflate_gzip(as_bytes(bytes), "f", 10'000'000).size(), 10'000'000u);
}

}  // namespace
}  // namespace foveate::io
