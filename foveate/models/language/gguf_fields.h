// The keys of one architecture in a GGUF file, checked: "{architecture}.{key}".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/io/gguf.h"

namespace foveate::models {

// Throws Error where a key is missing or out of range, naming file and key.
class GgufFields {
 public:
  GgufFields(const io::Gguf& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  int64_t count(std::string_view key) const {
    const auto value = file_.integer(full(key));
    require(value.has_value(), "{}: key '{}' is missing", file_.path(), full(key));
    return checked(key, *value);
  }
  int64_t count_or(std::string_view key, int64_t otherwise) const {
    const auto value = file_.integer(full(key));
    return value ? checked(key, *value) : otherwise;
  }
  double number(std::string_view key) const {
    const auto value = file_.number(full(key));
    require(value.has_value(), "{}: key '{}' is missing", file_.path(), full(key));
    return *value;
  }
  double number_or(std::string_view key, double otherwise) const { return file_.number(full(key)).value_or(otherwise); }
  bool truth_or(std::string_view key, bool otherwise) const { return file_.boolean(full(key)).value_or(otherwise); }
  std::string text_or(std::string_view key, const std::string& otherwise) const {
    return file_.string(full(key)).value_or(otherwise);
  }
  const std::string& path() const { return file_.path(); }

 private:
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  int64_t checked(std::string_view key, int64_t value) const {
    require(value >= 1 && value <= (int64_t{1} << 32), "{}: key '{}' must be 1 .. 2^32, got {}", file_.path(),
            full(key), value);
    return value;
  }

  const io::Gguf& file_;
  std::string prefix_;
};

}  // namespace foveate::models
