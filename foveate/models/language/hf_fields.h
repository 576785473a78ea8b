// The keys of a Hugging Face config.json, checked; a key that is null counts as absent.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace foveate::models {

class HfFields {
 public:
  // The file config.json of a folder.  Throws Error: missing, not a JSON object.
  static HfFields open(const std::string& folder);
  HfFields(std::string place, nlohmann::json object) : place_(std::move(place)), object_(std::move(object)) {}

  const std::string& place() const { return place_; }  // the file, and the key of an inner object
  bool has(const std::string& key) const { return find(key) != nullptr; }
  int64_t count(const std::string& key) const;  // 1 .. 2^32
  int64_t count_or(const std::string& key, int64_t otherwise) const;
  double number(const std::string& key) const;
  double number_or(const std::string& key, double otherwise) const;
  bool truth_or(const std::string& key, bool otherwise) const;
  std::string text(const std::string& key) const;
  std::string text_or(const std::string& key, const std::string& otherwise) const;
  std::optional<std::vector<std::string>> texts(const std::string& key) const;
  std::optional<HfFields> object(const std::string& key) const;
  // Throws Error unless the key is absent or has this value: `feature` is not supported.
  void refuse_unless(const std::string& key, bool value) const;
  // The keys of `other` where this one has none.
  HfFields with_defaults(const HfFields& other) const;

 private:
  const nlohmann::json* find(const std::string& key) const;  // null if absent or null
  const nlohmann::json& get(const std::string& key) const;   // throws Error if absent

  std::string place_;
  nlohmann::json object_;
};

}  // namespace foveate::models
