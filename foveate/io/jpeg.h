// JPEG by libjpeg-turbo: what image.h says of it.
#pragma once

#include "foveate/io/image.h"

namespace foveate::io {

bool is_jpeg(std::span<const std::byte> bytes);
// As stored: the orientation is not applied.
struct Jpeg {
  Image image;
  int orientation = 1;  // EXIF's, 1 .. 8
};
Jpeg decode_jpeg(std::span<const std::byte> bytes, const std::string& path);

}  // namespace foveate::io
