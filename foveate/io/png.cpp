#include "foveate/io/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <new>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

// libpng reports errors by a call that must not return.  It jumps back to `run`, so that nothing which owns anything
// may begin between there and libpng's calls.
class Png {
 public:
  Png() = default;
  Png(const Png&) = delete;
  Png& operator=(const Png&) = delete;

  // False where libpng gave up; `reason` then says why.
  template <class Calls>
  bool run(const Calls& calls) {
    if (setjmp(png_jmpbuf(png))) return false;
    calls();
    return true;
  }

  static void on_error(png_structp png, png_const_charp message) {
    auto& self = *static_cast<Png*>(png_get_error_ptr(png));
    std::strncpy(self.reason, message, sizeof self.reason - 1);
    png_longjmp(png, 1);
  }
  static void on_warning(png_structp, png_const_charp) {}

  png_structp png = nullptr;
  png_infop info = nullptr;
  char reason[120] = {};
};

struct Reader : Png {
  explicit Reader(std::span<const std::byte> bytes) : left(bytes) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, static_cast<Png*>(this), on_error, on_warning);
    info = png ? png_create_info_struct(png) : nullptr;
    if (!info) throw std::bad_alloc();
    png_set_read_fn(png, this, take);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);  // nothing but pixels, palette, transparency
  }
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }

  static void take(png_structp png, png_bytep target, size_t count) {
    auto& left = static_cast<Reader*>(png_get_io_ptr(png))->left;
    if (count > left.size()) png_error(png, "the file ends early");
    std::memcpy(target, left.data(), count);
    left = left.subspan(count);
  }

  std::span<const std::byte> left;
};

struct Writer : Png {
  Writer() {
    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, static_cast<Png*>(this), on_error, on_warning);
    info = png ? png_create_info_struct(png) : nullptr;
    if (!info) throw std::bad_alloc();
    png_set_write_fn(png, this, put, nullptr);
  }
  ~Writer() { png_destroy_write_struct(&png, &info); }

  static void put(png_structp png, png_bytep data, size_t count) {
    auto& self = *static_cast<Writer*>(png_get_io_ptr(png));
    bool fits = true;
    try {
      self.bytes.append(reinterpret_cast<const char*>(data), count);
    } catch (const std::exception&) {
      fits = false;
    }
    if (!fits) png_error(png, "out of memory");
  }

  std::string bytes;
};

// RGB of RGBA, laid on white or with its alpha apart; in place.
void take_alpha(Image& image, Transparency transparency) {
  std::vector<uint8_t>& pixels = image.pixels;
  const size_t count = pixels.size() / 4;
  if (transparency == Transparency::kept) image.alpha.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const int alpha = pixels[4 * i + 3], shown = image.alpha.empty() ? alpha : 255;
    for (size_t c = 0; c < 3; ++c)
      pixels[3 * i + c] = uint8_t((pixels[4 * i + c] * shown + 255 * (255 - shown) + 127) / 255);
    if (!image.alpha.empty()) image.alpha[i] = uint8_t(alpha);
  }
  pixels.resize(3 * count);
}

// A row as it is written: pixels, each with its alpha behind it.
std::vector<uint8_t> row_of(const Image& image, int64_t y) {
  const auto width = size_t(image.width), channels = size_t(image.channels), first = size_t(y) * width;
  std::vector<uint8_t> row;
  for (size_t i = first; i < first + width; ++i) {
    row.insert(row.end(), &image.pixels[i * channels], &image.pixels[i * channels] + channels);
    row.push_back(image.alpha[i]);
  }
  return row;
}

constexpr uint64_t kMostDeflation = 1032;  // deflate makes at most so many bytes of one

}  // namespace

bool is_png(std::span<const std::byte> bytes) {
  return bytes.size() >= 8 && png_sig_cmp(reinterpret_cast<png_const_bytep>(bytes.data()), 0, 8) == 0;
}

Image decode_png(std::span<const std::byte> bytes, const std::string& path, Transparency transparency) {
  Reader reader(bytes);
  const png_structp png = reader.png;
  const png_infop info = reader.info;
  const auto run = [&](const auto& calls) {
    require(reader.run(calls), "{}: must be a whole PNG file, libpng says: {}", path, reader.reason);
  };
  run([&] {
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_read_info(png, info);
  });
  Image image{png_get_image_width(png, info), png_get_image_height(png, info), 3, {}};
  require(image.height <= kMostPixels / image.width, "{}: must have at most {} pixels, got {} x {}", path, kMostPixels,
          image.width, image.height);
  require(png_get_rowbytes(png, info) * uint64_t(image.height) / kMostDeflation <= bytes.size(),
          "{}: {} x {} pixels must fit the file, got {} bytes", path, image.width, image.height, bytes.size());
  int passes = 0;
  run([&] {
    png_set_expand(png);
    png_set_scale_16(png);
    png_set_gray_to_rgb(png);
    passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
  });
  const size_t row_bytes = png_get_rowbytes(png, info);
  image.pixels.resize(row_bytes * size_t(image.height));
  run([&] {
    for (int pass = 0; pass < passes; ++pass)
      for (int64_t y = 0; y < image.height; ++y)
        png_read_row(png, image.pixels.data() + size_t(y) * row_bytes, nullptr);
    png_read_end(png, nullptr);
  });
  if (png_get_channels(png, info) == 4) take_alpha(image, transparency);
  return image;
}

std::string encode_png(const Image& image) {
  check_image(image);
  Writer writer;
  const int kind = (image.channels == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY) |
                   (image.alpha.empty() ? 0 : PNG_COLOR_MASK_ALPHA);
  std::vector<uint8_t> row;  // owned outside of libpng's calls, which may jump
  const bool is_done = writer.run([&] {
    png_set_IHDR(writer.png, writer.info, png_uint_32(image.width), png_uint_32(image.height), 8, kind,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(writer.png, writer.info);
    for (int64_t y = 0; y < image.height; ++y) {
      if (!image.alpha.empty()) row = row_of(image, y);
      png_write_row(writer.png,
                    image.alpha.empty() ? image.pixels.data() + y * image.width * image.channels : row.data());
    }
    png_write_end(writer.png, nullptr);
  });
  require(is_done, "image: must be possible to write as PNG, libpng says: {}", writer.reason);
  return std::move(writer.bytes);
}

}  // namespace foveate::io
