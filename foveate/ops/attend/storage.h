// How the keys and values of a problem lie in memory: whole, in pages, in 8 bits.
#pragma once

#include "foveate/ops/attend/definition.h"

namespace foveate::ops {

// Throws Error unless pages and 8-bit rows fit the problem; k and v must have four axes.
void check_storage(const Problem& problem);

// The problem with k and v of the shapes and dtypes they would have whole and not quantised, but without their numbers.
Problem shaped(const Problem& problem);

// The problem with whole keys and values in the dtype of q: pages put together, 8 bits widened.
Problem whole(const Problem& problem);

}  // namespace foveate::ops
