// Pictures for the Python tests, as PPM: `read FILE` to standard output, `write FILE` from standard input.
#include <cstdio>
#include <string>

#include "foveate/base/error.h"
#include "foveate/io/image.h"

namespace {

using foveate::require;
using foveate::io::Image;

void read(const std::string& path) {
  const Image image = foveate::io::read_image(path);
  std::printf("P6 %lld %lld 255\n", (long long)image.width, (long long)image.height);
  std::fwrite(image.pixels.data(), 1, image.pixels.size(), stdout);
}

void write(const std::string& path) {
  long long width = 0, height = 0;
  require(std::scanf("P6 %lld %lld 255", &width, &height) == 2, "image_tool: PPM is needed");
  std::getchar();
  Image image{width, height, 3, std::vector<uint8_t>(size_t(width * height * 3))};
  require(std::fread(image.pixels.data(), 1, image.pixels.size(), stdin) == image.pixels.size(),
          "image_tool: PPM is cut short");
  foveate::io::write_image(path, image);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    const std::string action = count == 3 ? arguments[1] : "";
    require(action == "read" || action == "write", "image_tool: read FILE or write FILE, got {} arguments", count - 1);
    (action == "read" ? read : write)(arguments[2]);
  } catch (const foveate::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
