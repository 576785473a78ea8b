// Broken pictures, each named after its defect: every one gives one line that says which file and what.
#include <gtest/gtest.h>

#include "foveate/io/image.h"
#include "tests/support/damage.h"
#include "tests/support/files.h"
#include "tests/support/jpeg_writer.h"
#include "tests/support/messages.h"
#include "tests/support/png_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::message_of;
using test::png_chunk;
using test::png_file;
using test::PngHeader;

std::string error_of(const std::string& bytes) {
  return message_of([&] { parse_image(as_bytes(bytes), "f"); });
}

std::string png_error(const std::string& bytes) {
  const std::string message = error_of(bytes), start = "f: must be a whole PNG file, libpng says: ";
  return message.starts_with(start) ? message.substr(start.size()) : message;
}

std::string jpeg_error(const std::string& bytes) {
  const std::string message = error_of(bytes), start = "f: must be a whole JPEG file, libjpeg says: ";
  return message.starts_with(start) ? message.substr(start.size()) : message;
}

std::string small_png() { return encode_png({5, 3, 1, std::vector<uint8_t>(15, 9)}); }
std::string small_jpeg() { return encode_jpeg({20, 9, 1, std::vector<uint8_t>(180, 9)}); }

TEST(BrokenImage, neither_png_nor_jpeg) {
  EXPECT_EQ(error_of("GIF89a...."), "f: must be a PNG or JPEG file, got 10 bytes that start with 'GIF89a..'");
  EXPECT_EQ(error_of(""), "f: must be a PNG or JPEG file, got 0 bytes that start with ''");
  EXPECT_EQ(error_of("\x89PNG\n\x1a\n......").substr(0, 31), "f: must be a PNG or JPEG file, ");  // line ends changed
}

TEST(BrokenImage, missing_file_or_folder) {
  EXPECT_EQ(message_of([] { read_image("/nowhere/a.png"); }),
            "/nowhere/a.png: cannot be opened: No such file or directory");
  EXPECT_EQ(message_of([] { read_image("/tmp"); }), "/tmp: must be a regular file, got a folder");
  const test::TemporaryFile file("empty.png", "");
  EXPECT_EQ(message_of([&] { read_image(file.path()); }),
            file.path() + ": must be a PNG or JPEG file, got 0 bytes that start with ''");
}

TEST(BrokenImage, cut_short) {
  test::expect_truncations_are_refused(small_png(), "f: must be a", error_of);
  test::expect_truncations_are_refused(small_jpeg(), "f: must be a", error_of);
  const std::vector<uint8_t> pixels(48 * 40 * 3, 77);
  test::expect_truncations_are_refused(test::jpeg_file(48, 40, pixels, {.is_progressive = true}), "f: must be a",
                                       error_of);
}

TEST(BrokenImage, bytes_changed_at_random) {
  test::expect_damage_gives_a_file_or_one_line(small_png(), error_of);
  test::expect_damage_gives_a_file_or_one_line(small_jpeg(), error_of);
}

TEST(BrokenPng, absurd_size) {
  EXPECT_EQ(error_of(png_file({0x7FFFFFFF, 0x7FFFFFFF}, "")),
            "f: must have at most 268435456 pixels, got 2147483647 x 2147483647");
  EXPECT_EQ(error_of(png_file({16384, 16384}, "")), "f: 16384 x 16384 pixels must fit the file, got 68 bytes");
}

TEST(BrokenPng, no_pixels) { EXPECT_EQ(png_error(png_file({0, 1}, "")), "Invalid IHDR data"); }

TEST(BrokenPng, a_depth_that_its_kind_does_not_have) {
  EXPECT_EQ(png_error(png_file({1, 1, 4, 2}, std::string("\0ab", 3))), "Invalid IHDR data");
}

TEST(BrokenPng, unknown_filter) { EXPECT_EQ(png_error(png_file({1, 1}, "\7abc")), "bad adaptive filter value"); }

TEST(BrokenPng, palette_missing) {
  EXPECT_EQ(png_error(png_file({1, 1, 8, 3}, std::string("\0a", 2))), "IDAT: Missing PLTE before IDAT");
}

TEST(BrokenPng, wrong_checksum) {
  std::string bytes = png_file({1, 1}, std::string("\0abc", 4));
  bytes[bytes.size() - 14] ^= 1;  // in IDAT's
  EXPECT_EQ(png_error(bytes), "IDAT: CRC error");
}

TEST(BrokenPng, too_few_rows) {
  EXPECT_EQ(png_error(png_file({1, 3}, std::string("\0abc\0abc", 8))), "Not enough image data");
}

TEST(BrokenPng, data_that_do_not_inflate) {
  const std::string header(test::kPngSignature), end = png_chunk("IEND", "");
  EXPECT_EQ(png_error(header + test::png_header({}) + png_chunk("IDAT", "\x78\x01\x07....") + end),
            "IDAT: invalid block type");
  EXPECT_EQ(png_error(header + test::png_header({}) + end), "IEND: out of place");
}

TEST(BrokenJpeg, absurd_size) {
  std::string bytes = small_jpeg();
  const size_t frame = bytes.find("\xFF\xC0");
  bytes.replace(frame + 5, 4, "\xFF\xDC\xFF\xDC");
  EXPECT_EQ(error_of(bytes), "f: must have at most 268435456 pixels, got 65500 x 65500");
  bytes.replace(frame + 5, 4, "\x3F\xFF\x3F\xFF");
  EXPECT_TRUE(error_of(bytes).starts_with("f: 16383 x 16383 pixels must fit the file, got ")) << error_of(bytes);
  bytes.replace(frame + 5, 4, std::string("\0\0\0\1", 4));
  EXPECT_EQ(jpeg_error(bytes).substr(0, 24), "Empty JPEG image (DNL no");
}

TEST(BrokenJpeg, tables_missing) {
  std::string bytes = small_jpeg();
  bytes[bytes.find("\xFF\xDB") + 1] = '\xFE';  // the quantisation table is a comment now
  EXPECT_EQ(jpeg_error(bytes), "Quantization table 0x00 was not defined");
}

TEST(BrokenJpeg, codes_that_do_not_exist) {
  std::string bytes = encode_jpeg({64, 64, 1, std::vector<uint8_t>(64 * 64, 9)});
  const size_t scan = bytes.find("\xFF\xDA") + 10;
  for (size_t i = scan; i + 4 <= bytes.size(); i += 2) bytes.replace(i, 2, std::string("\xFF\0", 2));  // ones alone
  EXPECT_EQ(jpeg_error(bytes), "Corrupt JPEG data: bad Huffman code");
}

TEST(BrokenJpeg, a_scan_that_comes_again) {
  const std::string good = test::jpeg_file(16, 16, std::vector<uint8_t>(768, 50), {.is_progressive = true});
  const size_t last = good.rfind("\xFF\xDA");
  EXPECT_EQ(jpeg_error(good.substr(0, good.size() - 2) + good.substr(last)),
            "Inconsistent progression sequence for component 0 coefficient 1");
}

TEST(BrokenJpeg, channels_without_a_meaning) {
  const std::string bytes = test::jpeg_file(8, 8, std::vector<uint8_t>(128, 5),
                                            {.channels = 2, .given = JCS_UNKNOWN, .stored = JCS_UNKNOWN, .chroma = 1});
  EXPECT_EQ(jpeg_error(bytes), "Unsupported color conversion request");
}

}  // namespace
}  // namespace foveate::io
