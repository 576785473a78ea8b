// Logits beyond scale * q.k, their gradients, and dropout.  To be included inside a level's own anonymous namespace,
// after products.h.

inline float element(const char* data, DType type, int64_t i) {
  if (type == DType::f32) return ((const float*)data)[i];
  uint16_t half[Simd::kWidth] = {((const uint16_t*)data)[i]};
  float value[Simd::kWidth];
  Simd::store(value, Simd::load_as(half, type));
  return value[0];
}

// Element i of a row of q8.
inline float scaled_element(const char* row, int dim, int i) {
  uint16_t scale;
  __builtin_memcpy(&scale, row + dim + 2 * (i / kScaled), 2);
  return float(((const int8_t*)row)[i]) * element((const char*)&scale, DType::bf16, 0);
}

FOVEATE_INLINE I key_ids(const Panel& p, int column) {
  return p.ids ? Simd::load_i(p.ids + column) : Simd::count_from(p.first + column);
}

// Whether a vector of keys stands side by side in memory, inside the keys there are.
FOVEATE_INLINE bool side_by_side(const Tile& t, const Panel& p, int column) {
  return !p.ids && p.first + column + Simd::kWidth <= t.keys;
}

inline F bias_values(const Tile& t, const Panel& p, int row, int column) {
  const ScoreTerms& score = t.score;
  const int64_t base = row / t.queries * score.bias_head + t.query_ids[row] * score.bias_query;
  if (score.bias_key == 0) return Simd::set(element(score.bias, score.bias_type, base));
  if (score.bias_key == 1 && side_by_side(t, p, column)) {
    const char* at = score.bias + (base + p.first + column) * int64_t(bytes_of(score.bias_type));
    return score.bias_type == DType::f32 ? Simd::load((const float*)at)
                                         : Simd::load_as((const uint16_t*)at, score.bias_type);
  }
  float values[Simd::kWidth];
  for (int i = 0; i < Simd::kWidth; ++i) {
    const int32_t key = p.ids ? p.ids[column + i] : p.first + column + i;
    values[i] = key < t.keys ? element(score.bias, score.bias_type, base + key * score.bias_key) : 0;
  }
  return Simd::load(values);
}

FOVEATE_INLINE F distances(const Tile& t, const Panel& p, int row, int column) {
  const F away = Simd::to_floats(Simd::subtract(Simd::set_i(t.positions[row]), key_ids(p, column)));
  return Simd::max(away, Simd::set(0) - away);
}

// Columns of an axis for a vector of keys; of some key where there is none.
FOVEATE_INLINE I relative_columns(const Tile& t, const Panel& p, int row, int column, int axis) {
  const RelativeTerm& term = t.score.relative;
  const int32_t* keys = term.keys + axis * term.key_stride;
  const int32_t query = term.queries[axis * term.query_stride + t.query_ids[row]];
  int32_t places[Simd::kWidth];
  if (side_by_side(t, p, column)) {
    Simd::store_i(places, Simd::load_i(keys + p.first + column));
  } else {
    for (int i = 0; i < Simd::kWidth; ++i) {
      const int32_t key = p.ids ? p.ids[column + i] : p.first + column + i;
      places[i] = key < t.keys ? keys[key] : 0;
    }
  }
  return Simd::clamp_i(Simd::subtract(Simd::load_i(places), Simd::set_i(query)), 0, term.sizes[axis] - 1);
}

inline F relative_values(const Tile& t, const Panel& p, int row, int column) {
  const RelativeTerm& term = t.score.relative;
  const float* logits = term.logits + row / t.queries * term.head + t.query_ids[row] * term.query;
  F sum = Simd::set(0);
  for (int axis = 0; axis < term.axes; logits += term.sizes[axis++])
    sum = sum + Simd::gather(logits, relative_columns(t, p, row, column, axis));
  return sum;
}

// d logit / d (scale * q.k) and d logit / d (what is added to it) of a row's 64 keys, where they are not 1.
struct LogitFactors {
  float *product, *added;
};

