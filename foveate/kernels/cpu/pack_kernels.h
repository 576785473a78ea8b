// Packing, and what happens to finished rows.  To be included inside a level's own anonymous namespace, after
// row_kernels.h.

void pack_rows(const void* const* rows, int count, int dim, DType type, int step, float* to) {
  const int steps = (dim + step - 1) / step;
  for (int r = 0; r < count; ++r, to += steps)
    for (int at = 0; at < steps; at += kLanes) {
      const F units = row_units(rows[r], at, dim, type, step);
      if (at + kLanes <= steps) {
        Simd::store(to + at, units);
      } else {
        float last[kLanes];
        Simd::store(last, units);
        for (int i = at; i < steps; ++i) to[i] = last[i - at];
      }
    }
}

void pack_by_key(const void* const* rows, int count, int dim, DType type, int step, float* to,
                 const void* const* ahead) {
  const int steps = (dim + step - 1) / step;
  const int64_t unit_bytes = step * int64_t(bytes_of(type));
  for (int at = 0; at < steps; at += kLanes)
    for (int key = 0; key < count; key += kLanes) {
      for (int i = 0; ahead && i < kLanes; ++i)
        if (ahead[key + i]) fetch((const char*)ahead[key + i] + at * unit_bytes);
      bool any = false;
      for (int i = 0; i < kLanes; ++i) any = any || rows[key + i];
      if (!any) {
        for (int i = at; i < smaller(at + kLanes, steps); ++i)
          Simd::store(to + int64_t{i} * kPanelKeys + key, Simd::set(0));
        continue;
      }
      F block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = row_units(rows[key + i], at, dim, type, step);
      if (at + kLanes <= steps) {
        Simd::transpose(block, to + int64_t{at} * kPanelKeys + key, kPanelKeys);
        continue;
      }
      float last[kLanes * kLanes];
      Simd::transpose(block, last, kLanes);
      for (int i = at; i < steps; ++i)
        __builtin_memcpy(to + int64_t{i} * kPanelKeys + key, last + (i - at) * kLanes, sizeof(float) * kLanes);
    }
}

// Pairs of bf16 rows as they are, `dim` a multiple of kLanes; returns false, not finished, where a value is NaN or
// Inf or a row is null.  (Whole vectors of both rows by two shuffles gain nothing: memory decides.)
bool interleave_halves(const void* const* rows, int count, int all, int dim, float* to, const void* const* ahead) {
  for (int i = 0; i < count; i += 2) {
    const uint16_t *low = (const uint16_t*)rows[i], *high = (const uint16_t*)rows[i + 1];
    if (!low || !high) return false;
    for (int j = i; ahead && j < i + 2; ++j) fetch_ahead(ahead[j], int64_t{2} * dim);
    M sound = Simd::finite(Simd::set(0));
    for (int d = 0; d < dim; d += kLanes) {
      const int first = d / kPanelKeys * kPanelKeys, width = smaller(kPanelKeys, padded(dim) - first);
      const F a = Simd::load_as(low + d, DType::bf16), b = Simd::load_as(high + d, DType::bf16);
      sound = Simd::both(sound, Simd::both(Simd::finite(a), Simd::finite(b)));
      Simd::store(to + int64_t{all / 2} * first + int64_t{i / 2} * width + d - first,
                  (F)(Simd::shift_down<16>((I)a) | (I)b));
    }
    if (!Simd::all(sound)) return false;
  }
  return true;
}

bool pack_by_dim(const void* const* rows, int count, int all, int dim, DType type, int step, float* to,
                 const void* const* ahead) {
  if (type == DType::bf16 && step == 2 && dim % kDimMultiple == 0 &&
      interleave_halves(rows, count, all, dim, to, ahead))
    return false;
  const int dims = padded(dim), steps = count / step;
  M sound = Simd::finite(Simd::set(0));
  const auto values = [&](const void* row, int at) {
    const F x = row_floats(row, at, dim, type);
    const M good = Simd::finite(x);
    sound = Simd::both(sound, good);
    return Simd::select(good, x, Simd::set(0));
  };
  for (int d = 0; d < dims; d += kPanelKeys) {
    const int width = smaller(kPanelKeys, dims - d);
    float* block = to + int64_t{all / step} * d;
    for (int i = 0; i < steps; ++i)
      for (int column = 0; column < width; column += kLanes) {
        float* at = block + int64_t{i} * width + column;
        if (step == 1) {
          Simd::store(at, values(rows[i], d + column));
          continue;
        }
        const I low = Simd::to_bf16(values(rows[2 * i], d + column));
        const I high = Simd::to_bf16(values(rows[2 * i + 1], d + column));
        Simd::store(at, (F)((I)Simd::shift_up(high) | low));
      }
  }
  return !Simd::all(sound);
}

