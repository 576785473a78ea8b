// Backward of a tile.  To be included inside a level's own anonymous namespace, after products.h.
// Source: Dao et al., FlashAttention-2, 2307.08691, algorithm 2.

// P and dS of a tile against up to kStripPanels panels, [panel][rows / step][64] units, so that the products over rows
// read them by broadcast; and dS of one group, [row][keys / step], for the product over keys.
struct Strips {
  float *p, *ds, *group_ds, *scores, *group_p, *product, *added, *keep;
  int64_t panel_units;
};

template <class Unit>
inline Strips strips(const BackwardTile& t) {
  const int64_t units = int64_t{(t.rows + Unit::kStep - 1) / Unit::kStep} * kPanelKeys;
  Strips s{};
  s.panel_units = units;
  s.p = t.scratch;
  s.ds = s.p + kStripPanels * units;
  s.group_ds = s.ds + kStripPanels * units;
  s.scores = s.group_ds + kGroupRows * kStripColumns;
  s.group_p = s.scores + kGroupRows * kPanelKeys;
  s.product = s.group_p + kGroupRows * kPanelKeys;
  s.added = s.product + kGroupRows * kPanelKeys;
  s.keep = s.added + kGroupRows * kPanelKeys;
  return s;
}

// P of a group and a panel: to[r * 64 + column].
template <class Unit, bool kTerms>
inline void group_weights(const BackwardTile& t, const Group& g, const Panel& p, Sight sees, int width, const Strips& s,
                          float* to) {
  const bool plain = !kTerms || t.score.plain();
  const F factor = Simd::set(plain ? t.score.scale * kLog2e : 1);
  const float* q = t.q + int64_t{g.row} * t.depth;
  if (plain && sees == Sight::all) {  // straight from the registers
    with_rows(g.rows, [&](auto rows) {
      for (int column = 0; column < kPanelKeys; column += kTileColumns) {
        Sums<rows.value, Simd::kColumns> sums;
        sums.template add_products<Unit>(q, t.depth, 1, p.k + column, kPanelKeys, t.depth);
        sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
          Simd::store(to + r * kPanelKeys + column + c * Simd::kWidth,
                      Unit::exp2(Simd::fma(sum, factor, Simd::set(-t.lse[g.row + r]))));
        });
      }
    });
    return;
  }
  edge_products<Unit>(q, g.rows, t.depth, p.k, width, to, kPanelKeys);
  for (int r = 0; r < g.rows; ++r) {
    float* row = to + r * kPanelKeys;
    if constexpr (kTerms) {
      const LogitFactors factors = {s.product + r * kPanelKeys, s.added + r * kPanelKeys};
      adjust(t, p, g.row + r, sees, row, &factors);
    } else {
      hide(t, p, g.row + r, row);
    }
    const F offset = Simd::set(-t.lse[g.row + r]);
    for (int column = 0; column < kPanelKeys; column += Simd::kWidth)
      Simd::store(row + column, Unit::exp2(Simd::fma(Simd::load(row + column), factor, offset)));
  }
}

// d loss / d logit -> what its terms take, and d loss / d (scale * product).
inline void apply_terms(const BackwardTile& t, const Group& g, const Panel& p, const Strips& s, float* ds) {
  for (int r = 0; t.terms.any() && r < g.rows; ++r) {
    float added[kPanelKeys];
    for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
      const F d = Simd::load(ds + r * kPanelKeys + column);
      const F factor = t.score.leaky == 1 ? Simd::set(1) : Simd::load(s.added + r * kPanelKeys + column);
      Simd::store(added + column, Simd::select(Simd::not_zero(d), d * factor, d));
    }
    add_term_gradients(t, p, g.row + r, added);
  }
  if (t.score.soft_cap == 0 && t.score.leaky == 1) return;
  for (int i = 0; i < g.rows * kPanelKeys; i += Simd::kWidth) {
    const F d = Simd::load(ds + i);
    Simd::store(ds + i, Simd::select(Simd::not_zero(d), d * Simd::load(s.product + i), d));
  }
}

