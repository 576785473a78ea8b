// Neighborhood attention of a vector of queries against a box of keys.  To be included inside a level's own anonymous
// namespace, after pack_kernels.h.
//
// Products go by lanes: a key's row is read by broadcast, element by element, for all queries at once.  Sums over keys
// go by quads of lanes with dims in the vectors: a quad visits only the rows of keys that it sees.

// to[key][lane] = sum over steps of rows[key][step] * by_dim[step][lane] for the keys of the box; `pointers`: room.
template <class Unit>
__attribute__((noinline)) void lane_products(const LaneTile& t, const float* by_dim, const float* rows, int dim,
                                             const float** pointers, float* to) {
  const int steps = (dim + Unit::kStep - 1) / Unit::kStep;
  int keys = 0;
  for (int32_t a = 0; a < t.box.end[0] - t.box.first[0]; ++a)
    for (int32_t b = 0; b < t.box.end[1] - t.box.first[1]; ++b) {
      const float* row = rows + (a * t.stride[0] + b * t.stride[1]) * steps;
      for (int x = 0; x < t.width; ++x, row += steps) pointers[keys++] = row;
    }
  while (keys % kKeysAtOnce != 0) pointers[keys] = pointers[keys - 1], ++keys;
  for (int key = 0; key < keys; key += kKeysAtOnce, to += kKeysAtOnce * kLanes) {
    const float* row[kKeysAtOnce];
    for (int i = 0; i < kKeysAtOnce; ++i) row[i] = pointers[key + i];
    Sums<kKeysAtOnce, 1> sums;
    for (int step = 0; step < steps; ++step) {
      const F lanes = Simd::load(by_dim + int64_t{step} * kPanelKeys);
      unrolled<kKeysAtOnce>([&](auto i) __attribute__((always_inline)) {
        sums.at[i.value][0] = Unit::dot(Simd::set(row[i.value][step]), lanes, sums.at[i.value][0]);
      });
    }
    sums.for_each([&](int i, int, F sum) __attribute__((always_inline)) { Simd::store(to + i * kLanes, sum); });
  }
}

FOVEATE_INLINE M in_window(const LaneTile& t, int axis, int32_t key) {
  return Simd::both(Simd::below(Simd::load_i(t.first[axis]), key + 1),
                    Simd::no(Simd::below(Simd::load_i(t.end[axis]), key + 1)));
}

// Calls use(index of its first key, where it is seen, its bias) for each row of the box.
template <class Use>
FOVEATE_INLINE void for_box_rows(const LaneTile& t, const Use& use) {
  int key = 0;
  for (int32_t a = t.box.first[0]; a < t.box.end[0]; ++a) {
    const M outer = in_window(t, 0, a);
    for (int32_t b = t.box.first[1]; b < t.box.end[1]; ++b, key += t.width)
      use(key, Simd::both(outer, in_window(t, 1, b)),
          (a - t.box.first[0]) * t.bias_stride[0] + (b - t.box.first[1]) * t.bias_stride[1]);
  }
}

// Products become logits times log2(e), -inf where a lane does not see a key; returns the largest of each lane.
inline F lane_logits(const LaneTile& t, float* scores) {
  F tops = Simd::set(-kInfinity);
  const F scale = Simd::set(t.scale);
  for_box_rows(t, [&](int key, M row, int64_t bias) {
    for (int x = 0; x < t.width; ++x) {
      float* at = scores + int64_t{key + x} * kLanes;
      F logit = Simd::load(at) * scale;
      if (t.bias) logit = logit + Simd::load(t.bias + bias + x * t.bias_stride[2]);
      logit = Simd::select(Simd::both(row, in_window(t, 2, t.box.first[2] + x)), logit, Simd::set(-kInfinity));
      Simd::store(at, logit);
      tops = Simd::max(tops, logit);
    }
  });
  return tops;
}

// The part of a quad's box that lies in the tile's, as ranges of its rows.
struct QuadRows {
  int32_t first[2], end[2];
  int at, units;  // of a row: the first unit and how many
};

