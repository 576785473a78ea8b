// Rows of q, k and v as they are: reading them, and the products of few query rows, for which packing a panel of keys
// would cost more than it saves.  To be included inside a level's own anonymous namespace, after score_kernels.h.

constexpr int kLanes = Simd::kWidth;

// The scale of element `at` of a row of q8.
FOVEATE_INLINE F scale_at(const void* row, int at, int dim) {
  uint16_t scale;
  __builtin_memcpy(&scale, (const char*)row + dim + 2 * (at / kScaled), 2);
  return Simd::set_bf16(scale);
}

// kLanes elements of a row of q8, of one scale.
FOVEATE_INLINE F scaled_floats(const int8_t* codes, F scale) {
  return Simd::to_floats(Simd::load_bytes(codes)) * scale;
}

// Elements [at, at + kLanes) of a row as floats, 0 behind `dim` and for a null row.
FOVEATE_INLINE F row_floats(const void* row, int at, int dim, DType type) {
  if (!row || at >= dim) return Simd::set(0);
  const bool whole = at + kLanes <= dim;
  if (type == DType::q8) {
    if (whole) return scaled_floats((const int8_t*)row + at, scale_at(row, at, dim));
    int8_t first[kLanes] = {};
    __builtin_memcpy(first, (const int8_t*)row + at, size_t(dim - at));
    return scaled_floats(first, scale_at(row, at, dim));
  }
  if (whole)
    return type == DType::f32 ? Simd::load((const float*)row + at) : Simd::load_as((const uint16_t*)row + at, type);
  return type == DType::f32 ? Simd::load_first((const float*)row + at, dim - at)
                            : Simd::load_first_as((const uint16_t*)row + at, dim - at, type);
}

// Units [at, at + kLanes) of a row: floats, or pairs of bf16, which a row of bf16 has as they are.
FOVEATE_INLINE F row_units(const void* row, int at, int dim, DType type, int step) {
  if (step == 1) return row_floats(row, at, dim, type);
  if (!row || 2 * at >= dim) return Simd::set(0);
  if (type == DType::q8) {
    uint16_t halves[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; i += kLanes)
      Simd::store_as(halves + i, row_floats(row, 2 * at + i, dim, type), DType::bf16);
    return Simd::load((const float*)halves);
  }
  if (2 * (at + kLanes) <= dim) return Simd::load((const float*)((const uint16_t*)row + 2 * at));
  return Simd::load_pairs((const uint16_t*)row + 2 * at, dim - 2 * at);
}

// ---- a group of rows and keys as they are ----

enum class Reads {
  whole,   // whole vectors as they stand
  scaled,  // whole vectors of q8
  any,
  clean  // any, NaN and Inf as 0
};

// How `count` rows are read, of which each is there.
template <class Unit>
inline Reads how_to_read(DType type, int dim, int multiple) {
  if (dim % multiple != 0) return Reads::any;
  if (type == DType::q8) return Reads::scaled;
  return Unit::kStep == 1 && type != DType::f32 ? Reads::any : Reads::whole;
}

// Calls use(Constant) for one of the three.
template <class Use>
FOVEATE_INLINE auto with_reads(Reads reads, const Use& use) {
  if (reads == Reads::whole) return use(Constant<int(Reads::whole)>());
  if (reads == Reads::scaled) return use(Constant<int(Reads::scaled)>());
  return use(Constant<int(Reads::any)>());
}

template <class Unit, Reads kReads>
FOVEATE_INLINE F key_units(const Tile& t, const void* row, int at) {
  if constexpr (kReads == Reads::whole) return Simd::load((const float*)row + at);
  if constexpr (kReads == Reads::scaled) {
    const int first = at * Unit::kStep;
    const int8_t* codes = (const int8_t*)row + first;
    const F scale = scale_at(row, first, t.dim);
    if constexpr (Unit::kStep == 1)
      return scaled_floats(codes, scale);
    else  // kScaled elements
      return Unit::join(scaled_floats(codes, scale), scaled_floats(codes + kLanes, scale));
  }
  return row_units(row, at, t.dim, t.key_type, Unit::kStep);
}

