// Lines of an attention map: columns (keys that many queries look at) and diagonals (distances at which queries look),
// by the attention that some queries, mostly the last ones of a prompt, give them.
#pragma once

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

struct LineSums {
  at::Tensor columns;    // [B, Hq, Lk] fp32 (fp64 for fp64): the attention each key gets
  at::Tensor distances;  // [B, Hq, Lk]: the attention to keys 0, 1, .. before the query
  at::Tensor first_key;  // [B|1] int64: of the last query's text
};

// Summed over the rows of `asking`, at least one, which read one text; lse [B, Hq, rows] is theirs over all that the
// rule shows.  No L x L.  Throws Error, which names `owner`: padding behind a text, which would choose its lines, and
// as shown_keys().
LineSums line_sums(const Inputs& asking, const at::Tensor& lse, std::string_view owner);

// The same of the last `count` rows of a call, or of all where there are fewer.
LineSums line_sums_of_last(const Inputs& in, int64_t count, std::string_view owner);

}  // namespace foveate::attention
