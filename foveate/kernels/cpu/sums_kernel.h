// Sums of probabilities.  To be included inside a level's own anonymous namespace, after backward_kernel.h.

// Adds 64 numbers to `to` at first, first + 1, ..; those outside [0, count) fall away.
inline void add_inside(const float* from, int64_t first, int64_t count, float* to) {
  if (first >= 0 && first + kPanelKeys <= count) {
    for (int column = 0; column < kPanelKeys; column += Simd::kWidth)
      Simd::store(to + first + column, Simd::load(to + first + column) + Simd::load(from + column));
    return;
  }
  for (int i = 0; i < kPanelKeys; ++i)
    if (first + i >= 0 && first + i < count) to[first + i] += from[i];
}

// Adds the probabilities of a row and a panel, which it may overwrite.
inline void add_sums(const SumTile& t, const Panel& p, int row, float* weights) {
  if (t.bounds[row].high < 0) return;  // no query
  F all = Simd::set(0);
  for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
    F w = Simd::load(weights + column);
    if (t.squared) w = w * w;
    if (t.farthest > 0) {
      const F away = distances(t, p, row, column), most = Simd::set(t.farthest);
      w = w * (Simd::set(0) - Simd::max(Simd::set(0) - away, Simd::set(0) - most));
    }
    all = all + w;
    Simd::store(weights + column, w);
  }
  float* to = t.sums + row / t.queries * t.head + t.places[row] * t.place;
  const auto each = [&](const auto& use) {
    for (int i = 0; i < kPanelKeys; ++i)
      if (const int32_t key = p.ids ? p.ids[i] : p.first + i; key < t.keys) use(key, weights[i]);
  };
  switch (t.by) {
    case SumBy::row:
      *to += Simd::total(all);
      return;
    case SumBy::key:
      if (!p.ids) return add_inside(weights, p.first, t.column_count, to);
      return each([&](int32_t key, float w) { to[key] += w; });
    case SumBy::diagonal: {  // from the farthest distance down to 0, so that keys go up
      const int64_t zero = t.column_count - 1 - t.positions[row];
      if (!p.ids) return add_inside(weights, p.first + zero, t.column_count, to);
      return each([&](int32_t key, float w) {
        if (key + zero >= 0 && key + zero < t.column_count) to[key + zero] += w;
      });
    }
    case SumBy::block:
      if (!p.ids && t.key_block % kPanelKeys == 0) {
        to[p.first / t.key_block] += Simd::total(all);
        return;
      }
      if (!p.ids && t.key_block == 1) return add_inside(weights, p.first, t.column_count, to);
      return each([&](int32_t key, float w) { to[key / t.key_block] += w; });
  }
}

template <class Unit>
void sums(const SumTile& t) {
  const Strips s = strips<Unit>(t);
  for (int row = 0; row < t.rows; row += kGroupRows) {
    const int rows = smaller(kGroupRows, t.rows - row);
    const Group g{row, rows, group_bounds(t, row, rows)};
    for (int i = 0; i < t.panel_count; ++i) {
      const Sight sees = sight(t, g.bounds, t.panels[i]);
      if (sees == Sight::nothing) continue;
      group_weights<Unit, true>(t, g, t.panels[i], sees, columns_seen(t, g.bounds, t.panels[i]), s, s.group_p);
      for (int r = 0; r < rows; ++r) add_sums(t, t.panels[i], row + r, s.group_p + r * kPanelKeys);
    }
  }
}
