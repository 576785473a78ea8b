// Every key that the model's own rule shows: the baseline of every comparison.
#pragma once

#include <string_view>

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

struct Dense {
  static constexpr std::string_view name = "dense";
  static constexpr std::string_view summary = "every key the model itself shows; decode alike";
  static constexpr Kind kind = Kind::row;

  static void fields(auto&, auto&&) {}
  void validate() const {}

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
};

}  // namespace foveate::attention
