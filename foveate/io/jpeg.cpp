#include "foveate/io/jpeg.h"

#include <cstdio>
// libjpeg's header needs the one above
#include <jerror.h>
#include <jpeglib.h>

#include <csetjmp>
#include <cstdlib>
#include <new>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

// libjpeg reports errors by a call that must not return.  It jumps back to `run`, so that nothing which owns anything
// may begin between there and libjpeg's calls.
struct ErrorHandler {
  jpeg_error_mgr manager;  // first, so that libjpeg's pointer to it is one to this
  std::jmp_buf jump;
  char reason[JMSG_LENGTH_MAX] = {};

  ErrorHandler() {
    jpeg_std_error(&manager);
    manager.error_exit = give_up;
    manager.emit_message = [](j_common_ptr info, int level) {
      const int code = info->err->msg_code;  // cameras write these, and the pixels are right
      const bool is_harmless = code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM;
      if (level < 0 && !is_harmless) give_up(info);
    };
    manager.output_message = [](j_common_ptr) {};
  }
  ErrorHandler(const ErrorHandler&) = delete;
  ErrorHandler& operator=(const ErrorHandler&) = delete;

  static void give_up(j_common_ptr info) {
    auto& self = *reinterpret_cast<ErrorHandler*>(info->err);
    info->err->format_message(info, self.reason);
    std::longjmp(self.jump, 1);
  }
  // False where libjpeg gave up; `reason` then says why.
  template <class Calls>
  bool run(const Calls& calls) {
    if (setjmp(jump)) return false;
    calls();
    return true;
  }
};

struct Reader {
  Reader() {
    info.err = &errors.manager;
    if (!errors.run([&] { jpeg_create_decompress(&info); })) throw std::bad_alloc();
  }
  ~Reader() { jpeg_destroy_decompress(&info); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  ErrorHandler errors;
  jpeg_decompress_struct info{};
};

// The orientation in EXIF's first directory (a TIFF file behind "Exif\0\0"); 1 where it says none or is damaged.
int exif_orientation(std::span<const uint8_t> tiff) {
  constexpr uint32_t kOrientation = 0x0112, kShort = 3;
  const bool is_little = !tiff.empty() && tiff[0] == 'I';
  const auto number = [&](uint64_t at, uint64_t bytes) {  // 0 behind the end
    uint32_t value = 0;
    for (uint64_t i = 0; i < bytes; ++i) {
      const uint64_t place = at + (is_little ? bytes - 1 - i : i);
      value = value << 8 | (place < tiff.size() ? tiff[place] : 0);
    }
    return value;
  };
  const uint64_t directory = number(4, 4), entries = number(directory, 2);
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t entry = directory + 2 + 12 * i;
    if (number(entry, 2) != kOrientation || number(entry + 2, 2) != kShort) continue;
    const uint32_t value = number(entry + 8, 2);
    return value >= 1 && value <= 8 ? int(value) : 1;
  }
  return 1;
}

int orientation_of(const jpeg_decompress_struct& info) {
  constexpr std::string_view kExif("Exif\0\0", 6);
  for (const jpeg_marker_struct* marker = info.marker_list; marker; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (marker->marker == JPEG_APP0 + 1 && data.starts_with(kExif))
      return exif_orientation({marker->data + kExif.size(), marker->data_length - kExif.size()});
  }
  return 1;
}

// RGB of CMYK as files have it, 255 = no ink; in place.
void mix_inks(std::vector<uint8_t>& pixels) {
  const size_t count = pixels.size() / 4;
  for (size_t i = 0; i < count; ++i) {
    const int black = pixels[4 * i + 3];
    for (size_t c = 0; c < 3; ++c) pixels[3 * i + c] = uint8_t((pixels[4 * i + c] * black + 127) / 255);
  }
  pixels.resize(3 * count);
}

struct Writer {
  Writer() {
    info.err = &errors.manager;
    if (!errors.run([&] { jpeg_create_compress(&info); })) throw std::bad_alloc();
  }
  ~Writer() {
    jpeg_destroy_compress(&info);
    std::free(bytes);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  ErrorHandler errors;
  jpeg_compress_struct info{};
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
};

}  // namespace

bool is_jpeg(std::span<const std::byte> bytes) {
  return bytes.size() >= 3 && bytes[0] == std::byte{0xFF} && bytes[1] == std::byte{0xD8} && bytes[2] == std::byte{0xFF};
}

Jpeg decode_jpeg(std::span<const std::byte> bytes, const std::string& path) {
  Reader reader;
  jpeg_decompress_struct& info = reader.info;
  const auto run = [&](const auto& calls) {
    require(reader.errors.run(calls), "{}: must be a whole JPEG file, libjpeg says: {}", path, reader.errors.reason);
  };
  run([&] {
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
  });
  Jpeg jpeg{{info.image_width, info.image_height, 3, {}}, orientation_of(info)};
  Image& image = jpeg.image;
  require(image.height <= kMostPixels / image.width, "{}: must have at most {} pixels, got {} x {}", path, kMostPixels,
          image.width, image.height);
  // Every 8 x 8 block takes a bit or more, but for arithmetic codes.
  require(info.arith_code || uint64_t(image.width) * uint64_t(image.height) / 512 <= bytes.size(),
          "{}: {} x {} pixels must fit the file, got {} bytes", path, image.width, image.height, bytes.size());
  const bool has_inks = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.out_color_space = has_inks ? JCS_CMYK : JCS_RGB;
  const size_t row_bytes = size_t(image.width) * (has_inks ? 4 : 3);
  image.pixels.resize(row_bytes * size_t(image.height));
  run([&] {
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = image.pixels.data() + info.output_scanline * row_bytes;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
  });
  if (has_inks) mix_inks(image.pixels);
  return jpeg;
}

std::string encode_jpeg(const Image& image, int quality) {
  check_image(image);
  require(image.alpha.empty(), "image: JPEG must not have alpha, got {} bytes of it", image.alpha.size());
  require(quality >= 1 && quality <= 100, "image: quality must be 1 .. 100, got {}", quality);
  require(image.width <= JPEG_MAX_DIMENSION && image.height <= JPEG_MAX_DIMENSION,
          "image: width and height of JPEG must be <= {}, got {} x {}", JPEG_MAX_DIMENSION, image.width, image.height);
  Writer writer;
  jpeg_compress_struct& info = writer.info;
  const bool is_done = writer.errors.run([&] {
    jpeg_mem_dest(&info, &writer.bytes, &writer.size);
    info.image_width = JDIMENSION(image.width);
    info.image_height = JDIMENSION(image.height);
    info.input_components = int(image.channels);
    info.in_color_space = image.channels == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, quality, TRUE);
    info.comp_info[0].h_samp_factor = info.comp_info[0].v_samp_factor = 1;
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < info.image_height) {
      const int64_t start = int64_t(info.next_scanline) * image.width * image.channels;
      JSAMPROW row = const_cast<JSAMPROW>(image.pixels.data() + start);
      jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
  });
  require(is_done, "image: must be possible to write as JPEG, libjpeg says: {}", writer.errors.reason);
  return {reinterpret_cast<const char*>(writer.bytes), writer.size};
}

}  // namespace foveate::io
