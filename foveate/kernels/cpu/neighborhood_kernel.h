// Neighborhood attention of a tile of queries against a box of keys.  To be included inside a level's own anonymous
// namespace, after pack_kernels.h.
//
// Products go by lanes: a key's row is read by broadcast, element by element, for all queries at once.  Sums over keys
// go by quads of lanes with dims in the vectors: a quad visits only the rows of keys that it sees.

constexpr int kLaneVectors = kTileLanes / kLanes;  // of a tile's queries
constexpr int kVectorQuads = kLanes / kQuad;
static_assert(kLaneVectors == 1 || kLaneVectors == 2);

// Rows of the box (the last axis) that some lane of a vector may see.
struct SeenRows {
  int32_t first[2], end[2];
  FOVEATE_INLINE bool has(int32_t a, int32_t b) const {
    return a >= first[0] && a < end[0] && b >= first[1] && b < end[1];
  }
};

inline SeenRows seen_rows(const LaneTile& t, int vector) {
  SeenRows rows;
  for (int axis = 0; axis < 2; ++axis) {
    rows.first[axis] = t.box.end[axis], rows.end[axis] = t.box.first[axis];
    for (int quad = vector * kVectorQuads; quad < (vector + 1) * kVectorQuads; ++quad) {
      const int32_t first = t.quads[quad].first[axis], end = t.quads[quad].end[axis];
      if (first < rows.first[axis]) rows.first[axis] = first;
      if (end > rows.end[axis]) rows.end[axis] = end;
    }
    if (rows.first[axis] < t.box.first[axis]) rows.first[axis] = t.box.first[axis];
    if (rows.end[axis] > t.box.end[axis]) rows.end[axis] = t.box.end[axis];
  }
  return rows;
}

struct LaneScratch {
  const float** pointers;       // [keys]
  int32_t* places;              // [keys]
  float *scores, *more;         // [keys][lanes]
  float *p_by_key, *ds_by_key;  // [keys][lanes / step] units
};

inline LaneScratch lane_scratch(const LaneTile& t) {
  LaneScratch s;
  s.pointers = (const float**)t.scratch;
  s.places = (int32_t*)(t.scratch + 2 * kBoxKeys);
  s.scores = t.scratch + 4 * kBoxKeys;
  s.more = s.scores + kBoxKeys * kTileLanes;
  s.p_by_key = s.more + kBoxKeys * kTileLanes;
  s.ds_by_key = s.p_by_key + kBoxKeys * kTileLanes;
  return s;
}

// Products of `count` keys with V vectors of lanes from `vector` on, N keys at a time in registers.
template <class Unit, int V, int N>
inline void products_of(const LaneScratch& s, int count, int steps, const float* by_dim, int vector, float* to) {
  by_dim += vector * kLanes, to += vector * kLanes;
  for (int at = 0; at < count; at += N) {
    const float* row[N];
    for (int i = 0; i < N; ++i) row[i] = s.pointers[smaller(at + i, count - 1)];
    Sums<N, V> sums;
    for (int step = 0; step < steps; ++step) {
      F lanes[V];
      unrolled<V>([&](auto c) __attribute__((always_inline)) {
        lanes[c.value] = Simd::load(by_dim + int64_t{step} * kPanelKeys + c.value * kLanes);
      });
      unrolled<N>([&](auto i) __attribute__((always_inline)) {
        const F one = Simd::set(row[i.value][step]);
        unrolled<V>([&](auto c) __attribute__((always_inline)) {
          sums.at[i.value][c.value] = Unit::dot(one, lanes[c.value], sums.at[i.value][c.value]);
        });
      });
    }
    sums.for_each([&](int i, int c, F sum) __attribute__((always_inline)) {
      Simd::store(to + int64_t{s.places[smaller(at + i, count - 1)]} * kTileLanes + c * kLanes, sum);
    });
  }
}

// to[key][lane] = sum over steps of rows[key][step] * by_dim[step][lane] for the keys that a lane's vector may see.
template <class Unit>
__attribute__((noinline)) void lane_products(const LaneTile& t, const float* by_dim, const float* rows, int dim,
                                             const LaneScratch& s, float* to) {
  const int steps = (dim + Unit::kStep - 1) / Unit::kStep;
  const SeenRows first = seen_rows(t, 0), last = seen_rows(t, kLaneVectors - 1);
  for (int vectors = 1; vectors < 1 << kLaneVectors; ++vectors) {  // a bit for each
    int count = 0, place = 0;
    for (int32_t a = t.box.first[0]; a < t.box.end[0]; ++a)
      for (int32_t b = t.box.first[1]; b < t.box.end[1]; ++b, place += t.width) {
        if (first.has(a, b) + (kLaneVectors == 2 ? 2 * last.has(a, b) : 0) != vectors) continue;
        const float* row =
            rows + ((a - t.box.first[0]) * t.stride[0] + (b - t.box.first[1]) * t.stride[1]) * int64_t{steps};
        for (int x = 0; x < t.width; ++x, row += steps) s.pointers[count] = row, s.places[count++] = place + x;
      }
    if (vectors == 3)
      products_of<Unit, 2, 6>(s, count, steps, by_dim, 0, to);
    else
      products_of<Unit, 1, 8>(s, count, steps, by_dim, vectors - 1, to);
  }
}