template <class Unit>
inline bool quad_rows(const LaneTile& t, int quad, QuadRows& to) {
  int32_t low[kGridAxes], high[kGridAxes];
  for (int axis = 0; axis < kGridAxes; ++axis) {
    const KeyBox& box = t.quads[quad];
    low[axis] = box.first[axis] > t.box.first[axis] ? box.first[axis] : t.box.first[axis];
    high[axis] = box.end[axis] < t.box.end[axis] ? box.end[axis] : t.box.end[axis];
    if (low[axis] >= high[axis]) return false;
  }
  for (int axis = 0; axis < 2; ++axis) to.first[axis] = low[axis], to.end[axis] = high[axis];
  to.at = (low[2] - t.box.first[2]) / Unit::kStep;
  to.units = (high[2] - t.box.first[2] + Unit::kStep - 1) / Unit::kStep - to.at;
  return true;
}

// acc[lane] = keep[lane] * acc + sum over keys of weights[unit of keys][lane] * t.by_dim, quad by quad.
template <class Unit>
__attribute__((noinline)) void add_quads(const LaneTile& t, const float* weights, int dim, const float* keep,
                                         float* acc) {
  const int dims = padded(dim), rows = t.box.end[1] - t.box.first[1];
  const int64_t row_stride = int64_t{t.row_units} * dims;  // from a row along the last axis to the next
  const int64_t outer_stride = t.stride[0] / t.stride[1] * row_stride;
  for (int quad = 0; quad < kLanes / kQuad; ++quad) {
    QuadRows part;
    float* to = acc + int64_t{quad} * kQuad * dims;
    if (!quad_rows<Unit>(t, quad, part)) {
      for (int r = 0; r < kQuad; ++r, to += dims)
        for (int d = 0; d < dims; d += kLanes)
          Simd::store(to + d, Simd::load(to + d) * Simd::set(keep[quad * kQuad + r]));
      continue;
    }
    for (int d = 0; d < dims; d += kPanelKeys) {
      const int width = smaller(kPanelKeys, dims - d);
      const float* block = t.by_dim + int64_t{t.row_units} * d + int64_t{t.row_at + part.at} * width;
      for_columns(width, [&](int column, auto columns) {
        Sums<kQuad, columns.value> sums;
        for (int32_t a = part.first[0] - t.box.first[0]; a < part.end[0] - t.box.first[0]; ++a)
          for (int32_t b = part.first[1] - t.box.first[1]; b < part.end[1] - t.box.first[1]; ++b) {
            const int unit = (a * rows + b) * (t.width / Unit::kStep) + part.at;
            sums.template add_products<Unit>(weights + int64_t{unit} * kLanes + quad * kQuad, 1, kLanes,
                                             block + a * outer_stride + b * row_stride + column, width, part.units);
          }
        sums.for_each([&](int r, int c, F sum) __attribute__((always_inline)) {
          float* place = to + r * dims + d + column + c * Simd::kWidth;
          Simd::store(place, Simd::fma(Simd::load(place), Simd::set(keep[quad * kQuad + r]), sum));
        });
      });
    }
  }
}

struct LaneScratch {
  const float** pointers;
  float *scores, *more;         // [keys][lanes]
  float *p_by_key, *ds_by_key;  // [keys][lanes / step] units
};

inline LaneScratch lane_scratch(const LaneTile& t) {
  constexpr int64_t kKeys = kBoxKeys + kKeysAtOnce;
  LaneScratch s;
  s.pointers = (const float**)t.scratch;
  s.scores = t.scratch + 2 * kKeys;
  s.more = s.scores + kKeys * kMostLanes;
  s.p_by_key = s.more + kKeys * kMostLanes;
  s.ds_by_key = s.p_by_key + kKeys * kMostLanes;
  return s;
}

