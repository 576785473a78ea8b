// JPEG files of kinds that foveate reads but does not write.
#pragma once

#include <cstdio>
// libjpeg's header needs the one above
#include <jpeglib.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::test {

struct JpegKind {
  int channels = 3;
  J_COLOR_SPACE given = JCS_RGB, stored = JCS_YCbCr;
  bool is_progressive = false, is_arithmetic = false;
  int chroma = 2;  // pixels a side that share a colour
  int restart_rows = 0;
};

// pixels: [height, width, channels]
inline std::string jpeg_file(unsigned width, unsigned height, std::vector<uint8_t> pixels, const JpegKind& kind) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &bytes, &size);
  info.image_width = width;
  info.image_height = height;
  info.input_components = kind.channels;
  info.in_color_space = kind.given;
  jpeg_set_defaults(&info);
  jpeg_set_colorspace(&info, kind.stored);
  jpeg_set_quality(&info, 95, TRUE);
  info.comp_info[0].h_samp_factor = info.comp_info[0].v_samp_factor = kind.chroma;
  info.arith_code = kind.is_arithmetic;
  info.restart_in_rows = kind.restart_rows;
  if (kind.is_progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  for (unsigned y = 0; y < height; ++y) {
    JSAMPROW row = pixels.data() + size_t(y) * width * size_t(kind.channels);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::string file(reinterpret_cast<const char*>(bytes), size);
  jpeg_destroy_compress(&info);
  std::free(bytes);
  return file;
}

// The file with a segment of type 0xFFE0 + `number` behind its first marker.
inline std::string with_segment(const std::string& jpeg, int number, std::string_view data) {
  const size_t size = data.size() + 2;
  return jpeg.substr(0, 2) + std::string{'\xFF', char(0xE0 + number), char(size >> 8), char(size)} + std::string(data) +
         jpeg.substr(2);
}

// EXIF of one entry, the orientation.
inline std::string exif(int orientation, bool is_little = true) {
  const std::string head("Exif\0\0", 6);
  const char o = char(orientation);
  if (is_little) return head + std::string{'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, o, 0, 0, 0};
  return head + std::string{'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, o, 0, 0};
}

}  // namespace foveate::test
