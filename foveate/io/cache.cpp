#include "foveate/io/cache.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "foveate/base/error.h"

namespace foveate::io {
namespace {

namespace fs = std::filesystem;

// A kind of thing that can be fetched.
struct Fetched {
  std::string_view kind;
  std::string folder, ending;
  bool may_be_folder;
  std::string example;
};

std::string find(std::string_view name, const Fetched& what) {
  std::error_code ignored;
  const auto fits = [&](const fs::path& path) {
    return fs::is_regular_file(path, ignored) || (what.may_be_folder && fs::is_directory(path, ignored));
  };
  if (fits(fs::path(name))) return std::string(name);
  const fs::path folder = fs::path(cache_folder()) / what.folder;
  if (name.find('/') == std::string_view::npos)
    for (const std::string& ending : {what.ending, std::string()})
      if (const fs::path path = folder / (std::string(name) + ending); fits(path)) return path.string();
  require(!fs::is_directory(fs::path(name), ignored), "{}: a file is needed, got the folder '{}'", what.kind, name);
  std::string known;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (fs::is_directory(entry.path(), ignored) || entry.path().extension() == what.ending)
      known += fmt::format(" {}", entry.path().stem().string());
  fail("{}: no file and no fetched {} '{}'; fetched:{}; fetch with: python3 tools/fetch.py {}", what.kind, what.kind,
       name, known.empty() ? " none" : known, what.example);
}

}  // namespace

std::string cache_folder() {
  if (const char* folder = std::getenv("FOVEATE_CACHE"); folder && *folder) return folder;
  const char* home = std::getenv("HOME");
  return (fs::path(home ? home : ".") / ".cache" / "foveate").string();
}

std::string find_model(std::string_view name) { return find(name, {"model", "models", ".gguf", true, "smollm2"}); }

std::string find_text(std::string_view name) { return find(name, {"text", "texts", ".txt", false, "book"}); }

std::string find_images(std::string_view name) { return find(name, {"images", "images", "", true, "fashion-mnist"}); }

std::string read_text(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::error_code ignored;
  require(!fs::is_directory(path, ignored), "{}: a file is needed, got a folder", path);
  std::ifstream file(path, std::ios::binary);
  require(bool(file), "{}: cannot be read: {}", path, std::strerror(errno));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace foveate::io
