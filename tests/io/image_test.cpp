// Pictures: what comes of every kind of PNG and JPEG, and that what is written is what is read.
#include "foveate/io/image.h"

#include <gtest/gtest.h>

#include <cmath>

#include "foveate/base/random.h"
#include "tests/support/files.h"
#include "tests/support/jpeg_writer.h"
#include "tests/support/messages.h"
#include "tests/support/png_writer.h"

namespace foveate::io {
namespace {

using test::as_bytes;
using test::jpeg_file;
using test::JpegKind;
using test::message_of;
using test::png_chunk;
using test::png_file;
using test::with_segment;

Image parse(const std::string& bytes) { return parse_image(as_bytes(bytes), "f"); }

Image noise(int64_t width, int64_t height, int64_t channels) {
  Image image{width, height, channels, std::vector<uint8_t>(size_t(width * height * channels))};
  Random random(3);
  for (uint8_t& p : image.pixels) p = uint8_t(random.below(256));
  return image;
}

// Colours that change slowly, so that JPEG keeps them.
Image slope(int64_t width, int64_t height, int64_t channels) {
  Image image{width, height, channels, {}};
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) image.pixels.push_back(uint8_t(20 + 2 * x + 2 * y + 20 * c));
  return image;
}

std::vector<uint8_t> grey(const std::vector<int>& values) {
  std::vector<uint8_t> pixels;
  for (const int v : values) pixels.insert(pixels.end(), 3, uint8_t(v));
  return pixels;
}

int largest_difference(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  if (a.size() != b.size()) return 1000;
  int most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(int(a[i]) - int(b[i])));
  return most;
}

TEST(Image, png_gives_back_every_pixel_that_was_written) {
  for (const auto& [w, h] : {std::pair{1, 1}, {7, 3}, {64, 65}, {300, 2}}) {
    const Image image = noise(w, h, 3), again = parse(encode_png(image));
    EXPECT_EQ(again.width, w);
    EXPECT_EQ(again.height, h);
    EXPECT_EQ(again.channels, 3);
    EXPECT_EQ(again.pixels, image.pixels);
  }
  const Image image = noise(9, 4, 1);
  EXPECT_EQ(parse(encode_png(image)).pixels, grey({image.pixels.begin(), image.pixels.end()}));
}

TEST(Image, jpeg_gives_back_slow_colours_nearly) {
  const Image image = slope(41, 27, 3), again = parse(encode_jpeg(image));
  EXPECT_EQ(again.width, 41);
  EXPECT_EQ(again.height, 27);
  EXPECT_LE(largest_difference(again.pixels, image.pixels), 4);
  const Image dark = slope(20, 20, 1), dark_again = parse(encode_jpeg(dark, 100));
  EXPECT_LE(largest_difference(dark_again.pixels, grey({dark.pixels.begin(), dark.pixels.end()})), 2);
  EXPECT_GT(encode_jpeg(noise(64, 64, 3), 90).size(), encode_jpeg(noise(64, 64, 3), 20).size());
}

TEST(Image, files_are_written_as_their_name_says_and_read_as_their_bytes_say) {
  const test::TemporaryFolder folder("image");
  const Image image = slope(16, 12, 3);
  for (const char* name : {"a.png", "a.PNG", "a.jpg", "a.jpeg"}) {
    write_image(folder.file(name), image);
    EXPECT_LE(largest_difference(read_image(folder.file(name)).pixels, image.pixels), 4) << name;
  }
  std::filesystem::rename(folder.file("a.png"), folder.file("wrong.jpg"));
  EXPECT_EQ(read_image(folder.file("wrong.jpg")).pixels, image.pixels);
}

TEST(Image, grey_of_few_bits_spans_black_to_white) {
  EXPECT_EQ(parse(png_file({10, 1, 1, 0}, std::string("\0\xA5\x80", 3))).pixels,
            grey({255, 0, 255, 0, 0, 255, 0, 255, 255, 0}));
  EXPECT_EQ(parse(png_file({4, 1, 2, 0}, std::string("\0\x1B", 2))).pixels, grey({0, 85, 170, 255}));
  EXPECT_EQ(parse(png_file({3, 1, 4, 0}, std::string("\0\x0F\x30", 3))).pixels, grey({0, 255, 51}));
}

TEST(Image, sixteen_bits_are_rounded_to_the_nearest_eight) {
  std::string row(1, '\0');
  std::vector<int> want;
  for (int v = 0; v <= 65535; v += 37) {
    row += {char(v >> 8), char(v)};
    want.push_back(int(std::lround(v * 255.0 / 65535)));
  }
  EXPECT_EQ(parse(png_file({uint32_t(want.size()), 1, 16, 0}, row)).pixels, grey(want));
}

TEST(Image, palettes_give_their_colours) {
  const std::string palette = png_chunk("PLTE", "abcdefxyz");
  const Image image = parse(png_file({4, 1, 2, 3}, std::string("\0\x18", 2), palette));  // entries 0, 1, 2, 0
  EXPECT_EQ(std::string(image.pixels.begin(), image.pixels.end()), "abcdefxyzabc");
}

