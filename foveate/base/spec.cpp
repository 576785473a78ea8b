#include "foveate/base/spec.h"

#include <charconv>
#include <optional>

#include "foveate/base/error.h"

namespace foveate {
namespace {

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

// Cuts at `separator` outside brackets.
std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  size_t start = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '(') ++depth;
    if (text[i] == ')') --depth;
    require(depth >= 0, "spec: brackets must balance, got '{}'", text);
    if (text[i] == separator && depth == 0) {
      parts.push_back(trim(text.substr(start, i - start)));
      start = i + 1;
    }
  }
  require(depth == 0, "spec: brackets must balance, got '{}'", text);
  parts.push_back(trim(text.substr(start)));
  return parts;
}

std::string_view without_brackets(std::string_view text) {
  if (text.size() < 2 || text.front() != '(' || text.back() != ')') return text;
  return trim(text.substr(1, text.size() - 2));
}

// Gives `spec` to the layers that `ranges` ("0-1,29") names.
void assign(std::string_view ranges, std::string_view part, const Spec& spec,
            std::vector<std::optional<Spec>>& by_layer) {
  for (const auto [first, last] : parse_ranges(ranges, "spec: layers")) {
    require(last < std::ssize(by_layer), "spec: layer must be < {} (the model's layers), got {} in '{}'",
            by_layer.size(), last, part);
    for (int64_t layer = first; layer <= last; ++layer) {
      require(!by_layer[layer], "spec: a layer must be named once, got layer {} again in '{}'", layer, part);
      by_layer[layer] = spec;
    }
  }
}

}  // namespace

std::string Spec::text() const {
  std::string out = name;
  for (size_t i = 0; i < options.size(); ++i) {
    const auto& [key, value] = options[i];
    const bool nested = value.find_first_of(",:;=@(") != std::string::npos;
    out += fmt::format("{}{}={}", i == 0 ? ':' : ',', key, nested ? "(" + value + ")" : value);
  }
  return out;
}

Spec parse_spec(std::string_view text) {
  text = without_brackets(trim(text));
  const auto colon = text.find(':');
  Spec spec{.name = std::string(trim(text.substr(0, colon))), .options = {}};
  require(!spec.name.empty(), "spec: a mechanism needs a name, got '{}'", text);
  require(spec.name.find_first_of("=,;()@") == std::string::npos, "spec: expected name:key=value,key=value, got '{}'",
          text);
  if (colon == std::string_view::npos) return spec;
  for (const std::string_view option : split(text.substr(colon + 1), ',')) {
    const auto equals = option.find('=');
    require(equals != std::string_view::npos && equals > 0, "spec: an option must be key=value, got '{}' in '{}'",
            option, text);
    std::string key(trim(option.substr(0, equals)));
    for (const auto& [known, value] : spec.options)
      require(known != key, "spec: an option must be given once, got '{}' twice in '{}'", key, text);
    spec.options.emplace_back(std::move(key), without_brackets(trim(option.substr(equals + 1))));
  }
  return spec;
}

std::vector<NumberRange> parse_ranges(std::string_view text, std::string_view what) {
  const auto number = [&](std::string_view digits) {
    int64_t value = 0;
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    require(status == std::errc() && end == digits.data() + digits.size() && value >= 0,
            "{} must be numbers or ranges like 0-3,7, got '{}' in '{}'", what, digits, text);
    return value;
  };
  std::vector<NumberRange> ranges;
  for (const std::string_view range : split(text, ',')) {
    const auto dash = range.find('-');
    const int64_t first = number(trim(range.substr(0, dash)));
    const int64_t last = dash == std::string_view::npos ? first : number(trim(range.substr(dash + 1)));
    require(first <= last, "{} must be ranges that ascend, got {}-{} in '{}'", what, first, last, text);
    ranges.push_back({first, last});
  }
  return ranges;
}

std::vector<Spec> parse_layered_spec(std::string_view text, int64_t layers) {
  std::vector<std::optional<Spec>> by_layer(layers);
  std::optional<Spec> rest;
  for (const std::string_view part : split(text, ';')) {
    const auto pieces = split(part, '@');
    require(pieces.size() <= 2, "spec: one '@' per mechanism, got '{}'", part);
    Spec spec = parse_spec(pieces[0]);
    if (pieces.size() == 2) {
      assign(pieces[1], part, spec, by_layer);
    } else {
      require(!rest, "spec: only one mechanism may go without '@layers', got '{}' after '{}'", part,
              rest ? rest->text() : "");
      rest = std::move(spec);
    }
  }
  std::vector<Spec> specs;
  for (auto& spec : by_layer) specs.push_back(spec ? *spec : rest.value_or(Spec{.name = "dense", .options = {}}));
  return specs;
}

}  // namespace foveate
