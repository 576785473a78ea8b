// Real images for tests: $FOVEATE_CACHE/images/FOLDER/NAME, by default ~/.cache/foveate/images/FOLDER/NAME.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "foveate/io/cache.h"

namespace foveate::test {

inline std::string real_image_path(const std::string& folder, const std::string& name) {
  return (std::filesystem::path(io::cache_folder()) / "images" / folder / name).string();
}

// The path of the file or folder, or nothing where it is absent: then GTEST_SKIP() << no_image("photos").
inline std::optional<std::string> real_image(const std::string& folder, const std::string& name = "") {
  const std::string path = real_image_path(folder, name);
  return std::filesystem::exists(path) ? std::optional(path) : std::nullopt;
}

inline std::string no_image(const std::string& folder, const std::string& name = "") {
  return "no " + real_image_path(folder, name) + "; fetch with: python3 tools/fetch.py " + folder;
}

}  // namespace foveate::test