// Where lanes of `vector` see keys at `key` of an axis.
FOVEATE_INLINE M in_window(const LaneTile& t, int vector, int axis, int32_t key) {
  return Simd::both(Simd::below(Simd::load_i(t.first[axis] + vector * kLanes), key + 1),
                    Simd::no(Simd::below(Simd::load_i(t.end[axis] + vector * kLanes), key + 1)));
}

// Calls use(index of its first key, where it is seen, its bias) for each row of the box that a vector may see.
template <class Use>
FOVEATE_INLINE void for_seen_rows(const LaneTile& t, int vector, const Use& use) {
  const SeenRows rows = seen_rows(t, vector);
  for (int32_t a = rows.first[0]; a < rows.end[0]; ++a) {
    const M outer = in_window(t, vector, 0, a);
    for (int32_t b = rows.first[1]; b < rows.end[1]; ++b)
      use(((a - t.box.first[0]) * (t.box.end[1] - t.box.first[1]) + b - t.box.first[1]) * t.width,
          Simd::both(outer, in_window(t, vector, 1, b)),
          (a - t.box.first[0]) * t.bias_stride[0] + (b - t.box.first[1]) * t.bias_stride[1] + vector * kLanes);
  }
}

// Products become logits times log2(e), -inf where a lane does not see a key; returns the largest of each lane.
inline F lane_logits(const LaneTile& t, int vector, float* scores) {
  F tops = Simd::set(-kInfinity);
  const F scale = Simd::set(t.scale);
  for_seen_rows(t, vector, [&](int key, M row, int64_t bias) {
    for (int x = 0; x < t.width; ++x) {
      float* at = scores + int64_t{key + x} * kTileLanes + vector * kLanes;
      F logit = Simd::load(at) * scale;
      if (t.bias) logit = logit + Simd::load(t.bias + bias + x * t.bias_stride[2]);
      logit = Simd::select(Simd::both(row, in_window(t, vector, 2, t.box.first[2] + x)), logit, Simd::set(-kInfinity));
      Simd::store(at, logit);
      tops = Simd::max(tops, logit);
    }
  });
  return tops;
}

// The part of a quad's box that lies in the tile's, as ranges of its rows, counted from the box's first; empty: none.
struct QuadRows {
  int32_t first[2] = {}, end[2] = {};
  int at = 0, units = 0;  // of a row: the first unit and how many
};

template <class Unit>
inline void quad_rows(const LaneTile& t, int quad, QuadRows& to) {
  int32_t low[kGridAxes], high[kGridAxes];
  for (int axis = 0; axis < kGridAxes; ++axis) {
    const KeyBox& box = t.quads[quad];
    low[axis] = (box.first[axis] > t.box.first[axis] ? box.first[axis] : t.box.first[axis]) - t.box.first[axis];
    high[axis] = (box.end[axis] < t.box.end[axis] ? box.end[axis] : t.box.end[axis]) - t.box.first[axis];
    if (low[axis] >= high[axis]) return;
  }
  for (int axis = 0; axis < 2; ++axis) to.first[axis] = low[axis], to.end[axis] = high[axis];
  to.at = low[2] / Unit::kStep;
  to.units = (high[2] + Unit::kStep - 1) / Unit::kStep - to.at;
}

constexpr int kNearKeys = 32;  // whose values all quads read before the next ones

