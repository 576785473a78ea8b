#include "foveate/models/language/hf_fields.h"

#include <cmath>
#include <filesystem>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/json.h"

namespace foveate::models {

using nlohmann::json;

HfFields HfFields::open(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "config.json").string();
  const io::MappedFile file(path);
  constexpr size_t kMostBytes = size_t{1} << 24;  // JSON takes many times its bytes when it is read
  require(file.bytes().size() <= kMostBytes, "{}: must have <= {} bytes, got {}", path, kMostBytes,
          file.bytes().size());
  json object = io::parse_json(io::as_text(file.bytes()), path);
  require(object.is_object(), "{}: must be an object", path);
  return {path, std::move(object)};
}

const json* HfFields::find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json& HfFields::get(const std::string& key) const {
  const json* found = find(key);
  require(found != nullptr, "{}: key '{}' is missing", place_, key);
  return *found;
}

int64_t HfFields::count(const std::string& key) const {
  const json& value = get(key);
  require(value.is_number_integer() && value > 0 && value <= (int64_t{1} << 32),
          "{}: key '{}' must be 1 .. 2^32, got {}", place_, key, io::printable(value.dump()));
  return value.get<int64_t>();
}

double HfFields::number(const std::string& key) const {
  const json& value = get(key);
  require(value.is_number() && std::isfinite(value.get<double>()), "{}: key '{}' must be a number, got {}", place_, key,
          io::printable(value.dump()));
  return value.get<double>();
}

std::string HfFields::text(const std::string& key) const {
  const json& value = get(key);
  require(value.is_string(), "{}: key '{}' must be text, got {}", place_, key, io::printable(value.dump()));
  return value.get<std::string>();
}

bool HfFields::truth_or(const std::string& key, bool otherwise) const {
  const json* value = find(key);
  if (!value) return otherwise;
  require(value->is_boolean(), "{}: key '{}' must be true or false, got {}", place_, key, io::printable(value->dump()));
  return value->get<bool>();
}

int64_t HfFields::count_or(const std::string& key, int64_t otherwise) const {
  return has(key) ? count(key) : otherwise;
}
double HfFields::number_or(const std::string& key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}
std::string HfFields::text_or(const std::string& key, const std::string& otherwise) const {
  return has(key) ? text(key) : otherwise;
}

std::optional<std::vector<std::string>> HfFields::texts(const std::string& key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  require(value->is_array(), "{}: key '{}' must be an array", place_, key);
  std::vector<std::string> list;
  for (const json& item : *value) {
    require(item.is_string(), "{}: key '{}' must hold texts, got {}", place_, key, io::printable(item.dump()));
    list.push_back(item.get<std::string>());
  }
  return list;
}

std::optional<HfFields> HfFields::object(const std::string& key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  require(value->is_object(), "{}: key '{}' must be an object, got {}", place_, key, io::printable(value->dump()));
  return HfFields(place_ + ": " + key, *value);
}

void HfFields::refuse_unless(const std::string& key, bool value) const {
  require(truth_or(key, value) == value, "{}: '{}' must be {}: the other is not supported", place_, key, value);
}

HfFields HfFields::with_defaults(const HfFields& other) const {
  HfFields merged = *this;
  for (const auto& [key, value] : other.object_.items())
    if (!merged.find(key)) merged.object_[key] = value;
  return merged;
}

}  // namespace foveate::models
