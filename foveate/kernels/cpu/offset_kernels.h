// Weighted sums of a few rows, and the products of a few rows with each other: what stands at the offsets of a cell
// (ops/offsets).  To be included inside a level's own anonymous namespace, after pack_kernels.h.

// A whole vector of a row.
template <DType kType>
FOVEATE_INLINE F whole_floats(const void* row, int at) {
  if constexpr (kType == DType::f32)
    return Simd::load((const float*)row + at);
  else
    return Simd::load_as((const uint16_t*)row + at, kType);
}

// Targets first .. first + T - 1, vectors at .. of theirs; kWhole: the rows reach that far.
template <int T, int V, DType kType, bool kWhole>
FOVEATE_INLINE void weigh_block(const WeighedRows& w, int first, int at) {
  Sums<T, V> sums;
  for (int r = 0; r < w.count; ++r) {
    F x[V];
    unrolled<V>([&](auto v) __attribute__((always_inline)) {
      x[v.value] = kWhole ? whole_floats<kType>(w.rows[r], at + v.value * kLanes)
                          : row_floats(w.rows[r], at + v.value * kLanes, w.dim, kType);
    });
    const float* weights = w.weights + int64_t{r} * w.targets + first;
    unrolled<T>([&](auto t) __attribute__((always_inline)) {
      const F one = Simd::set(weights[t.value]);
      unrolled<V>([&](auto v) __attribute__((always_inline)) {
        sums.at[t.value][v.value] = Simd::fma(one, x[v.value], sums.at[t.value][v.value]);
      });
    });
  }
  sums.for_each([&](int t, int v, F& sum) __attribute__((always_inline)) {
    put_floats(w.to[first + t], at + v * kLanes, w.dim, sum, kType);
  });
}

template <int T, DType kType>
void weigh_targets(const WeighedRows& w, int first) {
  constexpr int V = Simd::kColumns;
  int at = 0;
  for (; at + V * kLanes <= w.dim; at += V * kLanes) weigh_block<T, V, kType, true>(w, first, at);
  for (; at + kLanes <= w.dim; at += kLanes) weigh_block<T, 1, kType, true>(w, first, at);
  if (at < w.dim) weigh_block<T, 1, kType, false>(w, first, at);
}

template <DType kType>
void weigh_all(const WeighedRows& w) {
  int first = 0;
  for (; first + 4 <= w.targets; first += 4) weigh_targets<4, kType>(w, first);
  for (; first + 2 <= w.targets; first += 2) weigh_targets<2, kType>(w, first);
  if (first < w.targets) weigh_targets<1, kType>(w, first);
}

void weigh_rows(const WeighedRows& w) {
  if (w.type == DType::f32) return weigh_all<DType::f32>(w);
  if (w.type == DType::bf16) return weigh_all<DType::bf16>(w);
  weigh_all<DType::f16>(w);
}

// Rows first .. first + 3 with T targets; missing ones of either are the last again.
template <DType kType>
FOVEATE_INLINE void dots_of_four(const RowDots& d, int first, int first_target) {
  constexpr int T = kLanes / 4;
  const void *rows[4], *targets[T];
  for (int j = 0; j < 4; ++j) rows[j] = d.rows[smaller(first + j, d.count - 1)];
  for (int i = 0; i < T; ++i) targets[i] = d.targets[smaller(first_target + i, d.target_count - 1)];
  Sums<T, 4> sums;
  for (int at = 0; at < d.dim; at += kLanes) {
    const bool whole = at + kLanes <= d.dim;
    F x[4];
    unrolled<4>([&](auto j) __attribute__((always_inline)) {
      x[j.value] = whole ? whole_floats<kType>(rows[j.value], at) : row_floats(rows[j.value], at, d.dim, kType);
    });
    unrolled<T>([&](auto i) __attribute__((always_inline)) {
      const F y = whole ? whole_floats<kType>(targets[i.value], at) : row_floats(targets[i.value], at, d.dim, kType);
      unrolled<4>([&](auto j) __attribute__((always_inline)) {
        sums.at[i.value][j.value] = Simd::fma(x[j.value], y, sums.at[i.value][j.value]);
      });
    });
  }
  F quads[T];
  unrolled<T>([&](auto i) __attribute__((always_inline)) {
    F(&s)[4] = sums.at[i.value];
    quads[i.value] = Simd::sum_quads(s[0], s[1], s[2], s[3]);
  });
  float products[kLanes];  // [T][4]
  Simd::store(products, Simd::sum_fourths(quads));
  for (int i = 0; i < smaller(T, d.target_count - first_target); ++i)
    for (int j = 0; j < smaller(4, d.count - first); ++j)
      d.to[int64_t{first + j} * d.target_count + first_target + i] = products[4 * i + j];
}

template <DType kType>
void dots_of_all(const RowDots& d) {
  for (int target = 0; target < d.target_count; target += kLanes / 4)
    for (int first = 0; first < d.count; first += 4) dots_of_four<kType>(d, first, target);
}

void dot_rows(const RowDots& d) {
  if (d.type == DType::f32) return dots_of_all<DType::f32>(d);
  if (d.type == DType::bf16) return dots_of_all<DType::bf16>(d);
  dots_of_all<DType::f16>(d);
}
