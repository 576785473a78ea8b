// The one exception foveate throws for a user's mistake; the command line turns it into one line and exit status 2.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <utility>

namespace foveate {

// what() has one form: "op: rule, got values", e.g. "dhsa: budget must be >= 1, got 0".
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> message, Args&&... args) {
  throw Error(fmt::format(message, std::forward<Args>(args)...));
}

template <class... Args>
void require(bool holds, fmt::format_string<Args...> message, Args&&... args) {
  if (!holds) fail(message, std::forward<Args>(args)...);
}

}  // namespace foveate
