// Pictures as 8-bit pixels, from and to PNG and JPEG files.  Files are untrusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace foveate::io {

struct Image {
  int64_t width = 0, height = 0, channels = 3;  // channels: 3 is RGB, 1 is grey
  std::vector<uint8_t> pixels;                  // [height, width, channels]
  std::vector<uint8_t> alpha = {};              // [height, width]; empty: nothing is transparent
};

enum class Transparency {
  on_white,  // as a viewer shows it, so that colours nobody sees do not matter
  kept,      // as `alpha`
};

// A PNG or JPEG file as RGB, known by its first bytes:
//   grey                       the same number three times
//   palette                    its colours
//   transparency               as asked for
//   16 bits a channel          rounded to 8
//   JPEG's EXIF orientation    applied: the picture stands as the camera was held
//   CMYK                       (1 - c)(1 - k) and so on; Adobe's inverted form, which files have
// Colour profiles and gamma are left alone, as loaders of data sets do.  What follows the picture's end is ignored.
// Throws Error, with the path: unreadable, neither PNG nor JPEG, cut short, damaged where pixels suffer, over
// kMostPixels or bigger than its bytes can hold, of a kind that libpng or libjpeg can not read.
Image read_image(const std::string& path, Transparency transparency = Transparency::on_white);
// The same of bytes; `path` stands in messages.
Image parse_image(std::span<const std::byte> bytes, const std::string& path,
                  Transparency transparency = Transparency::on_white);

constexpr int64_t kMostPixels = int64_t{1} << 28;

// Throws Error: width or height < 1, channels other than 1 and 3, too many pixels, `pixels` or `alpha` of another size.
// All that write begin with it.
void check_image(const Image& image);
std::string encode_png(const Image& image);
// quality: 1 .. 100; colours are kept at full resolution.  Throws Error: an image with alpha, too.
std::string encode_jpeg(const Image& image, int quality = 95);

// What the name of a file says is to be written there.  Throws Error: not .png, .jpg or .jpeg.
enum class ImageFormat { png, jpeg };
ImageFormat image_format(const std::string& path);

// As image_format says, written whole or not at all.  Throws Error: also a path that is not writable.
void write_image(const std::string& path, const Image& image);

}  // namespace foveate::io