// Logits (times log2(e)) of a row's 64 products.
inline void make_logits(const Tile& t, const Panel& p, int row, float* s, const LogitFactors* factors) {
  const ScoreTerms& score = t.score;
  for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
    F x = Simd::load(s + column) * Simd::set(score.scale), slope = Simd::set(1);
    if (score.soft_cap > 0) {
      const F power = Floats::exp2(x * Simd::set(2 * kLog2e / score.soft_cap));
      const F tanh = Simd::set(1) - Simd::set(2) / (power + Simd::set(1));
      x = tanh * Simd::set(score.soft_cap);
      slope = Simd::set(1) - tanh * tanh;
    }
    if (score.bias) x = x + bias_values(t, p, row, column);
    if (score.relative.logits) x = x + relative_values(t, p, row, column);
    if (score.slopes) x = x - Simd::set(score.slopes[row / t.queries]) * distances(t, p, row, column);
    if (score.leaky != 1) {
      const F factor = Simd::select(Simd::positive(x), Simd::set(1), Simd::set(score.leaky));
      x = x * factor, slope = slope * factor;
      if (factors) Simd::store(factors->added + column, factor);
    }
    if (factors) Simd::store(factors->product + column, slope);
    Simd::store(s + column, x * Simd::set(kLog2e));
  }
}

// -inf where a row does not see a key.
inline void hide(const Tile& t, const Panel& p, int row, float* s) {
  const F hidden = Simd::set(-kInfinity);
  const RowBounds& b = t.bounds[row];
  if (p.check == Check::rule && !p.ids && !p.documents && p.first >= t.sinks) {  // most often: an interval
    const int32_t low = b.low > b.floor ? b.low : b.floor;
    for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
      const I ids = Simd::count_from(p.first + column);
      const M seen = Simd::both(Simd::below(ids, b.high), Simd::no(Simd::below(ids, low)));
      Simd::store(s + column, Simd::select(seen, Simd::load(s + column), hidden));
    }
    return;
  }
  for (int column = 0; column < kPanelKeys; column += Simd::kWidth)
    Simd::store(s + column,
                Simd::select(visible(t, p, row, key_ids(p, column), column), Simd::load(s + column), hidden));
}

// ---- landmarks: ops::Score::landmarks, a block of 16, 32 or 64 keys with its landmark last ----

// Calls use(first column, in the row's own block) for the blocks of a panel.
template <class Use>
inline void for_landmark_blocks(const Tile& t, const Panel& p, int row, const Use& use) {
  const int block = t.score.landmark_block, position = t.positions[row];
  const int32_t own = (position < 0 ? 0 : position < t.keys ? position : t.keys) / block;
  for (int column = 0; column < kPanelKeys; column += block) use(column, (p.first + column) / block == own);
}

// Shifts the logits (times log2(e), -inf where invisible) of blocks other than the row's own so that together they
// weigh what their landmark does; landmarks become -inf.
inline void group_logits(const Tile& t, const Panel& p, int row, float* s) {
  const int block = t.score.landmark_block;
  for_landmark_blocks(t, p, row, [&](int first, bool own) {
    const float gate = s[first + block - 1];
    s[first + block - 1] = -kInfinity;
    if (own) return;
    F top = Simd::set(-kInfinity), sum = Simd::set(0);
    for (int column = first; column < first + block; column += Simd::kWidth)
      top = Simd::max(top, Simd::load(s + column));
    const float most = Simd::largest(top);
    const bool seen = gate != -kInfinity && most != -kInfinity;
    for (int column = first; seen && column < first + block; column += Simd::kWidth)
      sum = sum + Floats::exp2(Simd::load(s + column) - Simd::set(most));
    const F shift = Simd::set(seen ? gate - most - __builtin_log2f(Simd::total(sum)) : -kInfinity);
    for (int column = first; column < first + block; column += Simd::kWidth)
      Simd::store(s + column, seen ? Simd::load(s + column) + shift : shift);
  });
}

