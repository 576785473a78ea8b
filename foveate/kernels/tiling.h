// Cuts a problem into tiles of query rows and says which panels of keys each one visits.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "foveate/kernels/attend.h"

namespace foveate::kernels {

// Heads [head, head + heads) of one key head's group and queries [query, query + queries).
struct TileShape {
  int64_t head, query;  // head within the group
  int heads, queries;
  int rows() const { return heads * queries; }
};

// One panel of packed keys that a tile visits.
struct PanelRef {
  int32_t panel;
  Check check;
  bool same_document;  // documents need no check
};

struct Gathered {
  std::vector<int32_t> ids;  // legal keys
  Check check;
};

// A tile as the kernels see it: bounds and documents of its rows.
struct TileRows {
  std::vector<RowBounds> bounds;
  std::vector<int32_t> documents;
  std::vector<int32_t> query_ids, positions;  // where the score needs them
  std::vector<uint32_t> drop_words;
  int32_t lowest_document = 0, highest_document = 0;
  RowBounds least, greatest;  // of each bound over the rows
};

class Tiling {
 public:
  explicit Tiling(const Arguments& arguments);

  // Tiles of one (batch, key head), the same for all.
  const std::vector<TileShape>& tiles() const { return tiles_; }
  int largest_rows() const { return largest_rows_; }
  int64_t panels() const { return panels_; }
  int64_t groups() const { return a_.batch * a_.kv_heads; }
  bool gathers() const { return gathers_; }
  bool groups_agree() const;  // tiles of every (batch, key head) visit the same panels

  TileRows rows_of(int64_t group, const TileShape& tile) const;
  // Panels within [first, end) that the tile visits.
  void visit(int64_t group, const TileShape& tile, const TileRows& rows, int64_t first, int64_t end,
             std::vector<PanelRef>& to) const;
  std::vector<Gathered> gather(int64_t group, const TileShape& tile) const;

  int64_t batch_of(int64_t group) const { return group / a_.kv_heads; }
  int64_t query_head(int64_t group, int64_t head) const { return group % a_.kv_heads * repeats_ + head; }
  // Element pointer of a row of `view`, which has `a.heads` heads (queries) or key heads.
  const void* query_row(const View& view, int64_t group, const TileShape& tile, int row) const;
  const void* key_row(const View& view, int64_t group, int64_t key) const;

 private:
  void visit_rule(const TileRows& rows, int64_t batch, int64_t first, int64_t end, std::vector<PanelRef>& to) const;
  void visit_list(const ListView& list, int64_t group, const TileShape& tile, const TileRows& rows, int64_t first,
                  int64_t end, std::vector<PanelRef>& to) const;
  void add(int64_t panel, const TileRows& rows, int64_t batch, bool rule, std::vector<PanelRef>& to) const;
  int64_t list_row(const ListView& list, int64_t group, const TileShape& tile) const;

  const Arguments& a_;
  int64_t repeats_, panels_;
  bool gathers_;
  int largest_rows_ = 0;
  std::vector<TileShape> tiles_;
  std::vector<int32_t> panel_documents_;  // [batch, panels, 2] lowest and highest id
};

// Memory for packed data, not initialised: aligned to cache lines, in large pages where it is large.
class Floats64 {
 public:
  explicit Floats64(int64_t count = 0);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

}  // namespace foveate::kernels