// dS = P (dP - delta), 0 where P is 0: an invisible value may be NaN.  With dropout dP counts where it keeps, and P
// becomes what dV takes.
template <class Unit, bool kTerms>
inline void group_gradients(const BackwardTile& t, const Group& g, const Panel& p, int width, const Strips& s,
                            float* weights, float* to) {
  const bool drops = kTerms && t.score.drop_below > 0;
  if (drops)
    for (int r = 0; r < g.rows; ++r)
      for (int column = 0; column < kPanelKeys; column += Simd::kWidth)
        Simd::store(s.keep + r * kPanelKeys + column,
                    Simd::select(kept(t, p, g.row + r, column), Simd::set(t.score.keep_scale), Simd::set(0)));
  const float* d_out = t.d_out + int64_t{g.row} * t.value_depth;
  const auto take = [&](F d_weight, int r, int column) __attribute__((always_inline)) {
    const int64_t at = r * kPanelKeys + column;
    const F w = Simd::load(weights + at);
    if (drops) d_weight = d_weight * Simd::load(s.keep + at);
    Simd::store(to + at, Simd::select(Simd::not_zero(w), (d_weight - Simd::set(t.delta[g.row + r])) * w, Simd::set(0)));
  };
  if (width < kPanelKeys) {
    edge_products<Unit>(d_out, g.rows, t.value_depth, p.v, width, to, kPanelKeys);
    for (int r = 0; r < g.rows; ++r)
      for (int column = 0; column < kPanelKeys; column += Simd::kWidth)  // weights behind the width are 0
        take(Simd::load(to + r * kPanelKeys + column), r, column);
  } else {
    with_rows(g.rows, [&](auto rows) {
      for (int column = 0; column < kPanelKeys; column += kTileColumns) {
        Sums<rows.value, Simd::kColumns> sums;
        sums.template add_products<Unit>(d_out, t.value_depth, 1, p.v + column, kPanelKeys, t.value_depth);
        sums.for_each([&](int r, int c, F sum)
                          __attribute__((always_inline)) { take(sum, r, column + c * Simd::kWidth); });
      }
    });
  }
  for (int r = 0; kTerms && t.score.landmark_block && r < g.rows; ++r)
    group_gradients_of_row(t, p, g.row + r, weights + r * kPanelKeys, to + r * kPanelKeys);
  for (int i = 0; drops && i < g.rows * kPanelKeys; i += Simd::kWidth)
    Simd::store(weights + i, Simd::load(weights + i) * Simd::load(s.keep + i));
  if constexpr (kTerms) apply_terms(t, g, p, s, to);
}

// Rows of the tile that see a panel, from the first such group to the end of the last, and columns that they see.
struct Extent {
  int first = -1, end = 0, width = 0;
};

// to[64][dims] += pairs[row / step][64]^T . by_dim over the rows and columns of an extent.
template <class Unit>
inline void add_key_gradient(const float* pairs, const float* by_dim, int rows, const Extent& extent, int dim,
                             float* to) {
  const int dims = padded(dim), all_steps = (rows + Unit::kStep - 1) / Unit::kStep, skip = extent.first / Unit::kStep;
  const int steps = (extent.end - extent.first + Unit::kStep - 1) / Unit::kStep;
  for (int d = 0; d < dims; d += kPanelKeys) {
    const int width = smaller(kPanelKeys, dims - d);
    const float* block = by_dim + int64_t{all_steps} * d + int64_t{skip} * width;
    for (int key = 0; key < extent.width; key += kGroupRows)
      for_columns(width, [&](int column, auto columns) {
        with_rows(smaller(kGroupRows, extent.width - key), [&](auto keys) {
          Sums<keys.value, columns.value> sums;
          sums.template add_products<Unit>(pairs + int64_t{skip} * kPanelKeys + key, 1, kPanelKeys, block + column,
                                           width, steps);
          sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
            float* at = to + int64_t{key + r} * dims + d + column + c * Simd::kWidth;
            Simd::store(at, Simd::load(at) + sum);
          });
        });
      });
  }
}