// d loss / d shifted logit of a row -> d loss / d logit, with the weights before dropout: a key's share of its block's
// sum goes to the landmark.
inline void group_gradients_of_row(const Tile& t, const Panel& p, int row, const float* weights, float* d) {
  const int block = t.score.landmark_block;
  for_landmark_blocks(t, p, row, [&](int first, bool own) {
    if (own) return;
    F sum = Simd::set(0), weight = Simd::set(0);
    for (int column = first; column < first + block; column += Simd::kWidth)
      sum = sum + Simd::load(d + column), weight = weight + Simd::load(weights + column);
    const float all = Simd::total(sum), gate = Simd::total(weight);
    if (gate == 0) return;
    for (int column = first; column < first + block; column += Simd::kWidth)
      Simd::store(d + column, Simd::load(d + column) - Simd::load(weights + column) * Simd::set(all / gate));
    d[first + block - 1] = all;
  });
}

inline void adjust(const Tile& t, const Panel& p, int row, Sight seen, float* s, const LogitFactors* factors) {
  if (!t.score.plain()) make_logits(t, p, row, s, factors);
  if (seen == Sight::some) hide(t, p, row, s);
  if (t.score.landmark_block) group_logits(t, p, row, s);
}

// Lanes that dropout keeps (base/random.h: dropout_bits).
FOVEATE_INLINE M kept(const Tile& t, const Panel& p, int row, int column) {
  const uint32_t* words = t.drop_words + 2 * row;
  I x = Simd::add(Simd::multiply(key_ids(p, column), int32_t(0x9e3779b1u)), Simd::set_i(int32_t(words[0])));
  x = Simd::multiply(x ^ Simd::shift_down<16>(x), int32_t(0x21f0aaadu));
  x = Simd::add(x ^ Simd::shift_down<15>(x), Simd::set_i(int32_t(words[1])));
  x = Simd::multiply(x ^ Simd::shift_down<16>(x), int32_t(0x735a2d97u));
  return Simd::no(Simd::below(Simd::shift_down<1>(x ^ Simd::shift_down<15>(x)), int32_t(t.score.drop_below)));
}

// Adds what d loss / d (added terms) of a row's 64 keys, 0 where invisible, gives to the terms.
inline void add_term_gradients(const BackwardTile& t, const Panel& p, int row, const float* d) {
  const ScoreGradients& g = t.terms;
  if (t.bounds[row].high < 0) return;  // no query: adding 0 to another's sums would race with its own
  if (g.bias) {
    float* to = g.bias + row / t.queries * g.bias_head + t.query_ids[row] * g.bias_query;
    for (int i = 0; i < kPanelKeys; ++i) {
      const int32_t key = p.ids ? p.ids[i] : p.first + i;
      if (key < t.keys) to[key * g.bias_key] += d[i];
    }
  }
  if (g.columns == 0) return;
  float* sums = g.rows + int64_t{row} * g.columns;
  F sum = Simd::set(0), far = Simd::set(0);
  for (int column = 0; column < kPanelKeys; column += Simd::kWidth) {
    const F x = Simd::load(d + column);
    sum = sum + x;
    if (g.slope_column >= 0) far = Simd::fma(x, distances(t, p, row, column), far);
    if (g.relative_column < 0) continue;
    float* to = sums + g.relative_column;
    for (int axis = 0; axis < t.score.relative.axes; to += t.score.relative.sizes[axis++]) {
      int32_t columns[Simd::kWidth];
      Simd::store_i(columns, relative_columns(t, p, row, column, axis));
      for (int i = 0; i < Simd::kWidth; ++i) to[columns[i]] += d[column + i];
    }
  }
  if (g.bias_column >= 0) sums[g.bias_column] += Simd::total(sum);
  if (g.slope_column >= 0) sums[g.slope_column] -= Simd::total(far);
}
