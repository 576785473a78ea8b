#include "foveate/kernels/buckets.h"

namespace foveate::kernels {

Subset subset(const TileRows& rows, const TileShape& shape, std::span<const int32_t> queries) {
  Subset s{{shape.head, shape.query, shape.heads, int(queries.size())}, {}, {}};
  s.of.reserve(size_t(s.shape.rows()));
  for (int head = 0; head < shape.heads; ++head)
    for (const int32_t query : queries) s.of.push_back(head * shape.queries + query);
  const auto take = [&](const auto& from, auto& to, size_t each) {
    if (from.empty()) return;
    to.reserve(s.of.size() * each);
    for (const int row : s.of)
      for (size_t i = 0; i < each; ++i) to.push_back(from[size_t(row) * each + i]);
  };
  take(rows.bounds, s.rows.bounds, 1);
  take(rows.documents, s.rows.documents, 1);
  take(rows.query_ids, s.rows.query_ids, 1);
  take(rows.positions, s.rows.positions, 1);
  take(rows.drop_words, s.rows.drop_words, 2);
  s.rows.summarise();
  return s;
}

}  // namespace foveate::kernels
