// A place inside a JSON file, which its errors name: "tokenizer.json: model.vocab must be an object, got null".
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::io {

// Refers to a parsed file that must outlive it.  Every reader throws Error: not of the kind asked for, out of range.
class JsonPlace {
 public:
  JsonPlace(const nlohmann::json& value, std::string source) : value_(&value), source_(std::move(source)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& source() const { return source_; }
  std::string name() const;  // "tokenizer.json: model.vocab"

  bool is_null() const;
  bool is_string() const;
  bool is_array() const;
  bool is_object() const;

  JsonPlace at(std::string_view key) const;                   // Error if there is none
  std::optional<JsonPlace> find(std::string_view key) const;  // nothing also where it is null
  std::vector<JsonPlace> items() const;                       // of an array
  std::vector<std::pair<std::string, JsonPlace>> members() const;

  const std::string& string() const;
  std::string character() const;  // a string of one character
  bool boolean() const;
  int64_t integer(int64_t first, int64_t last) const;
  double number() const;  // finite

  // For what may be left out or null.
  bool boolean_or(std::string_view key, bool otherwise) const;
  std::string string_or(std::string_view key, std::string_view otherwise) const;

  // Error where an object has a key that is not among these.
  void allow(std::initializer_list<std::string_view> keys) const;

  // "name: rule, got value" as Error.
  [[noreturn]] void reject(std::string_view rule) const;

 private:
  JsonPlace(const nlohmann::json& value, std::string source, std::string path)
      : value_(&value), source_(std::move(source)), path_(std::move(path)) {}
  JsonPlace inside(const nlohmann::json& value, std::string_view step) const;

  const nlohmann::json* value_;
  std::string source_, path_;
};

}  // namespace foveate::io