// acc[lane] = keep[lane] * acc + sum over keys of weights[unit of keys][lane] * t.by_dim, quad by quad, a few rows of
// keys at a time.
template <class Unit>
__attribute__((noinline)) void add_quads(const LaneTile& t, const float* weights, int dim, const float* keep,
                                         float* acc) {
  const int dims = padded(dim), rows = t.box.end[1] - t.box.first[1];
  const int64_t row_stride = int64_t{t.row_units} * dims;  // from a row along the last axis to the next
  const int64_t outer_stride = t.stride[0] / t.stride[1] * row_stride;
  for (int lane = 0; lane < kTileLanes; ++lane)
    for (int d = 0; d < dims; d += kLanes) {
      float* at = acc + lane * dims + d;
      Simd::store(at, Simd::load(at) * Simd::set(keep[lane]));
    }
  QuadRows parts[kTileLanes / kQuad];
  for (int quad = 0; quad < kTileLanes / kQuad; ++quad) quad_rows<Unit>(t, quad, parts[quad]);
  const int near = t.width < kNearKeys ? kNearKeys / t.width : 1;
  const auto add = [&](int quad, int32_t a, int32_t first, int32_t end) {
    const QuadRows& part = parts[quad];
    for (int d = 0; d < dims; d += kPanelKeys) {
      const int width = smaller(kPanelKeys, dims - d);
      const float* block = t.by_dim + int64_t{t.row_units} * d + int64_t{t.row_at + part.at} * width;
      float* to = acc + int64_t{quad} * kQuad * dims + d;
      for_columns(width, [&](int column, auto columns) {
        Sums<kQuad, columns.value> sums;
        sums.for_each([&](int r, int c, F& sum) __attribute__((always_inline)) {
          sum = Simd::load(to + r * dims + column + c * Simd::kWidth);
        });
        for (int32_t b = first; b < end; ++b) {
          const int unit = (a * rows + b) * (t.width / Unit::kStep) + part.at;
          sums.template add_products<Unit>(weights + int64_t{unit} * kTileLanes + quad * kQuad, 1, kTileLanes,
                                           block + a * outer_stride + b * row_stride + column, width, part.units);
        }
        sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
          Simd::store(to + r * dims + column + c * Simd::kWidth, sum);
        });
      });
    }
  };
  for (int32_t a = 0; a < t.box.end[0] - t.box.first[0]; ++a)
    for (int32_t b = 0; b < rows; b += near)
      for (int quad = 0; quad < kTileLanes / kQuad; ++quad) {
        const QuadRows& part = parts[quad];
        if (a < part.first[0] || a >= part.end[0]) continue;
        const int32_t first = b > part.first[1] ? b : part.first[1], end = smaller(b + near, part.end[1]);
        if (first < end) add(quad, a, first, end);
      }
}

// Returns false where the weights of a lane are not finite.
template <class Unit>
bool lane_forward(const LaneForward& t) {
  const LaneScratch s = lane_scratch(t);
  lane_products<Unit>(t, t.q, t.k, t.dim, s, s.scores);
  float kept[kTileLanes];
  bool sound = true;
  for (int vector = 0; vector < kLaneVectors; ++vector) {
    const int lane = vector * kLanes;
    const F before = Simd::load(t.top + lane), now = Simd::max(before, lane_logits(t, vector, s.scores));
    const F keep = Floats::exp2(before - now);
    F sum = Simd::load(t.sum + lane) * keep;
    for_seen_rows(t, vector, [&](int key, M, int64_t) {
      for (int unit = key / Unit::kStep; unit < (key + t.width) / Unit::kStep; ++unit) {
        const float* at = s.scores + int64_t{unit} * Unit::kStep * kTileLanes + lane;
        const F p = Unit::exp2(Simd::load(at) - now);
        sum = sum + p;
        float* to = s.scores + int64_t{unit} * kTileLanes + lane;  // weights move to the front of the scores
        if constexpr (Unit::kStep == 1) {
          Simd::store(to, p);
        } else {
          const F other = Unit::exp2(Simd::load(at + kTileLanes) - now);
          sum = sum + other;
          Simd::store(to, Unit::interleave(p, other));
        }
      }
    });
    Simd::store(kept + lane, keep);
    Simd::store(t.top + lane, now);
    Simd::store(t.sum + lane, sum);
    sound = Simd::all(Simd::finite(sum)) && sound;
  }
  add_quads<Unit>(t, s.scores, t.value_dim, kept, t.acc);
  return sound;
}

// Quads [first, end) that see some key of x .. x + keys - 1 of a row.
inline void quads_of(const LaneTile& t, int32_t a, int32_t b, int32_t x, int keys, int& first, int& end) {
  first = end = 0;
  for (int quad = 0; quad < kTileLanes / kQuad; ++quad) {
    const KeyBox& box = t.quads[quad];
    if (a < box.first[0] || a >= box.end[0] || b < box.first[1] || b >= box.end[1]) continue;
    if (x >= box.end[2] || x + keys <= box.first[2]) continue;
    if (end == 0) first = quad;
    end = quad + 1;
  }
}

