// Records come back as written, or the file says what is wrong.
#include "foveate/base/record_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "foveate/base/error.h"

namespace foveate {
namespace {

std::vector<std::byte> record(int seed, size_t bytes = 100) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) data[i] = std::byte(uint8_t(seed * 31 + int(i) * 7));
  return data;
}

TEST(RecordFile, gives_back_what_was_written) {
  RecordFile file(testing::TempDir(), 100);
  for (const int n : {3, 0, 7}) file.write(n, record(n));
  file.write(0, record(50));
  RecordFile moved = std::move(file);
  std::vector<std::byte> got(100);
  moved.read(7, got);
  EXPECT_EQ(got, record(7));
  moved.read(0, got);
  EXPECT_EQ(got, record(50));
  EXPECT_THROW(moved.read(1, got), Error);
  EXPECT_THROW(moved.read(8, got), Error);
  EXPECT_THROW(moved.write(0, record(1, 99)), Error);
}

TEST(RecordFile, says_what_is_damaged_and_keeps_the_rest) {
  RecordFile file(testing::TempDir(), 100);
  for (int n = 0; n < 4; ++n) file.write(n, record(n));
  std::vector<std::byte> got(100);
  for (const int place : {100, 131, 132, 199}) {
    const std::byte before = record(1)[size_t(place - 100)], other = before ^ std::byte(4);
    ASSERT_EQ(::pwrite(file.descriptor(), &other, 1, place), 1);
    EXPECT_THROW(file.read(1, got), Error) << place;
    ASSERT_EQ(::pwrite(file.descriptor(), &before, 1, place), 1);
    file.read(1, got);
  }
  ASSERT_EQ(::ftruncate(file.descriptor(), 350), 0);
  file.read(2, got);
  EXPECT_EQ(got, record(2));
  try {
    file.read(3, got);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cut off"), std::string::npos) << error.what();
  }
}

TEST(RecordFile, needs_a_folder) { EXPECT_THROW(RecordFile("/nonexistent/folder", 10), Error); }

}  // namespace
}  // namespace foveate