// How many rows ahead to fetch: 16 KiB, for memory answers late, and more rows at a time give it more to do at once.
FOVEATE_INLINE int rows_ahead(int64_t bytes) { return int(bytes * kMostAhead <= 16384 ? kMostAhead : 16384 / bytes); }

// Into the second-level cache: on their way into the first, too few of them fit at a time.
FOVEATE_INLINE void fetch(const char* at) { __builtin_prefetch(at, 0, 2); }
FOVEATE_INLINE void fetch_ahead(const void* row, int64_t bytes) {
  for (int64_t at = 0; row && at < bytes; at += 64) fetch((const char*)row + at);
}

// quads[r]: Simd::sum_quads of a row's products with four keys.
template <class Unit, int R, Reads kReads>
FOVEATE_INLINE void four_products(const Tile& t, const float* q, int64_t q_stride, const void* const* keys,
                                  F (&quads)[R]) {
  Sums<R, 4> sums;
  for (int at = 0; at < t.depth; at += kLanes) {
    F k[4];
    unrolled<4>([&](auto i)
                    __attribute__((always_inline)) { k[i.value] = key_units<Unit, kReads>(t, keys[i.value], at); });
    sums.for_each([&](int r, int i, F& sum) __attribute__((always_inline)) {
      sum = Unit::dot(Simd::load(q + r * q_stride + at), k[i], sum);
    });
  }
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    F(&x)[4] = sums.at[r.value];
    quads[r.value] = Simd::sum_quads(x[0], x[1], x[2], x[3]);
  });
}

