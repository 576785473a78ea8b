#include "foveate/io/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"

namespace foveate::io {

using nlohmann::json;

json parse_json(std::string_view text, const std::string& source) {
  constexpr int kMostLevels = 64;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    require(depth <= kMostLevels, "{}: JSON must have <= {} levels", source, kMostLevels);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key)
      require(keys.back().insert(parsed.get<std::string>()).second, "{}: key {} must stand once in its object", source,
              printable(parsed.get<std::string>()));
    return true;
  };
  const size_t zero = text.find('\0');  // where the parser would take the text to end
  require(zero == std::string_view::npos, "{}: must be valid JSON, is not at byte {}", source, zero + 1);
  try {
    return json::parse(text, check);
  } catch (const json::parse_error& error) {
    fail("{}: must be valid JSON, is not at byte {}", source, error.byte);
  } catch (const json::out_of_range& error) {
    fail("{}: must be valid JSON, has a number that no double holds", source);
  }
}

}  // namespace foveate::io
