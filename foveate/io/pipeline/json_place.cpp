#include "foveate/io/pipeline/json_place.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

std::string shown(const nlohmann::json& value) {
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  return value.dump();
}

}  // namespace

std::string JsonPlace::name() const {
  // A path may run through keys of any length and kind.
  std::string path = printable(path_).substr(1);
  path.erase(path.rfind('\''), 1);  // "..." may stand behind it
  return path.empty() ? source_ : source_ + ": " + path;
}

void JsonPlace::reject(std::string_view rule) const { fail("{} {}, got {}", name(), rule, shown(*value_)); }

JsonPlace JsonPlace::inside(const nlohmann::json& value, std::string_view step) const {
  const bool is_key = !step.starts_with('[');
  return {value, source_, path_ + (path_.empty() || !is_key ? "" : ".") + std::string(step)};
}

bool JsonPlace::is_null() const { return value_->is_null(); }
bool JsonPlace::is_string() const { return value_->is_string(); }
bool JsonPlace::is_array() const { return value_->is_array(); }
bool JsonPlace::is_object() const { return value_->is_object(); }

JsonPlace JsonPlace::at(std::string_view key) const {
  if (!is_object()) reject("must be an object");
  const auto found = value_->find(key);
  require(found != value_->end(), "{}: key '{}' must be there, is not", name(), key);
  return inside(*found, key);
}

std::optional<JsonPlace> JsonPlace::find(std::string_view key) const {
  if (!is_object()) reject("must be an object");
  const auto found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return inside(*found, key);
}

std::vector<JsonPlace> JsonPlace::items() const {
  if (!is_array()) reject("must be a list");
  std::vector<JsonPlace> places;
  places.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) places.push_back(inside((*value_)[i], fmt::format("[{}]", i)));
  return places;
}

std::vector<std::pair<std::string, JsonPlace>> JsonPlace::members() const {
  if (!is_object()) reject("must be an object");
  std::vector<std::pair<std::string, JsonPlace>> places;
  places.reserve(value_->size());
  for (const auto& [key, value] : value_->items()) places.emplace_back(key, inside(value, key));
  return places;
}

const std::string& JsonPlace::string() const {
  if (!is_string()) reject("must be a string");
  return value_->get_ref<const std::string&>();
}

std::string JsonPlace::character() const {
  const std::string& text = string();
  if (text.empty() || character_at(text, 0).length != text.size()) reject("must be one character");
  return text;
}

bool JsonPlace::boolean() const {
  if (!value_->is_boolean()) reject("must be true or false");
  return value_->get<bool>();
}

int64_t JsonPlace::integer(int64_t first, int64_t last) const {
  const bool fits =
      value_->is_number_unsigned() ? value_->get<uint64_t>() <= uint64_t(INT64_MAX) : value_->is_number_integer();
  if (!fits || value_->get<int64_t>() < first || value_->get<int64_t>() > last)
    reject(fmt::format("must be a whole number in {} .. {}", first, last));
  return value_->get<int64_t>();
}

double JsonPlace::number() const {
  if (!value_->is_number() || !std::isfinite(value_->get<double>())) reject("must be a finite number");
  return value_->get<double>();
}

bool JsonPlace::boolean_or(std::string_view key, bool otherwise) const {
  const auto place = find(key);
  return place ? place->boolean() : otherwise;
}

std::string JsonPlace::string_or(std::string_view key, std::string_view otherwise) const {
  const auto place = find(key);
  return place ? place->string() : std::string(otherwise);
}

void JsonPlace::allow(std::initializer_list<std::string_view> keys) const {
  if (!is_object()) reject("must be an object");
  for (const auto& [key, value] : value_->items())
    require(std::ranges::find(keys, key) != keys.end(), "{} must have only the keys {}; got {}", name(),
            fmt::join(keys, " "), printable(key));
}

}  // namespace foveate::io
