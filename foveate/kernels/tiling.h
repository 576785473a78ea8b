// Cuts a problem into tiles of query rows and says which panels of keys each one visits.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "foveate/kernels/attend.h"

namespace foveate::kernels {

// Tiles, or parts of the panels of a tile, that are enough for threads to share; and the fewest panels of a part.
constexpr int64_t kEnoughTiles = 16, kFewestPanels = 16;

// Heads [head, head + heads) of one group and rows [query, query + queries) of the plan.
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
  RowBounds least, greatest;  // of each bound over the rows that are queries; others have high -1
  void clear();
  void summarise();  // sets what stands for all rows from the rows
};

// Rows that list one block of keys.
struct Bucket {
  int64_t block;
  std::vector<int32_t> queries;  // of the tile, ascending
};

class Tiling {
 public:
  explicit Tiling(const Arguments& arguments);

  // Tiles of a group (batch, head group).  All groups have as many; where a group has fewer heads, some are empty.
  int64_t tiles() const { return int64_t(tiles_.size()); }
  TileShape tile(int64_t group, int64_t index) const;
  int largest_rows() const { return largest_rows_; }
  // Into how many parts a tile's panels are cut: forward alone, where there are few tiles and many panels.
  int64_t parts() const;
  int kernel_rows() const;  // most rows of a kernel call
  int64_t panels() const { return panels_; }
  int64_t groups() const { return a_.batch * int64_t(head_groups_.size()); }
  bool packs() const { return packs_; }      // whole panels are packed once and shared
  bool gathers() const { return gathers_; }  // keys are gathered for each tile
  // Query blocks too short to fill a kernel's tile: a tile is a range of them, run bucket by bucket.
  bool bucketed() const { return bucketed_; }
  bool groups_agree() const;  // tiles of every group visit the same panels

  void rows_of(int64_t group, const TileShape& tile, TileRows& to) const;  // `to` only to keep its memory
  // Panels within [first, end) that the tile visits.
  void visit(int64_t group, const TileShape& tile, const TileRows& rows, int64_t first, int64_t end,
             std::vector<PanelRef>& to) const;
  std::vector<Gathered> gather(int64_t group, const TileShape& tile) const;
  int64_t gathered_panels(int64_t group, const TileShape& tile) const;  // of all lists
  // The rows of a tile by the blocks of keys they list, for blocks that reach into panels [first, end).
  size_t lists() const { return a_.lists.size(); }
  std::vector<Bucket> buckets(size_t list, int64_t group, const TileShape& tile, int64_t first, int64_t end) const;
  void visit_block(size_t list, int64_t group, int64_t block, const TileRows& rows, int64_t first, int64_t end,
                   std::vector<PanelRef>& to) const;

  int64_t batch_of(int64_t group) const { return group / int64_t(head_groups_.size()); }
  int64_t query_head(int64_t group, int64_t head) const { return head_group(group).heads[size_t(head)]; }
  // Which query a row of a tile is, -1 none; and its place in [B, Hq, Lq].
  int64_t query(int64_t group, const TileShape& tile, int row) const;
  int64_t place(int64_t group, const TileShape& tile, int row) const;
  // Calls use(row, its query head, its query) for the rows that are queries, in order.
  template <class Use>
  void for_queries(int64_t group, const TileShape& tile, const Use& use) const {
    const int64_t batch = batch_of(group);
    for (int head = 0, row = 0; head < tile.heads; ++head) {
      const int64_t of = query_head(group, tile.head + head);
      const RowNumbers& order = a_.query_order;
      const int64_t* ids = order.data ? order.data + batch * order.batch + of * order.head : nullptr;
      for (int64_t n = tile.query; n < tile.query + tile.queries; ++n, ++row)
        if (const int64_t query = ids ? ids[n] : n; query >= 0) use(row, of, query);
    }
  }
  // A row of `view`: of a query-side tensor (null where a row is none), of k, of v, of d_k or d_v.
  const void* query_row(const View& view, int64_t group, const TileShape& tile, int row) const;
  const void* key_row(int64_t group, int64_t key) const { return key_at(a_.k, group, head_group(group).key_head, key); }
  const void* value_row(int64_t group, int64_t key) const {
    return key_at(a_.v, group, head_group(group).value_head, key);
  }
  // Rows of single keys in k and in v.
  void key_rows(int64_t group, const int32_t* ids, int count, const void** keys, const void** values) const;
  // Rows of a panel in k and in v, null behind the last key.
  void panel_rows(int64_t group, int64_t panel, const void** keys, const void** values) const;
  void* gradient_row(const View& view, DType type, int64_t group, int64_t key) const;

 private:
  void visit_rule(const TileRows& rows, int64_t batch, int64_t first, int64_t end, std::vector<PanelRef>& to) const;
  void visit_list(const ListView& list, int64_t group, const TileShape& tile, const TileRows& rows, int64_t first,
                  int64_t end, std::vector<PanelRef>& to) const;
  void add(int64_t panel, const TileRows& rows, int64_t batch, bool rule, std::vector<PanelRef>& to) const;
  const HeadGroup& head_group(int64_t group) const { return head_groups_[size_t(group) % head_groups_.size()]; }
  const void* row_at(const View& view, int64_t group, int64_t head, int64_t row) const;
  const void* key_at(const View& view, int64_t group, int64_t head, int64_t key) const;
  void add_row(int64_t batch, int64_t head, int64_t left, int64_t query, TileRows& rows) const;
  // Calls use(begin, end) for the ranges of keys in one row of a list.
  template <class Use>
  void for_spans(const ListView& list, int64_t row, const Use& use) const;
  // Calls use(begin, end) for the ranges of keys that are gathered; some may be empty.
  template <class Use>
  void for_gathered(const ListView& list, int64_t group, const TileShape& tile, const Use& use) const;
  // Panels [first, second) of a range that are packed as they are; its other keys are gathered.
  std::pair<int64_t, int64_t> whole_panels(int64_t begin, int64_t end) const;
  void make_tiles(int64_t heads, bool by_head);
  void survey_documents();
  int64_t list_row(const ListView& list, int64_t group, const TileShape& tile, int64_t query) const;

  const Arguments& a_;
  std::vector<HeadGroup> head_groups_;
  int64_t panels_;
  bool packs_, gathers_, bucketed_ = false;
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