// to[key] += sum over lanes of pairs[key][lane] * by_dim[lane], for all keys of the box.
template <class Unit>
__attribute__((noinline)) void add_to_keys(const LaneBackward& t, const float* pairs, const float* by_dim, int dim,
                                           float* to) {
  constexpr int kUnits = kTileLanes / Unit::kStep;
  const int dims = padded(dim);
  int key = 0;
  for (int32_t a = t.box.first[0]; a < t.box.end[0]; ++a)
    for (int32_t b = t.box.first[1]; b < t.box.end[1]; ++b, key += t.width) {
      float* row = to + ((a - t.box.first[0]) * t.sum_stride[0] + (b - t.box.first[1]) * t.sum_stride[1]) * dims;
      const int width = t.box.end[2] - t.box.first[2];
      for (int x = 0; x < width; x += kQuad) {
        int first, end;
        const int keys = smaller(kQuad, width - x);
        quads_of(t, a, b, t.box.first[2] + x, keys, first, end);
        if (first == end) continue;
        const int skip = first * kQuad / Unit::kStep, steps = (end - first) * kQuad / Unit::kStep;
        with_rows(keys, [&](auto count) {
          constexpr int R = smaller(count.value, kQuad);
          for (int d = 0; d < dims; d += kPanelKeys) {
            const int wide = smaller(kPanelKeys, dims - d);
            const float* block = by_dim + int64_t{kUnits} * d + int64_t{skip} * wide;
            for_columns(wide, [&](int column, auto columns) {
              Sums<R, columns.value> sums;
              sums.template add_products<Unit>(pairs + int64_t{key + x} * kUnits + skip, kUnits, 1, block + column,
                                               wide, steps);
              sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
                float* place = row + (x + r) * t.sum_stride[2] * dims + d + column + c * Simd::kWidth;
                Simd::store(place, Simd::load(place) + sum);
              });
            });
          }
        });
      }
    }
}

// Lanes of Unit::kStep keys, one key behind the other.
template <class Unit>
FOVEATE_INLINE void store_by_key(float* to, int64_t key, int vector, const F (&x)[Unit::kStep]) {
  if constexpr (Unit::kStep == 1)
    Simd::store(to + key * kTileLanes + vector * kLanes, x[0]);
  else
    Simd::store(to + key / 2 * kLanes, Unit::join(x[0], x[1]));
}

// Scores and d_out . v become P and dS; returns false where one is not finite.
template <class Unit>
inline bool lane_gradients(const LaneBackward& t, const LaneScratch& s, int vector) {
  static_assert(Unit::kStep == 1 || kLaneVectors == 1);
  const int lane = vector * kLanes;
  const F scale = Simd::set(t.scale), lse = Simd::load(t.lse + lane), delta = Simd::load(t.delta + lane);
  const F none = Simd::set(0);
  M sound = Simd::finite(none);
  const auto gradient = [&](int64_t key, M seen, int64_t bias, F & p, F & ds) __attribute__((always_inline)) {
    F logit = Simd::load(s.scores + key * kTileLanes + lane) * scale;
    if (t.bias) logit = logit + Simd::load(t.bias + bias);
    p = Simd::select(seen, Unit::exp2(logit - lse), none);
    ds = Simd::select(seen, p * (Simd::load(s.more + key * kTileLanes + lane) - delta), none);
    sound = Simd::both(sound, Simd::both(Simd::finite(p), Simd::finite(ds)));
    if (t.d_bias) Simd::store(t.d_bias + bias, Simd::load(t.d_bias + bias) + ds);
  };
  for_seen_rows(t, vector, [&](int key, M row, int64_t bias) {
    for (int x = 0; x < t.width; x += Unit::kStep) {
      F p[Unit::kStep], ds[Unit::kStep];
      for (int i = 0; i < Unit::kStep; ++i)
        gradient(key + x + i, Simd::both(row, in_window(t, vector, 2, t.box.first[2] + x + i)),
                 bias + (x + i) * t.bias_stride[2], p[i], ds[i]);
      store_by_key<Unit>(s.p_by_key, key + x, vector, p);
      store_by_key<Unit>(s.ds_by_key, key + x, vector, ds);
      if constexpr (Unit::kStep == 2)
        Simd::store(s.more + int64_t{key + x} / 2 * kLanes, Unit::interleave(ds[0], ds[1]));
    }
  });
  return Simd::all(sound);
}

// Returns false where P or dS is not finite.
template <class Unit>
bool lane_backward(const LaneBackward& t) {
  const LaneScratch s = lane_scratch(t);
  lane_products<Unit>(t, t.q, t.k, t.dim, s, s.scores);
  lane_products<Unit>(t, t.d_out, t.v, t.value_dim, s, s.more);
  bool sound = true;
  for (int vector = 0; vector < kLaneVectors; ++vector) sound = lane_gradients<Unit>(t, s, vector) && sound;
  float all[kTileLanes];
  for (int lane = 0; lane < kTileLanes; ++lane) all[lane] = 1;
  add_quads<Unit>(t, Unit::kStep == 1 ? s.ds_by_key : s.more, t.dim, all, t.d_q);
  add_to_keys<Unit>(t, s.ds_by_key, t.q_by_dim, t.dim, t.d_k);
  add_to_keys<Unit>(t, s.p_by_key, t.d_out_by_dim, t.value_dim, t.d_v);
  return sound;
}