// to[r * stride + key]: products of R rows with `width` keys, a multiple of 16; tops[r], unless null, takes the
// largest. four(key, quads) gives those with keys key .. key + 3, as four_products does.  ahead[key]: what to fetch
// meanwhile.
template <int R, class Four>
FOVEATE_INLINE void products_by_four(int64_t bytes, const void* const* ahead, int width, float* to, int64_t stride,
                                     F* tops, const Four& four) {
  for (int key = 0; key < width; key += kLanes) {
    F quads[kLanes / 4][R];
    for (int i = 0; i < kLanes / 4; ++i) {
      for (int j = key + 4 * i; j < key + 4 * i + 4; ++j) fetch_ahead(ahead[j], bytes);
      four(key + 4 * i, quads[i]);
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

// to[r * stride + key] = q[r] . keys[key] for `width` keys, a multiple of 16 (the last may be null: 0); tops[r] takes
// their largest.  Rows of q stand q_stride units apart, with zeros up to whole vectors.
template <class Unit, int R, Reads kReads>
inline void row_products(const Tile& t, const float* q, int64_t q_stride, const void* const* keys, int width, float* to,
                         int64_t stride, F* tops) {
  const int64_t bytes = row_bytes(t.dim, t.key_type);
  products_by_four<R>(
      bytes, keys + rows_ahead(bytes), width, to, stride,
      tops, [&](int key, F(&quads)[R]) __attribute__((always_inline)) {
        if (kReads != Reads::any || keys[key])
          four_products<Unit, R, kReads>(t, q, q_stride, keys + key, quads);
        else
          for (F& none : quads) none = Simd::set(0);
      });
}

constexpr int kRowsAtOnce = Simd::kWidth == 16 ? kGroupRows : 2;  // 4 sums a row in registers

// The same for all rows of a group.
template <class Unit>
__attribute__((noinline)) void group_row_products(const Tile& t, int rows, const float* q, int64_t q_stride,
                                                  const void* const* keys, int width, float* to, int64_t stride,
                                                  F* tops) {
  const Reads reads = keys[width - 1] ? how_to_read<Unit>(t.key_type, t.dim, kLanes * Unit::kStep) : Reads::any;
  for (int r = 0; r < rows; r += kRowsAtOnce)
    with_rows(smaller(kRowsAtOnce, rows - r), [&](auto count) {
      constexpr int R = smaller(count.value, kRowsAtOnce);
      with_reads(reads, [&](auto how) {
        row_products<Unit, R, Reads(how.value)>(t, q + r * q_stride, q_stride, keys, width, to + r * stride, stride,
                                                tops ? tops + r : nullptr);
      });
    });
}

// Vector `at` of `Unit::kStep` rows of v as units.
template <class Unit, Reads kReads>
FOVEATE_INLINE F value_units(const Tile& t, const void* const* rows, int at) {
  if constexpr (kReads == Reads::any && Unit::kStep == 2)
    if (rows[1] && at + kLanes <= t.value_dim && t.key_type == DType::bf16)
      return Unit::interleave((const uint16_t*)rows[0] + at, (const uint16_t*)rows[1] + at);
  const auto values = [&](const void* row) __attribute__((always_inline)) {
    if constexpr (kReads == Reads::scaled)
      return scaled_floats((const int8_t*)row + at, scale_at(row, at, t.value_dim));
    const F x = row_floats(row, at, t.value_dim, t.key_type);
    return kReads == Reads::clean ? Simd::select(Simd::finite(x), x, Simd::set(0)) : x;
  };
  if constexpr (Unit::kStep == 1)
    return values(rows[0]);
  else
    return Unit::interleave(values(rows[0]), values(rows[1]));
}

struct ValueRows {
  const void* const* rows;  // [64]
  int count;                // of them, all there
  int ahead;                // how many rows ahead to fetch; 0: they were fetched
  const float* weights;     // of the first row of queries
  int64_t stride;           // between rows of queries
};

// to[r * stride] = shrink[r] * to + weights . values for R rows and C vectors from `dim` on.  Returns whether all sums
// were finite; if not, NaN and Inf among the values were taken as 0 instead.
// The sums are local to the loop: given to another function, they went to memory around every product (g++ 12).
template <class Unit, Reads kReads, int R, int C>
__attribute__((noinline)) bool add_values(const Tile& t, const ValueRows& v, int dim, const float* shrink, float* to,
                                          int64_t stride) {
  constexpr bool kByTwo = kReads == Reads::whole && Unit::kStep == 2;
  const int64_t bytes = row_bytes(t.value_dim, t.key_type);
  Sums<R, C> sums;
  for (int key = 0; key < v.count; key += Unit::kStep) {
    for (int i = 0; v.ahead && i < Unit::kStep; ++i) fetch_ahead(v.rows[key + i + v.ahead], bytes);
    F values[C];
    if constexpr (kByTwo)
      unrolled<C / 2>([&](auto c) __attribute__((always_inline)) {
        const int at = dim + 2 * c.value * kLanes;
        Unit::interleave_two((const uint16_t*)v.rows[key] + at, (const uint16_t*)v.rows[key + 1] + at,
                             values[2 * c.value], values[2 * c.value + 1]);
      });
    else
      unrolled<C>([&](auto c) __attribute__((always_inline)) {
        const int at = dim + c.value * kLanes;
        if constexpr (kReads == Reads::whole)
          values[c.value] = Simd::load((const float*)v.rows[key] + at);
        else
          values[c.value] = value_units<Unit, kReads>(t, v.rows + key, at);
      });
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      const F one = Simd::set(v.weights[key / Unit::kStep + r.value * v.stride]);
      unrolled<C>([&](auto c) __attribute__((always_inline)) {
        sums.at[r.value][c.value] = Unit::dot(one, values[c.value], sums.at[r.value][c.value]);
      });
    });
  }
  if constexpr (kReads != Reads::clean) {
    bool sound = true;
    sums.for_each([&](int, int, F sum)
                      __attribute__((always_inline)) { sound = sound && Simd::all(Simd::finite(sum)); });
    if (!sound) {
      add_values<Unit, Reads::clean, R, C>(t, v, dim, shrink, to, stride);
      return false;
    }
  }
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    float* place = to + r.value * stride + dim;
    const F factor = Simd::set(shrink[r.value]);
    const auto add = [&](int c, F sum) __attribute__((always_inline)) {
      Simd::store(place + c * kLanes, Simd::fma(Simd::load(place + c * kLanes), factor, sum));
    };
    const auto& row = sums.at[r.value];
    if constexpr (kByTwo)
      unrolled<C / 2>([&](auto c) __attribute__((always_inline)) {
        F first = row[2 * c.value], second = row[2 * c.value + 1];
        Unit::put_in_order(first, second);
        add(2 * c.value, first), add(2 * c.value + 1, second);
      });
    else
      unrolled<C>([&](auto c) __attribute__((always_inline)) { add(c.value, row[c.value]); });
  });
  return true;
}

