#include "foveate/attention/dense.h"

namespace foveate::attention {

Attended Dense::attend(const Inputs& in) const {
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, in.rule, in.score);
  return {attended.out, attended.lse, {{0, in.q.size(2), in.rule}}};
}

std::unique_ptr<State> Dense::make_state(const StateOptions& options) const {
  return std::make_unique<PlainState<Dense>>(*this, bound_of(options.rule), options);
}

}  // namespace foveate::attention
