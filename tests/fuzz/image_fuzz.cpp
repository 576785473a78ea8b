// Fuzz target of the PNG and JPEG readers: any bytes give a picture with all its pixels, or an Error of one line.
#include "foveate/io/image.h"
#include "tests/fuzz/file_fuzz.h"
#include "tests/support/jpeg_writer.h"
#include "tests/support/png_writer.h"

namespace {

using foveate::io::Image;
using foveate::test::succeeds;

bool accepts(std::span<const std::byte> bytes) {
  return succeeds([&] {
    const Image image = foveate::io::parse_image(bytes, "fuzz");
    foveate::io::check_image(image);
    if (image.channels != 3) std::abort();
    foveate::io::check_image(foveate::io::parse_image(bytes, "fuzz", foveate::io::Transparency::kept));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  accepts(foveate::test::copy_of(data, size));
  return 0;
}

#ifndef FOVEATE_LIBFUZZER
namespace {

std::vector<std::string> seed_files() {
  using foveate::test::jpeg_file;
  using foveate::test::png_file;
  std::vector<uint8_t> pixels(40 * 24 * 4);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * i / 7);
  const std::string palette = foveate::test::png_chunk("PLTE", "abcdef") + foveate::test::png_chunk("tRNS", "a");
  std::vector<std::string> seeds = {
      foveate::io::encode_png({8, 24, 3, {pixels.begin(), pixels.begin() + 8 * 24 * 3}}),
      png_file({9, 2, 1, 3}, std::string("\0\xA5\x80\0\x50\0", 6), palette),
      png_file({2, 1, 16, 6}, std::string("\1abcdefghABCDEFGH")),
      png_file({2, 2, 8, 0, 1}, std::string("\0a\0b\0cd", 7)),
      foveate::io::encode_jpeg({30, 20, 1, {pixels.begin(), pixels.begin() + 600}}),
      jpeg_file(40, 24, pixels, {}),
      jpeg_file(40, 24, pixels, {.is_progressive = true}),
      jpeg_file(40, 24, pixels, {.is_arithmetic = true, .restart_rows = 1}),
      jpeg_file(40, 24, pixels, {.channels = 4, .given = JCS_CMYK, .stored = JCS_YCCK}),
  };
  seeds.push_back(foveate::test::with_segment(seeds[5], 1, foveate::test::exif(6, false)));
  return seeds;
}

}  // namespace

int main(int count, char** arguments) {
  return foveate::test::mutate_files(count, arguments, seed_files(),
                                     [](const std::string& bytes) { return accepts(std::as_bytes(std::span(bytes))); });
}
#endif
