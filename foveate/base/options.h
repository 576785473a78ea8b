// One visitor per options struct feeds parsing, checking, listing and printing.  A struct says
//   static constexpr std::string_view name = "window";
//   static void fields(auto& self, auto&& visit) { visit("size", self.size, at_least(1), "keys before ..."); }
// with members of type int64_t, double, bool, std::string or an enum that has `enum_names(E)` beside it.
#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <ranges>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/spec.h"

namespace foveate {

// The legal values of a number; ignored for other types.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};
constexpr Range any() { return {}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range between(double low, double high) { return {.low = low, .high = high}; }

struct OptionInfo {
  std::string name, type, default_value, range, doc;  // type: int, float, bool, choice (range: a | b), text
};

namespace detail {

template <class T>
std::string option_text(const T& value) {
  if constexpr (std::is_enum_v<T>)
    return std::string(enum_names(value)[static_cast<size_t>(value)]);
  else
    return fmt::format("{}", value);
}

template <class T>
std::string type_text(const T&) {
  if constexpr (std::is_enum_v<T>) return "choice";
  if constexpr (std::is_same_v<T, bool>) return "bool";
  if constexpr (std::is_integral_v<T>) return "int";
  return std::is_floating_point_v<T> ? "float" : "text";
}

template <class T>
std::string legal_text(const T& value, Range range) {
  if constexpr (std::is_enum_v<T>)
    return fmt::format("{}", fmt::join(enum_names(value), " | "));
  else if constexpr (std::is_same_v<T, bool>)
    return "true | false";
  else if constexpr (std::is_arithmetic_v<T>) {
    const bool low = range.low > -std::numeric_limits<double>::infinity();
    const bool high = range.high < std::numeric_limits<double>::infinity();
    if (low && high) return fmt::format("{} .. {}", range.low, range.high);
    if (low) return fmt::format(">= {}", range.low);
    if (high) return fmt::format("<= {}", range.high);
    return std::is_integral_v<T> ? "any integer" : "any number";
  } else {
    return "text";
  }
}

template <class T>
void check_range(std::string_view owner, std::string_view name, const T& value, Range range) {
  if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
    require(double(value) >= range.low && double(value) <= range.high, "{}: {} must be {}, got {}", owner, name,
            legal_text(value, range), value);
}

template <class T>
bool parse_value(std::string_view text, T& value) {
  if constexpr (std::is_enum_v<T>) {
    const auto& names = enum_names(value);
    const auto found = std::ranges::find(names, text);
    if (found == std::ranges::end(names)) return false;
    value = static_cast<T>(found - std::ranges::begin(names));
    return true;
  } else if constexpr (std::is_same_v<T, bool>) {
    value = text == "true";
    return value || text == "false";
  } else if constexpr (std::is_arithmetic_v<T>) {
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    return status == std::errc() && end == text.data() + text.size();
  } else {
    value = text;
    return true;
  }
}

}  // namespace detail

// Throws Error if an option is outside its legal range.
template <class T>
void check_options(const T& options) {
  T::fields(options, [](std::string_view name, const auto& value, Range range, std::string_view) {
    detail::check_range(T::name, name, value, range);
  });
}

template <class T>
std::vector<OptionInfo> describe_options() {
  std::vector<OptionInfo> infos;
  const T defaults;
  T::fields(defaults, [&](std::string_view name, const auto& value, Range range, std::string_view doc) {
    infos.push_back({std::string(name), detail::type_text(value), detail::option_text(value),
                     detail::legal_text(value, range), std::string(doc)});
  });
  return infos;
}

// The struct with the spec's options set.  Throws Error: unknown option (names the known ones), a value that is not of
// the option's type, a value out of range.
template <class T>
T parse_options(const Spec& spec) {
  T options;
  for (const auto& [key, text] : spec.options) {
    bool known = false;
    std::string names;
    T::fields(options, [&](std::string_view name, auto& value, Range range, std::string_view) {
      names += fmt::format(" {}", name);
      if (name != key) return;
      known = true;
      require(detail::parse_value(text, value), "{}: {} must be {}, got '{}'", T::name, name,
              detail::legal_text(value, range), text);
    });
    require(known, "{}: unknown option '{}', known:{}", T::name, key, names.empty() ? " none" : names);
  }
  check_options(options);
  return options;
}

// The name and all options: for files, whose meaning must not change with the defaults.
template <class T>
Spec to_full_spec(const T& options) {
  Spec spec{.name = std::string(T::name), .options = {}};
  T::fields(options, [&](std::string_view name, const auto& value, Range, std::string_view) {
    spec.options.emplace_back(name, detail::option_text(value));
  });
  return spec;
}

// The spec that gives these options: the name and what differs from the defaults.
template <class T>
Spec to_spec(const T& options) {
  Spec spec = to_full_spec(options);
  const Spec defaults = to_full_spec(T{});
  size_t i = 0;
  std::erase_if(spec.options, [&](const auto& option) { return option == defaults.options[i++]; });
  return spec;
}

}  // namespace foveate