// Returns false where the weights of a lane are not finite.
template <class Unit>
bool lane_forward(const LaneForward& t) {
  const LaneScratch s = lane_scratch(t);
  lane_products<Unit>(t, t.q, t.k, t.dim, s.pointers, s.scores);
  const F before = Simd::load(t.top), now = Simd::max(before, lane_logits(t, s.scores));
  const F keep = Floats::exp2(before - now);
  F sum = Simd::load(t.sum) * keep;
  for (int unit = 0; unit < t.keys / Unit::kStep; ++unit) {  // weights move to the front of the scores
    const float* at = s.scores + int64_t{unit} * Unit::kStep * kLanes;
    const F p = Unit::exp2(Simd::load(at) - now);
    sum = sum + p;
    if constexpr (Unit::kStep == 1) {
      Simd::store(s.scores + int64_t{unit} * kLanes, p);
    } else {
      const F other = Unit::exp2(Simd::load(at + kLanes) - now);
      sum = sum + other;
      Simd::store(s.scores + int64_t{unit} * kLanes, Unit::interleave(p, other));
    }
  }
  float kept[kLanes];
  Simd::store(kept, keep);
  Simd::store(t.top, now);
  Simd::store(t.sum, sum);
  add_quads<Unit>(t, s.scores, t.value_dim, kept, t.acc);
  return Simd::all(Simd::finite(sum));
}

// Quads [first, end) that see some key of x .. x + keys - 1 of a row.
inline void quads_of(const LaneTile& t, int32_t a, int32_t b, int32_t x, int keys, int& first, int& end) {
  first = end = 0;
  for (int quad = 0; quad < kLanes / kQuad; ++quad) {
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
  constexpr int kUnits = kLanes / Unit::kStep;
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
FOVEATE_INLINE void store_by_key(float* to, int64_t key, const F (&x)[Unit::kStep]) {
  if constexpr (Unit::kStep == 1)
    Simd::store(to + key * kLanes, x[0]);
  else
    Simd::store(to + key / 2 * kLanes, Unit::join(x[0], x[1]));
}

// Scores and d_out . v become P and dS; returns false where one is not finite.
template <class Unit>
inline bool lane_gradients(const LaneBackward& t, const LaneScratch& s) {
  const F scale = Simd::set(t.scale), lse = Simd::load(t.lse), delta = Simd::load(t.delta), none = Simd::set(0);
  M sound = Simd::finite(none);
  const auto gradient = [&](int64_t key, M seen, int64_t bias, F & p, F & ds) __attribute__((always_inline)) {
    F logit = Simd::load(s.scores + key * kLanes) * scale;
    if (t.bias) logit = logit + Simd::load(t.bias + bias);
    p = Simd::select(seen, Unit::exp2(logit - lse), none);
    ds = Simd::select(seen, p * (Simd::load(s.more + key * kLanes) - delta), none);
    sound = Simd::both(sound, Simd::both(Simd::finite(p), Simd::finite(ds)));
    if (t.d_bias) Simd::store(t.d_bias + bias, Simd::load(t.d_bias + bias) + ds);
  };
  for_box_rows(t, [&](int key, M row, int64_t bias) {
    for (int x = 0; x < t.width; x += Unit::kStep) {
      F p[Unit::kStep], ds[Unit::kStep];
      for (int i = 0; i < Unit::kStep; ++i)
        gradient(key + x + i, Simd::both(row, in_window(t, 2, t.box.first[2] + x + i)),
                 bias + (x + i) * t.bias_stride[2], p[i], ds[i]);
      store_by_key<Unit>(s.p_by_key, key + x, p);
      store_by_key<Unit>(s.ds_by_key, key + x, ds);
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
  lane_products<Unit>(t, t.q, t.k, t.dim, s.pointers, s.scores);
  lane_products<Unit>(t, t.d_out, t.v, t.value_dim, s.pointers, s.more);
  const bool sound = lane_gradients<Unit>(t, s);
  float all[kLanes];
  Simd::store(all, Simd::set(1));
  add_quads<Unit>(t, Unit::kStep == 1 ? s.ds_by_key : s.more, t.dim, all, t.d_q);
  add_to_keys<Unit>(t, s.ds_by_key, t.q_by_dim, t.dim, t.d_k);
  add_to_keys<Unit>(t, s.p_by_key, t.d_out_by_dim, t.value_dim, t.d_v);
  return sound;
}
