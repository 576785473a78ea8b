// Text for people: UTF-8 of any origin made safe, and numbers with units.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace foveate::report {

// Valid UTF-8 without control characters: a broken byte becomes U+FFFD, a control character (also newline) a space.
std::string clean_text(std::string_view text);

// clean_text with & < > " ' as character references: safe between tags and inside quoted attributes.
std::string escape_html(std::string_view text);

// Columns that a terminal needs: 0 for combining marks, 2 for East Asian wide characters and emoji, else 1.
int display_width(std::string_view text);

// The first columns of a text with an ellipsis when it is longer than width columns.  width >= 1.
std::string shorten(std::string_view text, int width);

// A missing or non-finite number is "-" (as text) or null (as JSON).
std::string format_fixed(std::optional<double> value, int decimals);   // "0.0421"
std::string format_signed(std::optional<double> value, int decimals);  // "+0.0421"; zero has no sign
std::string format_rate(std::optional<double> per_second);             // three digits: "1,234", "81.3", "0.52"
std::string format_percent(std::optional<double> share);               // 0.125 -> "12.5%"
std::string format_ratio(std::optional<double> ratio);                 // "1.84x"
std::string format_count(std::optional<int64_t> count);                // "4,096"
std::string format_bytes(std::optional<int64_t> bytes);                // "12.3 MB", 1 MB = 1e6 bytes
nlohmann::ordered_json json_number(std::optional<double> value);

}  // namespace foveate::report