// Rows of queries whose sums stand in registers at a time, beside C vectors of values.
constexpr int weighed_rows(int C) {
  if (Simd::kWidth == 16) return C == 8 ? 2 : kGroupRows;
  return smaller(kGroupRows, 8 / C);
}

// Calls use(first vector, vectors of a pass) until all are done.  Most at once, because a row of values that is read
// whole comes faster from memory; but not of q8, whose reading costs more than its memory: all rows share it.
template <class Use>
FOVEATE_INLINE void for_vectors(int count, bool eight, const Use& use) {
  int at = 0;
  for (; eight && at + 8 <= count; at += 8) use(at, Constant<8>());
  for (; at + 4 <= count; at += 4) use(at, Constant<4>());
  if (count & 2) use(at, Constant<2>());
  if (count & 1) use(count - 1, Constant<1>());
}

// Whole pairs of vectors cannot be read where there is one.
template <class Unit, int C>
constexpr bool splits(Reads reads) {
  return reads == Reads::whole && C % Unit::kStep != 0;
}

// to[row] = shrink[row] * to + weights . values, as add_by_dim, over rows of v as they are: rows[i] of panel i, one
// panel after the other: from memory once, for the other rows of the group from the first-level cache.
template <class Unit>
inline bool add_row_values(const Tile& t, const Group& g, const float* weights, const int64_t* at, int64_t stride,
                           const void* const* const* rows, const int* widths, int n, const float* shrink, float* to) {
  const int dims = padded(t.value_dim);
  const float none[kGroupRows] = {1, 1, 1, 1, 1, 1};
  bool sound = true;
  for (int i = 0; i < n; ++i) {
    ValueRows v{rows[i], 0, rows_ahead(row_bytes(t.value_dim, t.key_type)), weights + at[i], stride};
    while (v.count < widths[i] && rows[i][v.count]) ++v.count;
    const Reads reads =
        v.count % Unit::kStep == 0 ? how_to_read<Unit>(t.key_type, t.value_dim, kDimMultiple) : Reads::any;
    for_vectors(dims / kLanes, reads != Reads::scaled, [&](int vector, auto columns) {
      constexpr int C = columns.value, most = weighed_rows(C);
      for (int r = 0; r < g.rows; r += most)
        with_rows(smaller(most, g.rows - r), [&](auto count) {
          constexpr int R = smaller(count.value, most);
          ValueRows of = v;
          of.weights += r * stride;
          if (r > 0 || vector > 0) of.ahead = 0;
          const bool good = with_reads(splits<Unit, C>(reads) ? Reads::any : reads, [&](auto how) {
            constexpr Reads kReads = splits<Unit, C>(Reads(how.value)) ? Reads::any : Reads(how.value);
            return add_values<Unit, kReads, R, C>(t, of, vector * kLanes, (i == 0 ? shrink : none) + r,
                                                  to + int64_t{g.row + r} * dims, dims);
          });
          sound = sound && good;
        });
    });
  }
  return sound;
}