// Elements [at, at + kLanes) of a row that ends at `dim`.
FOVEATE_INLINE void put_floats(void* row, int at, int dim, F x, DType type) {
  const bool whole = at + kLanes <= dim;
  float rest[kLanes];
  uint16_t half[kLanes];
  if (type == DType::f32) {
    Simd::store(whole ? (float*)row + at : rest, x);
    if (!whole) __builtin_memcpy((float*)row + at, rest, size_t(dim - at) * 4);
  } else {
    Simd::store_as(whole ? (uint16_t*)row + at : half, x, type);
    if (!whole) __builtin_memcpy((uint16_t*)row + at, half, size_t(dim - at) * 2);
  }
}

// Rows of outputs are padded: reading whole vectors is safe.
void store_row(void* to, const float* from, F factor, int dim, DType type) {
  for (int at = 0; at < dim; at += kLanes) put_floats(to, at, dim, Simd::load(from + at) * factor, type);
}

void finish(const Finish& f) {
  for (int r = 0; r < f.rows; ++r) {
    if (!f.out[r]) continue;  // a row that is no query
    const bool empty = f.sum[r] == 0;
    float lse = empty ? -kInfinity : f.top[r] * f.top_scale + __builtin_logf(f.sum[r]);
    float factor = empty ? 0 : f.out_scale / f.sum[r];
    if (f.sink) {
      const float sink = f.sink[r], top = sink > lse ? sink : lse;
      const float with =
          top == -kInfinity ? top : top + __builtin_logf(__builtin_expf(lse - top) + __builtin_expf(sink - top));
      if (!empty) factor *= __builtin_expf(lse - with);
      lse = with;
    }
    *f.lse[r] = lse;
    store_row(f.out[r], f.acc + int64_t{r} * padded(f.value_dim), Simd::set(factor), f.value_dim, f.type);
  }
}

void row_dots(const void* const* a, const void* const* b, int rows, int dim, DType type, float* out) {
  for (int r = 0; r < rows; ++r) {
    F sum = Simd::set(0);
    for (int at = 0; at < dim; at += kLanes)
      sum = Simd::fma(row_floats(a[r], at, dim, type), row_floats(b[r], at, dim, type), sum);
    out[r] = Simd::total(sum);
  }
}

void quantise_row(const void* from, int dim, DType type, void* to) {
  int8_t* codes = (int8_t*)to;
  for (int first = 0; first < dim; first += kScaled) {
    const int count = smaller(kScaled, dim - first);
    float x[kScaled] = {}, largest = 0;
    for (int at = 0; at < count; at += kLanes) Simd::store(x + at, row_floats(from, first + at, dim, type));
    bool sound = true;
    for (int i = 0; i < kScaled; ++i) {
      const float size = __builtin_fabsf(x[i]);
      sound = sound && size < kInfinity;
      largest = size > largest ? size : largest;
    }
    uint32_t bits;
    largest /= 127;
    __builtin_memcpy(&bits, &largest, 4);
    uint16_t scale = uint16_t((bits + 0xffff) >> 16);  // to bf16, upwards: no code is above 127
    if (largest < 0x1p-120f) scale = 0;                // its inverse must be finite
    if (!sound) scale = 0x7fc0;
    bits = uint32_t{scale} << 16;
    float factor;
    __builtin_memcpy(&factor, &bits, 4);
    const float inverse = sound && scale != 0 ? 1 / factor : 0;
    for (int i = 0; i < count; ++i) codes[first + i] = sound ? int8_t(__builtin_rintf(x[i] * inverse)) : int8_t(1);
    __builtin_memcpy(codes + dim + 2 * (first / kScaled), &scale, 2);
  }
}

void scale_row(const float* from, int dim, float factor, DType type, void* to) {
  store_row(to, from, Simd::set(factor), dim, type);
}

void add_scaled(const void* from, int dim, DType type, float factor, float* to) {
  int at = 0;
  for (; at + kLanes <= dim; at += kLanes)
    Simd::store(to + at, Simd::fma(row_floats(from, at, dim, type), Simd::set(factor), Simd::load(to + at)));
  for (; at < dim; ++at) to[at] += element((const char*)from, type, at) * factor;
}

void add_row(const float* from, int dim, float* to) {
  for (int d = 0; d < dim; ++d) to[d] += from[d];
}
