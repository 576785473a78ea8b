// Short query blocks run key by key: rows of a tile by the blocks of keys they list, so that rows which share nothing
// but one block of keys stand side by side in a kernel's tile.
#pragma once

#include <span>

#include "foveate/kernels/workspace.h"

namespace foveate::kernels {

// Rows of a bucket that one kernel call takes.
constexpr int kBucketRows = 192;

// Rows of a larger tile as a tile of their own: all its heads, some of its queries.
struct Subset {
  TileShape shape;
  std::vector<int> of;  // row of the larger tile
  TileRows rows;
};
Subset subset(const TileRows& rows, const TileShape& shape, std::span<const int32_t> queries);

// Calls use(list number, subset, panels) for the rows that list a block of keys within panels [first, end), blocks
// ascending; a row that lists a block twice comes twice.
template <class Use>
void for_buckets(const Tiling& tiling, int64_t group, const TileShape& shape, const TileRows& rows, int64_t first,
                 int64_t end, const Use& use) {
  std::vector<PanelRef> refs;
  const size_t most = size_t(std::max(kBucketRows / std::max(shape.heads, 1), 1));
  for (size_t list = 0; list < tiling.lists(); ++list)
    for (const Bucket& bucket : tiling.buckets(list, group, shape, first, end))
      for (size_t from = 0; from < bucket.queries.size();) {
        size_t until = from + 1;  // the same row again must find what its first time added
        while (until < bucket.queries.size() && until - from < most &&
               bucket.queries[until] > bucket.queries[until - 1])
          ++until;
        const Subset part = subset(rows, shape, std::span(bucket.queries).subspan(from, until - from));
        tiling.visit_block(list, group, bucket.block, part.rows, first, end, refs);
        if (!refs.empty()) use(part, refs);
        from = until;
      }
}

}  // namespace foveate::kernels
