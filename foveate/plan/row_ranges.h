// What a rule shows, as numbers: a range of keys for each query.
#pragma once

#include "foveate/plan/plan.h"

namespace foveate {

// Query i of a head sees keys of [start, end) only: each [B|1, Hq|1, Lq] int64 with 0 <= start <= end <= keys.  The
// head axis is longer than 1 only where the rule goes by head.
struct RowRanges {
  at::Tensor start, end;
  bool whole = true;  // and sees them all; else sinks stand before a window, or documents lie in pieces
};

// Queries are counted as they come, whatever query_order says.
RowRanges row_ranges(const Rule& rule, int64_t queries, int64_t keys);

}  // namespace foveate
