// What forward and backward share between the tiling and a level's kernels: packed panels, and a tile with its panels
// put together.
#pragma once

#include "foveate/kernels/tiling.h"

namespace foveate::kernels {

struct Steps {  // units of the inner axes
  int step, depth, value_depth, keys;
  Steps(const Table& table, const Arguments& a)
      : step(a.type == DType::bf16 && has_pairs(table) ? 2 : 1),
        depth((a.dim + step - 1) / step),
        value_depth((a.value_dim + step - 1) / step),
        keys(kPanelKeys / step) {}
};

// Which whole panels the tiles visit; nothing where all keys are gathered.
class Survey {
 public:
  explicit Survey(const Tiling& tiling);
  bool needs(int64_t item) const { return needed_[size_t(item)] != 0; }  // item: group * panels + panel
  int64_t visits() const { return visits_; }                             // summed over tiles
  int64_t visits(int64_t group, int64_t tile) const { return tile_visits_[size_t(group * tiling_.tiles() + tile)]; }
  int64_t checked() const { return checked_; }  // visits where not every row sees every key
  // Whether panels are packed beforehand: several tiles read them, or there are too few tiles to keep threads busy.
  bool shares(int threads, int64_t parts) const;

 private:
  const Tiling& tiling_;
  std::vector<uint8_t> needed_;
  std::vector<int32_t> tile_visits_;
  int64_t visits_ = 0, checked_ = 0;
};

// Panels of keys and values, packed once and read by all query heads that share them.  Where no two tiles visit a
// panel, each packs its own into its worker's strip: nothing is shared, and what was packed is still in the cache.
class PackedKeys {
 public:
  enum class Use {
    rows,  // forward of few rows: keys and values are read as they are
    forward,
    backward
  };
  static Use forward_use(const Arguments& a, const Steps& steps, const Tiling& tiling);
  // Packs the panels that some tile visits, if they are shared.
  PackedKeys(const Table& table, const Arguments& a, const Tiling& tiling, Use use, const Pool& pool);
  bool shared() const { return shared_; }
  const Survey& survey() const { return survey_; }
  static int64_t floats_of_panel(const Steps& s, const Arguments& a, Use use);
  Use use() const { return use_; }

 private:
  friend class Strip;
  // Packs the first `count` of 64 key and value rows as a panel; returns whether values hold NaN or Inf.
  // `next`: the 64 keys of the panel that comes next, fetched meanwhile; null: none.
  static bool pack(const Table& table, const Arguments& a, const Steps& s, Use use, const void* const* keys,
                   const void* const* values, int count, const void* const* next, float* to);
  // Packs panel `number`, of a group or of the rows given; returns whether values hold NaN or Inf.
  bool pack(int64_t group, int64_t number, float* to) const;
  bool pack(int64_t number, const void* const* keys, const void* const* values, const void* const* next,
            float* to) const;
  static void point(const Steps& s, Use use, const float* at, Panel& panel);

  const Table& table_;
  const Arguments& a_;
  const Tiling& tiling_;
  Steps steps_;
  Use use_;
  int64_t floats_;
  Survey survey_;
  bool shared_;
  std::vector<uint8_t> bad_;
  Floats64 data_;
};

// A worker's own memory for a strip of panels: keys that it packs itself, and the rows where they are needed.
class Strip {
 public:
  Strip(const Table& table, const Arguments& a, const Tiling& tiling, PackedKeys::Use use, bool packs_panels);

  // Up to kStripPanels panels from refs; returns how many.
  int put(const PackedKeys& packed, int64_t group, const PanelRef* refs, int64_t count);
  // Gathers ids [first, ...) of a list; returns how many panels.
  int gather(int64_t group, const TileRows& rows, const Gathered& list, size_t first);

  Panel* panels() { return panels_; }
  const int32_t* ids() const { return ids_; }

 private:
  bool all_visible(const TileRows& rows, const int32_t* ids, Check check) const;
  void order_rows(int64_t group, const PanelRef* refs, int n, int64_t count);

  const Table& table_;
  const Arguments& a_;
  const Tiling& tiling_;
  Steps steps_;
  PackedKeys::Use use_;
  int64_t floats_;
  Floats64 data_;
  Panel panels_[kStripPanels];
  const void* rows_[2 * kStripKeys + kMostAhead];  // n * 64 of k, as many of v, and what is read next
  int32_t ids_[kStripPanels * kPanelKeys], documents_[kStripPanels * kPanelKeys];
};

// Extra memory of backward beside packed panels.
int64_t backward_bytes(const Table& table, const Arguments& a, const Tiling& tiling, int threads);

// A tile without its panels.
Tile make_tile(const Arguments& a, const Steps& steps, const Tiling& tiling, int64_t group, const TileShape& shape,
               const TileRows& rows);

// Row pointers of a tile in a query-side view.
void point_rows(const Tiling& tiling, const View& view, DType type, int64_t group, const TileShape& shape,
                const void** to);

}  // namespace foveate::kernels
