// What forward and backward share: products in registers, who sees what, and scores beyond scale * q.k.  To be included
// inside a level's own anonymous namespace, after its Simd.
using F = Simd::F;
using I = Simd::I;
using M = Simd::M;
constexpr int kTileColumns = Simd::kWidth * Simd::kColumns;

// 2^x on [0, 1): largest relative error 7.5e-8 and 7.5e-5 (Remez); the second is far below what bf16 can hold.
constexpr float kExp2[] = {0.9999999251f,  0.6931530731f,   0.2401536173f,
                           0.05582631767f, 0.008989340284f, 0.00187757668f};
constexpr float kExp2Coarse[] = {0.9999252205f, 0.6958335289f, 0.2260671678f, 0.07802452307f};

#define FOVEATE_INLINE inline __attribute__((always_inline))

struct Floats {
  static constexpr int kStep = 1;        // elements of the inner axis in a unit
  static constexpr bool kCodes = false;  // rows of q8 are multiplied in whole numbers
  static FOVEATE_INLINE F dot(F a, F b, F sum) { return Simd::fma(a, b, sum); }
  static FOVEATE_INLINE F exp2(F x) { return Simd::exp2(x, kExp2); }
};

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls use(Constant<0>()) .. use(Constant<N - 1>()).
template <int N, class Use>
FOVEATE_INLINE void unrolled(const Use& use) {
  if constexpr (N > 0) {
    unrolled<N - 1>(use);
    use(Constant<N - 1>());
  }
}

// R rows by C vectors of sums that stay in registers.  Only constants may index them: g++ 12 unrolls plain loops too
// late, and the sums went to memory and back around every product (140 cycles for 6 x 64 of them, Zen 4).
template <int R, int C>
struct Sums {
  F at[R][C];

  FOVEATE_INLINE Sums() {
    for_each([](int, int, F& sum) __attribute__((always_inline)) { sum = Simd::set(0); });
  }

  // use(row, vector, sum)
  template <class Use>
  FOVEATE_INLINE void for_each(const Use& use) {
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      unrolled<C>([&](auto c) __attribute__((always_inline)) { use(r.value, c.value, at[r.value][c.value]); });
    });
  }

  // sums[r][c] += sum over steps of a[r] * b[c]
  template <class Unit>
  FOVEATE_INLINE void add_products(const float* a, int64_t row_stride, int64_t step_stride, const float* b,
                                   int64_t b_stride, int steps) {
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step) {
      F columns[C];
      unrolled<C>([&](auto c)
                      __attribute__((always_inline)) { columns[c.value] = Simd::load(b + c.value * Simd::kWidth); });
      unrolled<R>([&](auto r) __attribute__((always_inline)) {
        const F one = Simd::set(a[r.value * row_stride]);
        unrolled<C>([&](auto c) __attribute__((always_inline)) {
          at[r.value][c.value] = Unit::dot(one, columns[c.value], at[r.value][c.value]);
        });
      });
      a += step_stride, b += b_stride;
    }
  }
};

template <class Use>
FOVEATE_INLINE void with_rows(int rows, const Use& use) {
  switch (rows) {
    case 1:
      return use(Constant<1>());
    case 2:
      return use(Constant<2>());
    case 3:
      return use(Constant<3>());
    case 4:
      return use(Constant<4>());
    case 5:
      return use(Constant<5>());
    default:
      return use(Constant<6>());
  }
}

// Calls use(first column, vectors of a pass) until `width` columns, a multiple of 16, are done.
template <class Use>
FOVEATE_INLINE void for_columns(int width, const Use& use) {
  if constexpr (kTileColumns == kPanelKeys) {
    switch (width / 16) {
      case 1:
        return use(0, Constant<1>());
      case 2:
        return use(0, Constant<2>());
      case 3:
        return use(0, Constant<3>());
      default:
        return use(0, Constant<4>());
    }
  } else {
    for (int column = 0; column < width; column += kTileColumns) use(column, Constant<Simd::kColumns>());
  }
}

FOVEATE_INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// ---- who sees what ----

// What a group of rows has in common: the range all of them see, and the range any of them sees.
struct GroupBounds {
  int32_t all_low, all_high, any_low, any_high, floor;
};

inline GroupBounds group_bounds(const Tile& t, int row, int rows) {
  GroupBounds g{0, INT32_MAX, INT32_MAX, 0, INT32_MAX};
  for (int r = row; r < row + rows; ++r) {
    const RowBounds& b = t.bounds[r];
    const int32_t low = b.low > b.floor ? b.low : b.floor;
    g.all_low = low > g.all_low ? low : g.all_low;
    g.any_low = low < g.any_low ? low : g.any_low;
    g.all_high = b.high < g.all_high ? b.high : g.all_high;
    g.any_high = b.high > g.any_high ? b.high : g.any_high;
    g.floor = b.floor < g.floor ? b.floor : g.floor;
  }
  return g;
}

