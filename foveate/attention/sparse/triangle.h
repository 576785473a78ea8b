// A window and sinks for all rows of a prompt but its last, which see everything: TriangleMix (He et al., 2507.21526).
#pragma once

#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Row i of the prompt's last `last` rows sees all that the model shows; any other the `size` latest keys and the first
// `sinks`.  Generated rows are dense; so is a call without a state of one new row.
// The paper's mix is a choice of layers: dense below a first one, as dense@0-11;triangle@12-29.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Differentiable.  A chunk of a prompt that is not its last has no dense rows.
// Throws Error: options out of range.
struct Triangle {
  static constexpr std::string_view name = "triangle";
  static constexpr std::string_view summary =
      "a window and sinks, the prompt's last rows dense (TriangleMix); decode dense";
  static constexpr Kind kind = Kind::prompt;

  int64_t size = 1024, sinks = 128, last = 128;

  static void fields(auto& self, auto&& visit) {
    visit("size", self.size, at_least(1), "keys seen before and including the query's own");
    visit("sinks", self.sinks, at_least(0), "first keys of the text that stay visible");
    visit("last", self.last, at_least(0), "last rows of the prompt that see everything");
  }
  void validate() const { check_options(*this); }

  Attended attend(const Inputs& in) const;
  Attended attend_prompt(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
};

}  // namespace foveate::attention
