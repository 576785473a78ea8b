// Parts of a call that go different ways: some key heads with their query heads, or some sequences of the batch.
#pragma once

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

// The call restricted to key heads `heads` [N] int64 (and the query heads that read them), or to sequences `sequences`
// [N] int64: of q, k, v and of all in rule and score that goes by head or batch.  Equal groups of query heads; no
// dropout, whose pattern goes by the places that change.
Inputs select_heads(const Inputs& in, const at::Tensor& heads);
Inputs select_sequences(const Inputs& in, const at::Tensor& sequences);

// The query heads that read key heads `heads`, `group` of them each: [N * group] int64.
at::Tensor readers_of(const at::Tensor& heads, int64_t group);

}  // namespace foveate::attention