enum class Sight { nothing, all, some };

inline Sight sight(const Tile& t, const GroupBounds& g, const Panel& p) {
  if (p.check == Check::none) return Sight::all;
  if (p.ids || p.check == Check::end) return Sight::some;
  const int32_t end = p.first + kPanelKeys;
  if (p.first >= g.any_high || end <= g.floor) return Sight::nothing;
  if (end <= g.any_low && p.first >= t.sinks) return Sight::nothing;
  return end <= g.all_high && p.first >= g.all_low && !p.documents ? Sight::all : Sight::some;
}

// Columns of a panel, a multiple of 16, behind which no row of a group sees a key.  Panels are packed so far at least.
inline int columns_seen(const Tile& t, const GroupBounds& g, const Panel& p) {
  if (p.check == Check::none || p.ids) return kPanelKeys;
  const int32_t columns = (p.check == Check::end ? t.keys : g.any_high) - p.first;
  return columns < kPanelKeys ? (columns + 15) / 16 * 16 : kPanelKeys;
}

FOVEATE_INLINE M visible(const Tile& t, const Panel& p, int row, I ids, int column) {
  if (p.check == Check::end) return Simd::below(ids, t.keys);
  const RowBounds& b = t.bounds[row];
  M seen = Simd::both(Simd::below(ids, b.high), Simd::no(Simd::below(ids, b.floor)));
  seen = Simd::both(seen, Simd::either(Simd::no(Simd::below(ids, b.low)), Simd::below(ids, t.sinks)));
  if (p.documents) seen = Simd::both(seen, Simd::equal(Simd::load_i(p.documents + column), t.documents[row]));
  return seen;
}

// ---- a group of rows and a panel ----

constexpr int kStripColumns = kStripPanels * kPanelKeys;

struct Group {
  int row, rows;
  GroupBounds bounds;
};

// Products of a group with a panel: to[r * stride + column]; tops[r] takes their largest.
template <class Unit, int R>
FOVEATE_INLINE void group_products(const float* rows, int depth, const float* panel, float* to, int64_t stride,
                                   F* tops) {
  for (int column = 0; column < kPanelKeys; column += kTileColumns) {
    Sums<R, Simd::kColumns> sums;
    sums.template add_products<Unit>(rows, depth, 1, panel + column, kPanelKeys, depth);
    sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
      Simd::store(to + r * stride + column + c * Simd::kWidth, sum);
    });
    if (tops)
      sums.for_each([&](int r, int, F sum) __attribute__((always_inline)) { tops[r] = Simd::max(tops[r], sum); });
  }
}

// The same for the first `width` columns, a multiple of 16.  Not inlined: it is for edges.
template <class Unit>
__attribute__((noinline)) void edge_products(const float* rows, int count, int depth, const float* panel, int width,
                                             float* to, int64_t stride) {
  with_rows(count, [&](auto all_rows) {
    for_columns(width, [&](int column, auto columns) {
      constexpr int R = all_rows.value, C = columns.value;
      Sums<R, C> sums;
      sums.template add_products<Unit>(rows, depth, 1, panel + column, kPanelKeys, depth);
      sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
        Simd::store(to + r * stride + column + c * Simd::kWidth, sum);
      });
    });
  });
}

// to[row][dims] = shrink[row] * to + weights . panels over their keys, for the rows of a group: the weights of panel i
// stand at weights + at[i], by_dim[i] is the panel's K or V by dim, of which the first widths[i] keys count.
template <class Unit>
inline void add_by_dim(const Group& g, const float* weights, const int64_t* at, int64_t stride,
                       const float* const* by_dim, const int* widths, int n, int dims, const float* shrink, float* to) {
  constexpr int steps = kPanelKeys / Unit::kStep;
  for (int dim = 0; dim < dims; dim += kPanelKeys) {
    const int width = smaller(kPanelKeys, dims - dim);
    for_columns(width, [&](int column, auto columns) {
      with_rows(g.rows, [&](auto rows) {
        constexpr int R = rows.value, C = columns.value;
        Sums<R, C> sums;
        for (int i = 0; i < n; ++i) {
          const float* block = by_dim[i] + int64_t{steps} * dim + column;
          const int seen = widths[i] == kPanelKeys ? steps : widths[i] / Unit::kStep;
          sums.template add_products<Unit>(weights + at[i], stride, 1, block, width, seen);
        }
        sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
          float* place = to + int64_t{g.row + r} * dims + dim + column + c * Simd::kWidth;
          Simd::store(place, Simd::fma(Simd::load(place), Simd::set(shrink[r]), sum));
        });
      });
    });
  }
}
