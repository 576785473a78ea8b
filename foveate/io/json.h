// Untrusted JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace foveate::io {

// Throws Error, naming `source` and the byte: not valid JSON or UTF-8, a key twice in an object, more than 64 levels.
nlohmann::json parse_json(std::string_view text, const std::string& source);

}  // namespace foveate::io
