// PNG by libpng: what image.h says of it.
#pragma once

#include "foveate/io/image.h"

namespace foveate::io {

bool is_png(std::span<const std::byte> bytes);
Image decode_png(std::span<const std::byte> bytes, const std::string& path, Transparency transparency);

}  // namespace foveate::io
