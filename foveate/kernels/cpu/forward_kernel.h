// Forward of a tile.  To be included inside a level's own anonymous namespace, after products.h.
// Source: Dao et al., FlashAttention-2, 2307.08691, algorithm 1; the loop order is for caches instead of warps.

// Scores of a group with the panels it sees, side by side in the strip; returns how many it sees.
template <class Unit>
inline int group_scores(const ForwardTile& t, const Group& g, const Panel* panels, int count, const Panel** seen,
                        int* widths, F* tops) {
  int n = 0;
  const bool plain = t.score.plain();
  for (int i = 0; i < count; ++i) {
    const Sight sees = sight(t, g.bounds, panels[i]);
    if (sees == Sight::nothing) continue;
    float* strip = t.strip + n * kPanelKeys;
    const float* q = t.q + int64_t{g.row} * t.q_stride;
    const bool ready = plain && sees == Sight::all;
    widths[n] = columns_seen(t, g.bounds, panels[i]);
    if constexpr (Unit::kCodes)
      Unit::group_products(t, g, panels[i].keys, widths[n], strip, kStripColumns, ready ? tops : nullptr);
    else if (panels[i].keys)
      group_row_products<Unit>(t, g.rows, q, t.q_stride, panels[i].keys, widths[n], strip, kStripColumns,
                               ready ? tops : nullptr);
    else if (widths[n] == kPanelKeys)
      with_rows(g.rows, [&](auto rows) {
        group_products<Unit, rows.value>(q, t.depth, panels[i].k, strip, kStripColumns, ready ? tops : nullptr);
      });
    else
      edge_products<Unit>(q, g.rows, t.depth, panels[i].k, widths[n], strip, kStripColumns);
    for (int r = 0; !ready && r < g.rows; ++r) {
      float* row = strip + r * kStripColumns;
      adjust(t, panels[i], g.row + r, sees, row, nullptr);
      for (int column = 0; column < kPanelKeys; column += Simd::kWidth)
        tops[r] = Simd::max(tops[r], Simd::load(row + column));
    }
    seen[n++] = &panels[i];
  }
  return n;
}

// weights = 2^(scores * factor - top * factor) of n panels, those that dropout takes 0; returns the sum of all.
template <class Unit, bool kDrops>
inline float weigh_row(const ForwardTile& t, int row, const Panel* const* seen, const float* scores, float* weights,
                       int n, float factor, float top) {
  const F f = Simd::set(factor), offset = Simd::set(-top * factor);
  F sum[2] = {};
  for (int column = 0; column < n * kPanelKeys; column += 2 * Simd::kWidth) {
    F a = Unit::exp2(Simd::fma(Simd::load(scores + column), f, offset));
    F b = Unit::exp2(Simd::fma(Simd::load(scores + column + Simd::kWidth), f, offset));
    sum[0] = sum[0] + a, sum[1] = sum[1] + b;
    if constexpr (kDrops) {
      const Panel& p = *seen[column / kPanelKeys];
      const int at = column % kPanelKeys;
      a = Simd::select(kept(t, p, row, at), a, Simd::set(0));
      b = Simd::select(kept(t, p, row, at + Simd::kWidth), b, Simd::set(0));
    }
    if constexpr (Unit::kStep == 1) {
      Simd::store(weights + column, a);
      Simd::store(weights + column + Simd::kWidth, b);
    } else {
      Unit::store_pairs(weights + column / 2, a, b);
    }
  }
  return Simd::total(sum[0] + sum[1]);
}

// A visible NaN or Inf value was packed as 0: it still makes its row NaN or Inf.
inline void add_bad_values(const ForwardTile& t, const Panel& p, const void* const* rows, const Group& g) {
  for (int r = g.row; r < g.row + g.rows; ++r)
    for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
      const I ids = key_ids(p, column);
      float seen[Simd::kWidth];
      Simd::store(seen, Simd::select(p.check == Check::none ? Simd::equal(ids - ids, 0) : visible(t, p, r, ids, column),
                                     Simd::set(1), Simd::set(0)));
      for (int i = 0; i < Simd::kWidth; ++i) {
        const char* value = (const char*)rows[column + i];
        if (!value || seen[i] == 0) continue;
        if (t.score.landmark_block && (p.first + column + i + 1) % t.score.landmark_block == 0) continue;
        for (int d = 0; d < t.value_dim; ++d) {
          const float v =
              t.key_type == DType::q8 ? scaled_element(value, t.value_dim, d) : element(value, t.key_type, d);
          if (!Simd::all(Simd::finite(Simd::set(v)))) t.acc[int64_t{r} * padded(t.value_dim) + d] += v;
        }
      }
    }
}