TEST(Image, transparent_pixels_lie_on_white) {
  std::string row(1, '\0');
  std::vector<uint8_t> want;
  Random random(5);
  for (int i = 0; i < 500; ++i) {
    const auto alpha = i < 2 ? 255 * i : int(random.below(256));
    for (int c = 0; c < 3; ++c) {
      const auto v = int(random.below(256));
      row += char(v);
      want.push_back(uint8_t(std::lround((v * alpha + 255.0 * (255 - alpha)) / 255)));
    }
    row += char(alpha);
  }
  EXPECT_EQ(parse(png_file({500, 1, 8, 6}, row)).pixels, want);
  EXPECT_EQ(parse(png_file({2, 1, 8, 4}, std::string("\0\x50\xFF\x50\0", 5))).pixels, grey({0x50, 255}));
  // a palette's transparency, and the colour of a picture that stands for nothing
  const std::string entries = png_chunk("PLTE", "abcdef") + png_chunk("tRNS", std::string("\0", 1));
  const Image image = parse(png_file({2, 1, 1, 3}, std::string("\0\x40", 2), entries));
  EXPECT_EQ(std::string(image.pixels.begin(), image.pixels.end()),
            "\xFF\xFF\xFF"
            "def");
  const std::string key = png_chunk("tRNS", std::string("\0\x07", 2));
  EXPECT_EQ(parse(png_file({2, 1, 8, 0}, std::string("\0\x07\x08", 3), key)).pixels, grey({255, 8}));
}

TEST(Image, transparency_is_kept_where_asked_for) {
  for (const int64_t channels : {3, 1}) {
    Image image = noise(7, 5, channels);
    const Image alpha = noise(5, 7, 1);
    image.alpha = alpha.pixels;
    const std::string png = encode_png(image);
    const Image again = parse_image(as_bytes(png), "f", Transparency::kept);
    EXPECT_EQ(again.alpha, image.alpha);
    EXPECT_EQ(again.channels, 3);
    EXPECT_EQ(again.pixels, channels == 3 ? image.pixels : grey({image.pixels.begin(), image.pixels.end()}));
    const Image flat = parse(png);
    EXPECT_TRUE(flat.alpha.empty());
    EXPECT_NE(flat.pixels, again.pixels);
  }
  const Image opaque = noise(7, 5, 3);
  EXPECT_TRUE(parse_image(as_bytes(encode_png(opaque)), "f", Transparency::kept).alpha.empty());
  EXPECT_TRUE(parse_image(as_bytes(encode_jpeg(opaque)), "f", Transparency::kept).alpha.empty());
}

TEST(Image, alpha_that_can_not_be_written_is_refused) {
  Image image = noise(4, 3, 3);
  image.alpha.assign(11, 0);
  EXPECT_EQ(message_of([&] { encode_png(image); }), "image: alpha must have 4 x 3 bytes, got 11");
  image.alpha.assign(12, 0);
  EXPECT_EQ(message_of([&] { encode_jpeg(image); }), "image: JPEG must not have alpha, got 12 bytes of it");
}

TEST(Image, interlaced_pictures_are_put_together) {
  constexpr int kFirstX[] = {0, 4, 0, 2, 0, 1, 0}, kFirstY[] = {0, 0, 4, 0, 2, 0, 1};
  constexpr int kStepX[] = {8, 8, 4, 4, 2, 2, 1}, kStepY[] = {8, 8, 8, 4, 4, 2, 2};
  for (const auto& [w, h] : {std::pair{13, 11}, {1, 1}, {3, 9}}) {
    const Image image = noise(w, h, 3);
    std::string rows;
    for (int pass = 0; pass < 7; ++pass)
      for (int y = kFirstY[pass]; y < h; y += kStepY[pass]) {
        if (kFirstX[pass] >= w) continue;
        rows += '\0';
        for (int x = kFirstX[pass]; x < w; x += kStepX[pass])
          rows.append(reinterpret_cast<const char*>(&image.pixels[size_t(3 * (y * w + x))]), 3);
      }
    EXPECT_EQ(parse(png_file({uint32_t(w), uint32_t(h), 8, 2, 1}, rows)).pixels, image.pixels);
  }
}

TEST(Image, colour_profiles_texts_and_gamma_change_nothing) {
  const std::string row("\0abc", 4);
  const std::string chunks = png_chunk("gAMA", test::big_endian(200000)) + png_chunk("sBIT", "\5\5\5") +
                             png_chunk("tEXt", std::string("a\0b", 3)) + png_chunk("iCCP", "nonsense");
  EXPECT_EQ(parse(png_file({1, 1, 8, 2}, row, chunks)).pixels, parse(png_file({1, 1, 8, 2}, row)).pixels);
  EXPECT_EQ(parse(png_file({1, 1, 8, 2}, row) + "what follows").pixels, (std::vector<uint8_t>{'a', 'b', 'c'}));
}

