#include "foveate/io/image.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "foveate/base/write_file.h"
#include "foveate/io/bytes.h"
#include "foveate/io/jpeg.h"
#include "foveate/io/png.h"

namespace foveate::io {
namespace {

// The picture as it stands upright.
Image upright(Image stored, int orientation) {
  if (orientation == 1) return stored;
  const int64_t w = stored.width, h = stored.height;
  const bool is_turned = orientation >= 5;
  Image image{is_turned ? h : w, is_turned ? w : h, 3, std::vector<uint8_t>(stored.pixels.size())};
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  uint8_t* target = image.pixels.data();
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t x = 0; x < image.width; ++x, target += 3) {
      const int64_t row = is_turned ? x : y, column = is_turned ? y : x;  // of what is stored
      const int64_t at = (from_bottom ? h - 1 - row : row) * w + (from_right ? w - 1 - column : column);
      std::copy_n(stored.pixels.data() + 3 * at, 3, target);
    }
  return image;
}

}  // namespace

void check_image(const Image& image) {
  const auto [w, h, c] = std::array{image.width, image.height, image.channels};
  require(w >= 1 && h >= 1 && (c == 1 || c == 3),
          "image: width and height must be >= 1, channels 1 or 3, got {} x {} x {}", w, h, c);
  require(h <= kMostPixels / w, "image: must have at most {} pixels, got {} x {}", kMostPixels, w, h);
  require(image.pixels.size() == size_t(w * h * c), "image: {} x {} x {} must have as many bytes, got {}", w, h, c,
          image.pixels.size());
  require(image.alpha.empty() || image.alpha.size() == size_t(w * h), "image: alpha must have {} x {} bytes, got {}", w,
          h, image.alpha.size());
}

Image parse_image(std::span<const std::byte> bytes, const std::string& path, Transparency transparency) {
  if (is_png(bytes)) return decode_png(bytes, path, transparency);
  if (is_jpeg(bytes)) {
    Jpeg jpeg = decode_jpeg(bytes, path);
    return upright(std::move(jpeg.image), jpeg.orientation);
  }
  fail("{}: must be a PNG or JPEG file, got {} bytes that start with {}", path, bytes.size(),
       printable(as_text(bytes.first(std::min<size_t>(bytes.size(), 8)))));
}

Image read_image(const std::string& path, Transparency transparency) {
  return parse_image(MappedFile(path).bytes(), path, transparency);
}

ImageFormat image_format(const std::string& path) {
  std::string ending = std::filesystem::path(path).extension().string();
  for (char& c : ending) c = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
  const bool is_jpeg_name = ending == ".jpg" || ending == ".jpeg";
  require(is_jpeg_name || ending == ".png", "{}: the name of an image must end in .png, .jpg or .jpeg", path);
  return is_jpeg_name ? ImageFormat::jpeg : ImageFormat::png;
}

void write_image(const std::string& path, const Image& image) {
  write_file_atomically(path, image_format(path) == ImageFormat::jpeg ? encode_jpeg(image) : encode_png(image));
}

}  // namespace foveate::io
