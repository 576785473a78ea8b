#include "foveate/base/sweep.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "foveate/base/error.h"

namespace foveate {
namespace {

template <class Number>
bool parse(std::string_view text, Number& number) {
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  return status == std::errc() && end == text.data() + text.size();
}

template <class Number>
void add_doubled(Number low, Number high, std::vector<std::string>& values) {
  values.push_back(fmt::format("{}", low));
  for (Number value = low; value < high - value; values.push_back(fmt::format("{}", value))) value *= 2;
  values.push_back(fmt::format("{}", high));
}

// "256..4096" doubled, or a single value.
void add_values(std::string_view item, std::vector<std::string>& values) {
  const size_t dots = item.find("..");
  if (dots == std::string_view::npos) {
    values.emplace_back(item);
    return;
  }
  const std::string_view from = item.substr(0, dots), to = item.substr(dots + 2);
  int64_t whole_low = 0, whole_high = 0;
  double low = 0, high = 0;
  require(parse(from, low) && parse(to, high) && low > 0 && low < high && std::isfinite(high),
          "sweep: a range must be two ascending numbers above 0, like 256..4096, got '{}'", item);
  if (parse(from, whole_low) && parse(to, whole_high))
    add_doubled(whole_low, whole_high, values);
  else
    add_doubled(low, high, values);
}

}  // namespace

Sweep parse_sweep(std::string_view text) {
  Sweep sweep;
  std::string_view before, after;
  for (size_t equals = text.find('='); equals != std::string_view::npos; equals = text.find('=', equals + 1)) {
    const size_t start = equals + 1;
    size_t end = std::min(text.find_first_of(",;)@(", start), text.size());
    // What follows a comma and has no '=' of its own is one more value.
    while (end < text.size() && text[end] == ',') {
      const size_t next = std::min(text.find_first_of(",;)@(=:", end + 1), text.size());
      if (next < text.size() && (text[next] == '=' || text[next] == ':')) break;
      end = next;
    }
    const std::string_view list = text.substr(start, end - start);
    if (list.find("..") == std::string_view::npos && list.find(',') == std::string_view::npos) continue;
    require(sweep.values.empty(), "sweep: one option may have several values, got a second one in '{}'", text);
    const size_t name = text.find_last_of(",:;(", equals);
    sweep.option = text.substr(name + 1, equals - name - 1);
    before = text.substr(0, start), after = text.substr(end);
    for (size_t at = 0; at <= list.size();) {
      const size_t comma = std::min(list.find(',', at), list.size());
      add_values(list.substr(at, comma - at), sweep.values);
      at = comma + 1;
    }
  }
  require(!sweep.values.empty(),
          "sweep: one option needs several values, like budget=256..4096 or budget=256,512, got '{}'", text);
  for (size_t i = 0; i < sweep.values.size(); ++i) {
    require(std::find(sweep.values.begin(), sweep.values.begin() + int64_t(i), sweep.values[i]) ==
                sweep.values.begin() + int64_t(i),
            "sweep: a value may stand once, got {} twice in '{}'", sweep.values[i], text);
    sweep.specs.push_back(fmt::format("{}{}{}", before, sweep.values[i], after));
  }
  return sweep;
}

}  // namespace foveate
