// The words needles are made of: city names as keys, common English nouns as values.  Order is part of the format: a
// generated set depends on it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace foveate::eval {

std::span<const std::string_view> city_names();  // distinct, one word each
inline constexpr int64_t kCommonNouns = 210;
std::span<const std::string_view> common_nouns();  // distinct, lower case, four letters or more

}  // namespace foveate::eval
