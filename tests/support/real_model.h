// Real model files for tests: $FOVEATE_CACHE/models/NAME.gguf, by default ~/.cache/foveate/models/NAME.gguf.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace foveate::test {

inline std::string real_model_path(const std::string& name) {
  const char* cache = std::getenv("FOVEATE_CACHE");
  const char* home = std::getenv("HOME");
  const std::filesystem::path folder =
      cache ? std::filesystem::path(cache) : std::filesystem::path(home ? home : ".") / ".cache" / "foveate";
  return (folder / "models" / (name + ".gguf")).string();
}

// The path of the file, or nothing where it is absent: then GTEST_SKIP() << no_model("smollm2").
inline std::optional<std::string> real_model(const std::string& name) {
  const std::string path = real_model_path(name);
  return std::filesystem::exists(path) ? std::optional(path) : std::nullopt;
}

inline std::string no_model(const std::string& name) { return "no model file " + real_model_path(name); }

}  // namespace foveate::test
