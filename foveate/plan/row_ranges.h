// What a rule shows, as numbers: where it is one range of keys for each query.
#pragma once

#include <optional>

#include "foveate/plan/plan.h"

namespace foveate {

// Query i of a head sees keys [start, end): each [B|1, Hq|1, Lq] int64 with 0 <= start <= end <= keys.  The head axis
// is longer than 1 only where the rule goes by head.
struct RowRanges {
  at::Tensor start, end;
};

// The range of keys that the rule shows each query.  Unset: some query sees more than one, because of sinks before a
// window or documents whose keys do not lie together.  Queries are counted as they come, whatever query_order says.
std::optional<RowRanges> row_ranges(const Rule& rule, int64_t queries, int64_t keys);

}  // namespace foveate