template <class Unit>
inline void clear_group(const Group& g, float* p, float* ds) {
  const int64_t first = int64_t{g.row / Unit::kStep} * kPanelKeys;
  const int64_t units = int64_t{(g.rows + Unit::kStep - 1) / Unit::kStep} * kPanelKeys;
  __builtin_memset(p + first, 0, size_t(units) * 4);
  __builtin_memset(ds + first, 0, size_t(units) * 4);
}

template <class Unit, bool kTerms>
inline void backward_group(const BackwardTile& t, const Group& g, const Panel* panels, int count, const Strips& s,
                           Extent* extents) {
  const float* by_dim[kStripPanels];  // K of the panels seen
  int64_t at[kStripPanels];
  int widths[kStripPanels], n = 0;
  for (int i = 0; i < count; ++i) {
    float *p = s.p + i * s.panel_units, *ds = s.ds + i * s.panel_units;
    const Sight sees = sight(t, g.bounds, panels[i]);
    if (sees == Sight::nothing) {
      clear_group<Unit>(g, p, ds);
      continue;
    }
    const int width = widths[n] = columns_seen(t, g.bounds, panels[i]);
    Extent& extent = extents[i];
    if (extent.first < 0) extent.first = g.row;
    extent.end = g.row + g.rows;
    if (width > extent.width) extent.width = width;
    if constexpr (Unit::kStep == 1) {  // rows are units already
      const int64_t first = int64_t{g.row} * kPanelKeys;
      group_weights<Unit, kTerms>(t, g, panels[i], sees, width, s, p + first);
      group_gradients<Unit, kTerms>(t, g, panels[i], width, s, p + first, ds + first);
      at[n] = i * s.panel_units + first;
    } else {
      group_weights<Unit, kTerms>(t, g, panels[i], sees, width, s, s.group_p);
      group_gradients<Unit, kTerms>(t, g, panels[i], width, s, s.group_p, s.scores);
      const int64_t first = int64_t{g.row / Unit::kStep} * kPanelKeys;
      at[n] = int64_t{n} * kPanelKeys / Unit::kStep;
      Unit::interleave_rows(s.group_p, g.rows, p + first, nullptr, 0);
      Unit::interleave_rows(s.scores, g.rows, ds + first, s.group_ds + at[n], kStripColumns / Unit::kStep);
    }
    by_dim[n++] = panels[i].k_by_dim;
  }
  if (n == 0) return;
  constexpr float kOnes[kGroupRows] = {1, 1, 1, 1, 1, 1};
  const bool units = Unit::kStep == 1;
  add_by_dim<Unit>(g, units ? s.ds : s.group_ds, at, units ? kPanelKeys : kStripColumns / Unit::kStep, by_dim, widths,
                   n, padded(t.dim), kOnes, t.d_q);
}

template <class Unit, bool kTerms>
void backward_tile(const BackwardTile& t) {
  const Strips s = strips<Unit>(t);
  for (int first = 0; first < t.panel_count; first += kStripPanels) {
    const int count = smaller(kStripPanels, t.panel_count - first);
    Extent extents[kStripPanels];
    for (int row = 0; row < t.rows; row += kGroupRows) {
      const int rows = smaller(kGroupRows, t.rows - row);
      backward_group<Unit, kTerms>(t, {row, rows, group_bounds(t, row, rows)}, t.panels + first, count, s, extents);
    }
    for (int i = 0; i < count; ++i) {
      if (extents[i].first < 0) continue;
      const Panel& panel = t.panels[first + i];
      add_key_gradient<Unit>(s.p + i * s.panel_units, t.d_out_by_dim, t.rows, extents[i], t.value_dim, panel.d_v);
      add_key_gradient<Unit>(s.ds + i * s.panel_units, t.q_by_dim, t.rows, extents[i], t.dim, panel.d_k);
    }
  }
}

template <class Unit>
void backward(const BackwardTile& t) {
  if (t.score.plain() && t.score.drop_below == 0)
    backward_tile<Unit, false>(t);
  else
    backward_tile<Unit, true>(t);
}