// acc = shrink * acc + weights . values over rows of v as they are.
template <class Unit>
inline void add_rows_as_they_are(const ForwardTile& t, const Group& g, const Panel* const* seen, const int* widths,
                                 int n, const float* weights, const int64_t* at, int64_t stride, const float* shrink) {
  const void* const* rows[kStripPanels];
  for (int i = 0; i < n; ++i) rows[i] = seen[i]->values;
  if constexpr (Unit::kCodes) {
    const float none[kGroupRows] = {1, 1, 1, 1, 1, 1};
    for (int i = 0; i < n; ++i, shrink = none) {
      if (!Unit::add_values(t, g, weights + at[i], stride, rows[i], widths[i], shrink, t.acc))
        add_bad_values(t, *seen[i], rows[i], g);
    }
  } else {
    if (add_row_values<Unit>(t, g, weights, at, stride, rows, widths, n, shrink, t.acc)) return;
    for (int i = 0; i < n; ++i) add_bad_values(t, *seen[i], rows[i], g);
  }
}

template <class Unit>
inline void forward_group(const ForwardTile& t, const Group& g, const Panel* panels, int count) {
  const Panel* seen[kStripPanels];
  int widths[kStripPanels];
  F tops[kGroupRows];
  for (int r = 0; r < kGroupRows; ++r) tops[r] = Simd::set(-kInfinity);
  const int n = group_scores<Unit>(t, g, panels, count, seen, widths, tops);
  if (n == 0) return;
  const float factor = t.score.plain() ? t.score.scale * kLog2e : 1;
  float* weights = Unit::kStep == 1 ? t.strip : t.strip + kGroupRows * kStripColumns;
  constexpr int64_t stride = kStripColumns / Unit::kStep;
  float shrink[Simd::kWidth] = {}, safe[kGroupRows];  // of a row's sums so far
  for (int r = 0; r < g.rows; ++r) {
    float& top = t.top[g.row + r];
    const float here = Simd::largest(tops[r]), now = here > top ? here : top;
    safe[r] = now == -kInfinity ? 0 : now;
    shrink[r] = top == now ? 0 : (top - safe[r]) * factor;
    top = now;
  }
  Simd::store(shrink, Floats::exp2(Simd::load(shrink)));
  // Called, not inlined: inlined, the whole group gets slower by a tenth (g++ 12).
  const auto weigh = t.score.drop_below ? weigh_row<Unit, true> : weigh_row<Unit, false>;
  for (int r = 0; r < g.rows; ++r) {
    const float sum = weigh(t, g.row + r, seen, t.strip + r * kStripColumns, weights + r * stride, n, factor, safe[r]);
    t.sum[g.row + r] = t.sum[g.row + r] * shrink[r] + sum;
  }
  int64_t at[kStripPanels];
  for (int i = 0; i < n; ++i) at[i] = int64_t{i} * kPanelKeys / Unit::kStep;
  if (seen[0]->values) return add_rows_as_they_are<Unit>(t, g, seen, widths, n, weights, at, stride, shrink);
  const float* values[kStripPanels];
  for (int i = 0; i < n; ++i) values[i] = seen[i]->v;
  add_by_dim<Unit>(g, weights, at, stride, values, widths, n, padded(t.value_dim), shrink, t.acc);
  for (int i = 0; i < n; ++i)
    if (seen[i]->bad_values) add_bad_values(t, *seen[i], seen[i]->bad_values, g);
}

template <class Unit>
inline void forward_groups(const ForwardTile& t) {
  for (int first = 0; first < t.panel_count; first += kStripPanels)
    for (int row = 0; row < t.rows; row += kGroupRows) {
      const int rows = smaller(kGroupRows, t.rows - row);
      forward_group<Unit>(t, {row, rows, group_bounds(t, row, rows)}, t.panels + first,
                          smaller(kStripPanels, t.panel_count - first));
    }
}

// InCodes: the unit for rows of q8, where the level multiplies them in whole numbers.
template <class Unit, class InCodes = Unit>
void forward(const ForwardTile& t) {
  t.q_codes ? forward_groups<InCodes>(t) : forward_groups<Unit>(t);
}
