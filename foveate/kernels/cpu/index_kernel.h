// Scores of an indexer's keys for all heads of one query.  To be included inside a level's own anonymous namespace,
// after products.h.

// Columns [0, C * kWidth) of keys, R heads from `head` on: acc[c] += weight * max(q . k, 0), head by head.
template <class Unit, int R, int C>
FOVEATE_INLINE void add_heads(const IndexTile& t, int head, const float* const* at, F (&acc)[C]) {
  Sums<R, C> sums;
  const float* q = t.q + int64_t{head} * t.steps;
#pragma GCC unroll 4
  for (int step = 0; step < t.steps; ++step) {
    F columns[C];
    unrolled<C>([&](auto c) __attribute__((always_inline)) {
      columns[c.value] = Simd::load(at[c.value] + int64_t{step} * kPanelKeys);
    });
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      const F one = Simd::set(q[int64_t{r.value} * t.steps + step]);
      unrolled<C>([&](auto c) __attribute__((always_inline)) {
        sums.at[r.value][c.value] = Unit::dot(one, columns[c.value], sums.at[r.value][c.value]);
      });
    });
  }
  const F zero = Simd::set(0);
  sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
    acc[c] = Simd::fma(Simd::max(zero, sum), Simd::set(t.weights[head + r]), acc[c]);  // NaN stays NaN
  });
}

// C vectors of keys that stand in C * kWidth / 16 columns.
template <class Unit, int C>
FOVEATE_INLINE void index_columns(const IndexTile& t, int column) {
  const float* at[C];
  F acc[C];
  unrolled<C>([&](auto c) __attribute__((always_inline)) {
    constexpr int kFirst = c.value * Simd::kWidth;
    at[c.value] = t.columns[column + kFirst / kIndexColumn] + kFirst % kIndexColumn;
    acc[c.value] = Simd::set(0);
  });
  int head = 0;
  for (; head + kGroupRows <= t.heads; head += kGroupRows) add_heads<Unit, kGroupRows, C>(t, head, at, acc);
  if (head < t.heads) with_rows(t.heads - head, [&](auto rows) { add_heads<Unit, rows.value, C>(t, head, at, acc); });
  unrolled<C>([&](auto c) __attribute__((always_inline)) {
    constexpr int kFirst = c.value * Simd::kWidth;
    const F scale =
        t.scales ? Simd::load(t.scales[column + kFirst / kIndexColumn] + kFirst % kIndexColumn) : Simd::set(1);
    Simd::store(t.to + int64_t{column} * kIndexColumn + kFirst, acc[c.value] * scale);
  });
}

template <class Unit>
void index_scores(const IndexTile& t) {
  constexpr int kPass = kTileColumns / kIndexColumn;  // columns at a time
  int column = 0;
  for (; column + kPass <= t.column_count; column += kPass) index_columns<Unit, Simd::kColumns>(t, column);
  if constexpr (kPass > 1)
    for (; column < t.column_count; ++column) index_columns<Unit, kIndexColumn / Simd::kWidth>(t, column);
}
