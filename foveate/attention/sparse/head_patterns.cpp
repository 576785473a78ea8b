#include "foveate/attention/sparse/head_patterns.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/json.h"

namespace foveate::attention {
namespace {

using nlohmann::json;
using Kind = HeadPattern::Kind;

int64_t count_of(const json& value, const std::string& place, std::string_view name) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const bool whole = value.is_number_integer();
  const int64_t count =
      whole && (!value.is_number_unsigned() || value.get<uint64_t>() < uint64_t(kMost)) ? value.get<int64_t>() : 0;
  require(count >= 1 && count < kMost, "{}: {} must be a whole number >= 1, got {}", place, name,
          io::printable(value.dump()));
  return count;
}

HeadPattern pattern_of(const json& entry, const std::string& place) {
  require(entry.is_array() && entry.size() == 4 && entry[0].is_string() && entry[3].is_number(),
          "{}: must be [kind, vertical, slash, score]", place);
  const std::string name = entry[0].get<std::string>();
  const auto names = enum_names(Kind{});
  size_t kind = 0;
  while (kind < names.size() && names[kind] != name) ++kind;
  require(kind < names.size(), "{}: kind must be {}, got {}", place, fmt::join(names, " or "), io::printable(name));
  return {.vertical = count_of(entry[1], place, "vertical"),
          .slash = count_of(entry[2], place, "slash"),
          .kind = Kind(kind),
          .score = entry[3].get<double>()};
}

int64_t head_of(const std::string& key, const std::string& source) {
  int64_t head = -1;
  const auto [end, status] = std::from_chars(key.data(), key.data() + key.size(), head);
  require(status == std::errc() && end == key.data() + key.size() && head >= 0 && key == std::to_string(head),
          "{}: heads must be numbers, got {}", source, io::printable(key));
  return head;
}

}  // namespace

std::vector<LayerPatterns> parse_head_patterns(std::string_view text, const std::string& source) {
  const json all = io::parse_json(text, source);
  require(all.is_array() && !all.empty(), "{}: must be a list with an object for each layer", source);
  std::vector<LayerPatterns> layers;
  for (const json& of_layer : all) {
    const std::string layer = fmt::format("{}: layer {}", source, layers.size());
    require(of_layer.is_object(), "{} must be an object of heads", layer);
    LayerPatterns& heads = layers.emplace_back();
    for (const auto& [key, entry] : of_layer.items())
      heads.emplace(head_of(key, layer), pattern_of(entry, fmt::format("{}, head {}", layer, io::printable(key))));
  }
  return layers;
}

std::vector<LayerPatterns> read_head_patterns(const std::string& path) {
  const io::MappedFile file(path);
  return parse_head_patterns(io::as_text(file.bytes()), path);
}

std::string head_patterns_as_json(const std::vector<LayerPatterns>& layers) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const LayerPatterns& heads : layers) {
    nlohmann::ordered_json of_layer = nlohmann::ordered_json::object();
    for (const auto& [head, p] : heads)
      of_layer[std::to_string(head)] =
          nlohmann::ordered_json::array({enum_names(p.kind)[size_t(p.kind)], p.vertical, p.slash, p.score});
    all.push_back(of_layer);
  }
  return all.dump();
}

}  // namespace foveate::attention
