// Rows of q, k and v as they are: reading them, and the products of few query rows, for which packing a panel of keys
// would cost more than it saves.  To be included inside a level's own anonymous namespace, after score_kernels.h.

constexpr int kLanes = Simd::kWidth;

// Elements [at, at + kLanes) of a row as floats, 0 behind `dim` and for a null row.
FOVEATE_INLINE F row_floats(const void* row, int at, int dim, DType type) {
  if (!row || at >= dim) return Simd::set(0);
  if (at + kLanes <= dim)
    return type == DType::f32 ? Simd::load((const float*)row + at) : Simd::load_as((const uint16_t*)row + at, type);
  return type == DType::f32 ? Simd::load_first((const float*)row + at, dim - at)
                            : Simd::load_first_as((const uint16_t*)row + at, dim - at, type);
}

// Units [at, at + kLanes) of a row: floats, or pairs of bf16 taken as they are.
FOVEATE_INLINE F row_units(const void* row, int at, int dim, DType type, int step) {
  if (step == 1) return row_floats(row, at, dim, type);
  if (!row || 2 * at >= dim) return Simd::set(0);
  if (2 * (at + kLanes) <= dim) return Simd::load((const float*)((const uint16_t*)row + 2 * at));
  return Simd::load_pairs((const uint16_t*)row + 2 * at, dim - 2 * at);
}

// ---- a group of rows and keys as they are ----

// Keys are read whole where every row is there and whole vectors can be taken as they stand.
template <class Unit>
inline bool reads_whole(const Tile& t, const void* const* keys, int count) {
  if (t.dim % (kLanes * Unit::kStep) != 0 || (Unit::kStep == 1 && t.value_type != DType::f32)) return false;
  return keys[count - 1] != nullptr;
}

constexpr int kAhead = 16;  // rows

// Into the second-level cache: on their way into the first, too few of them fit at a time.
FOVEATE_INLINE void fetch_ahead(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)row + at, 0, 2);
}

// quads[r]: Simd::sum_quads of a row's products with four keys.
template <class Unit, int R, bool kWhole>
FOVEATE_INLINE void four_products(const Tile& t, const float* q, int64_t q_stride, const void* const* keys,
                                  F (&quads)[R]) {
  Sums<R, 4> sums;
  for (int at = 0; at < t.depth; at += kLanes) {
    F k[4];
    unrolled<4>([&](auto i) __attribute__((always_inline)) {
      k[i.value] = kWhole ? Simd::load((const float*)keys[i.value] + at)
                          : row_units(keys[i.value], at, t.dim, t.value_type, Unit::kStep);
    });
    sums.for_each([&](int r, int i, F& sum) __attribute__((always_inline)) {
      sum = Unit::dot(Simd::load(q + r * q_stride + at), k[i], sum);
    });
  }
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    F(&x)[4] = sums.at[r.value];
    quads[r.value] = Simd::sum_quads(x[0], x[1], x[2], x[3]);
  });
}

// to[r * stride + key] = q[r] . keys[key] for `width` keys, a multiple of 16 (the last may be null: 0); tops[r] takes
// their largest.  Rows of q stand q_stride units apart, with zeros up to whole vectors.  `next`: keys that come next.
template <class Unit, int R, bool kWhole>
FOVEATE_INLINE void row_products(const Tile& t, const float* q, int64_t q_stride, const void* const* keys, int width,
                                 const void* const* next, float* to, int64_t stride, F* tops) {
  const int64_t bytes = t.dim * int64_t(bytes_of(t.value_type));
  for (int key = 0; key < width; key += kLanes) {
    F quads[kLanes / 4][R];
    const void* const* ahead = key + kAhead < width ? keys + key + kAhead
                               : next               ? next + key + kAhead - width
                                                    : nullptr;
    for (int i = 0; i < kLanes / 4; ++i) {
      for (int j = 4 * i; ahead && j < 4 * i + 4; ++j) fetch_ahead(ahead[j], bytes);
      if (kWhole || keys[key + 4 * i])
        four_products<Unit, R, kWhole>(t, q, q_stride, keys + key + 4 * i, quads[i]);
      else
        for (F& none : quads[i]) none = Simd::set(0);
    }
    for (int r = 0; r < R; ++r) {
      F of_row[kLanes / 4];
      for (int i = 0; i < kLanes / 4; ++i) of_row[i] = quads[i][r];
      const F products = Simd::sum_fourths(of_row);
      Simd::store(to + r * stride + key, products);
      if (tops) tops[r] = Simd::max(tops[r], products);
    }
  }
}