// The letters of a picture of 8 x 8 squares, row by row.
std::string letters(const Image& image) {
  std::string text;
  for (int64_t y = 4; y < image.height; y += 8) {
    for (int64_t x = 4; x < image.width; x += 8)
      text += char('a' + (image.pixels[size_t(3 * (y * image.width + x))] + 15) / 30 - 1);
    text += '/';
  }
  return text;
}

TEST(Image, jpeg_stands_as_exif_says) {
  Image squares{24, 16, 1, {}};  // abc/def/
  for (int64_t y = 0; y < 16; ++y)
    for (int64_t x = 0; x < 24; ++x) squares.pixels.push_back(uint8_t(30 * (1 + x / 8 + 3 * (y / 8))));
  const std::string jpeg = encode_jpeg(squares);
  const char* want[] = {"abc/def/",  "cba/fed/",  "fed/cba/",  "def/abc/",
                        "ad/be/cf/", "da/eb/fc/", "fc/eb/da/", "cf/be/ad/"};
  for (int orientation = 1; orientation <= 8; ++orientation)
    for (const bool is_little : {true, false}) {
      const Image image = parse(with_segment(jpeg, 1, test::exif(orientation, is_little)));
      EXPECT_EQ(letters(image), want[orientation - 1]) << orientation;
    }
  // what is no orientation
  EXPECT_EQ(letters(parse(with_segment(jpeg, 1, test::exif(0)))), "abc/def/");
  EXPECT_EQ(letters(parse(with_segment(jpeg, 1, test::exif(9)))), "abc/def/");
  EXPECT_EQ(letters(parse(with_segment(jpeg, 2, test::exif(3)))), "abc/def/");
  const std::string whole = test::exif(3);
  for (size_t size = 0; size + 4 < whole.size(); ++size)
    EXPECT_EQ(letters(parse(with_segment(jpeg, 1, whole.substr(0, size)))), "abc/def/") << size;
}

TEST(Image, jpeg_of_every_kind_is_read) {
  const Image image = slope(45, 35, 3);
  for (const JpegKind& kind : {JpegKind{}, JpegKind{.is_progressive = true}, JpegKind{.is_arithmetic = true},
                               JpegKind{.stored = JCS_RGB, .chroma = 1}, JpegKind{.chroma = 1, .restart_rows = 1}})
    EXPECT_LE(largest_difference(parse(jpeg_file(45, 35, image.pixels, kind)).pixels, image.pixels), 6);
}

TEST(Image, inks_become_colours) {
  std::vector<uint8_t> inks, want;  // 255 = no ink
  for (int i = 0; i < 16 * 16; ++i) {
    const int black = 255 - i / 2;
    for (const int ink : {200, 120, 40}) {
      inks.push_back(uint8_t(ink));
      want.push_back(uint8_t(std::lround(ink * black / 255.0)));
    }
    inks.push_back(uint8_t(black));
  }
  for (const J_COLOR_SPACE stored : {JCS_CMYK, JCS_YCCK}) {
    const std::string jpeg = jpeg_file(16, 16, inks, {.channels = 4, .given = JCS_CMYK, .stored = stored, .chroma = 1});
    EXPECT_LE(largest_difference(parse(jpeg).pixels, want), 4);
  }
}

TEST(Image, what_can_not_be_written_is_refused) {
  EXPECT_EQ(message_of([] {
              encode_png({0, 3, 3, {}});
            }),
            "image: width and height must be >= 1, channels 1 or 3, got 0 x 3 x 3");
  EXPECT_EQ(message_of([] {
              encode_png({2, 1, 2, {1, 2, 3, 4}});
            }),
            "image: width and height must be >= 1, channels 1 or 3, got 2 x 1 x 2");
  EXPECT_EQ(message_of([] { encode_jpeg({2, 1, 3, {1, 2, 3}}); }), "image: 2 x 1 x 3 must have as many bytes, got 3");
  EXPECT_EQ(message_of([] {
              encode_png({int64_t(1) << 40, int64_t(1) << 40, 3, {}});
            }),
            "image: must have at most 268435456 pixels, got 1099511627776 x 1099511627776");
  EXPECT_EQ(message_of([] { encode_jpeg({1, 1, 1, {7}}, 0); }), "image: quality must be 1 .. 100, got 0");
  EXPECT_EQ(message_of([] {
              encode_jpeg({1, 70000, 1, std::vector<uint8_t>(70000)});
            }),
            "image: width and height of JPEG must be <= 65500, got 1 x 70000");
  EXPECT_EQ(message_of([] { write_image("a.gif", slope(2, 2, 3)); }),
            "a.gif: the name of an image must end in .png, .jpg or .jpeg");
}

TEST(Image, a_full_disk_leaves_the_old_picture) {
  const test::TemporaryFolder folder("image");
  const std::string path = folder.file("a.png");
  write_image(path, slope(4, 4, 3));
  {
    const test::FullDisk disk(1000);
    EXPECT_TRUE(
        message_of([&] { write_image(path, noise(64, 64, 3)); }).starts_with("write: the file must be writable"));
  }
  EXPECT_EQ(read_image(path).pixels, slope(4, 4, 3).pixels);
}

}  // namespace
}  // namespace foveate::io
