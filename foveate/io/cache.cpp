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

std::string find(std::string_view name, std::string_view kind, const std::string& folder, const std::string& ending) {
  std::error_code ignored;
  if (fs::is_regular_file(fs::path(name), ignored)) return std::string(name);
  require(!fs::is_directory(fs::path(name), ignored), "{}: a file is needed, got the folder '{}'", kind, name);
  const fs::path fetched = fs::path(cache_folder()) / folder / (std::string(name) + ending);
  if (name.find('/') == std::string_view::npos && fs::is_regular_file(fetched, ignored)) return fetched.string();
  std::string known;
  for (const auto& entry : fs::directory_iterator(fetched.parent_path(), ignored))
    if (entry.path().extension() == ending) known += fmt::format(" {}", entry.path().stem().string());
  fail("{}: no file and no fetched {} '{}'; fetched:{}; fetch with: python3 tools/fetch.py {}", kind, kind, name,
       known.empty() ? " none" : known, kind == "model" ? "smollm2" : "book");
}

}  // namespace

std::string cache_folder() {
  if (const char* folder = std::getenv("FOVEATE_CACHE"); folder && *folder) return folder;
  const char* home = std::getenv("HOME");
  return (fs::path(home ? home : ".") / ".cache" / "foveate").string();
}

std::string find_model(std::string_view name) { return find(name, "model", "models", ".gguf"); }

std::string find_text(std::string_view name) { return find(name, "text", "texts", ".txt"); }

std::string read_text(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::error_code ignored;
  require(!fs::is_directory(path, ignored), "{}: a file is needed, got a folder", path);
  std::ifstream file(path, std::ios::binary);
  require(bool(file), "{}: cannot be read: {}", path, std::strerror(errno));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace foveate::io