constexpr int kRowsAtOnce = Simd::kWidth == 16 ? kGroupRows : 2;  // 4 sums a row in registers

// The same for all rows of a group.
template <class Unit>
__attribute__((noinline)) void group_row_products(const Tile& t, int rows, const float* q, int64_t q_stride,
                                                  const void* const* keys, int width, const void* const* next,
                                                  float* to, int64_t stride, F* tops) {
  const bool whole = reads_whole<Unit>(t, keys, width);
  for (int r = 0; r < rows; r += kRowsAtOnce)
    with_rows(smaller(kRowsAtOnce, rows - r), [&](auto count) {
      constexpr int R = smaller(count.value, kRowsAtOnce);
      const auto products = whole ? row_products<Unit, R, true> : row_products<Unit, R, false>;
      products(t, q + r * q_stride, q_stride, keys, width, next, to + r * stride, stride, tops ? tops + r : nullptr);
    });
}

// Vector `at` of `Unit::kStep` rows of v as units; kCleans takes NaN and Inf as 0.
template <class Unit, bool kCleans>
FOVEATE_INLINE F value_units(const Tile& t, const void* const* rows, int at) {
  if constexpr (Unit::kStep == 2 && !kCleans)
    if (rows[1] && at + kLanes <= t.value_dim)
      return Unit::interleave((const uint16_t*)rows[0] + at, (const uint16_t*)rows[1] + at);
  const auto values = [&](const void* row) __attribute__((always_inline)) {
    const F x = row_floats(row, at, t.value_dim, t.value_type);
    return kCleans ? Simd::select(Simd::finite(x), x, Simd::set(0)) : x;
  };
  if constexpr (Unit::kStep == 1) {
    return values(rows[0]);
  } else {  // bf16: the upper half of a float
    return (F)(Simd::shift_down<16>((I)values(rows[0])) | (I)values(rows[1]));
  }
}

// to[row] = shrink[row] * to + weights . values, as add_by_dim, over rows of v as they are: rows[i] of panel i. Returns
// whether all sums were finite; if not, NaN and Inf among the values were taken as 0 instead.
template <class Unit>
inline bool add_row_values(const Tile& t, const Group& g, const float* weights, const int64_t* at, int64_t stride,
                           const void* const* const* rows, const int* widths, int n, const float* shrink, float* to) {
  const int dims = padded(t.value_dim);
  bool all_sound = true;
  for (int dim = 0; dim < dims; dim += kPanelKeys)
    for_columns(smaller(kPanelKeys, dims - dim), [&](int column, auto columns) {
      with_rows(g.rows, [&](auto row_count) {
        constexpr int R = row_count.value, C = columns.value;
        const auto add = [&](auto cleans) __attribute__((always_inline)) {
          Sums<R, C> sums;
          for (int i = 0; i < n; ++i)
            for (int key = 0; key < widths[i] && rows[i][key]; key += Unit::kStep) {
              if (dim + column == 0)
                for (int j = key + kAhead; j < smaller(key + kAhead + Unit::kStep, kPanelKeys); ++j)
                  fetch_ahead(rows[i][j], t.value_dim * int64_t(bytes_of(t.value_type)));
              F values[C];
              unrolled<C>([&](auto c) __attribute__((always_inline)) {
                values[c.value] = value_units<Unit, cleans.value>(t, rows[i] + key, dim + column + c.value * kLanes);
              });
              const float* weight = weights + at[i] + key / Unit::kStep;
              unrolled<R>([&](auto r) __attribute__((always_inline)) {
                const F one = Simd::set(weight[r.value * stride]);
                unrolled<C>([&](auto c) __attribute__((always_inline)) {
                  sums.at[r.value][c.value] = Unit::dot(one, values[c.value], sums.at[r.value][c.value]);
                });
              });
            }
          bool sound = true;
          if constexpr (!cleans.value)
            sums.for_each([&](int, int, F sum)
                              __attribute__((always_inline)) { sound = sound && Simd::all(Simd::finite(sum)); });
          if (!sound) return false;
          sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
            float* place = to + int64_t{g.row + r} * dims + dim + column + c * kLanes;
            Simd::store(place, Simd::fma(Simd::load(place), Simd::set(shrink[r]), sum));
          });
          return true;
        };
        if (add(Constant<0>())) return;
        all_sound = false;
        add(Constant<1>());
      });
    });
  return all_sound;
}
