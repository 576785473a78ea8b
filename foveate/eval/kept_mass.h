// How much of dense attention's weight a mechanism looks at.
#pragma once

#include <optional>

#include "foveate/attention/mechanism.h"

namespace foveate::eval {

// Of one layer's call: the mean over 128 rows, 32 at the end of each quarter (some mechanisms attend densely with the
// last ones), of the dense softmax's mass on the keys that the mechanism let these rows see.  It is exp(lse - dense
// lse), because both normalise the same logits; absent where the mechanism gives no lse or there is no row.
std::optional<double> kept_mass(const attention::Inputs& in, const attention::Attended& attended);

}  // namespace foveate::eval
