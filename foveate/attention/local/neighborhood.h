// Neighborhood attention along a text: a window of keys that are `dilation` apart, shared by `stride` neighbouring
// queries.  Sources: Hassani et al., 2209.15001 (dilation), 2504.16922 (stride), on one causal axis.
#pragma once

#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// With p the query's position in its text, the keys at p, p - dilation, .., as many as lie from max(leader - kernel +
// 1, 0) to q = p / dilation, where leader = stride * (q / stride) + stride - 1: `kernel` of them for the last query of
// a stride group, fewer before.  So a row depends on its own past alone (plan/neighborhood.h's clamps_last_group =
// false), and a state holds dilation * (kernel - 1) + 1 keys however long the text gets.  stride = dilation = 1 is a
// sliding window of `kernel` keys. q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Throws Error: kernel, dilation or stride <
// 1, stride > kernel; a rule that seen_keys() does not take.
struct NeighborhoodWindow {
  static constexpr std::string_view name = "neighborhood";
  static constexpr std::string_view summary =
      "keys that are `dilation` apart, windows shared by `stride` queries (GNA)";
  static constexpr Kind kind = Kind::row;

  int64_t kernel = 512, dilation = 1, stride = 1;

  static void fields(auto& self, auto&& visit) {
    visit("kernel", self.kernel, at_least(1), "keys of a window");
    visit("dilation", self.dilation, at_least(1), "distance between the keys of a window");
    visit("stride", self.stride, at_least(1),
          "neighbouring queries of a dilation group that share a window; at most kernel");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
};

}  // namespace foveate::attention
