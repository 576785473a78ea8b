// Products of few query rows with rows of q8 in whole numbers (VNNI): codes are multiplied as they are, four products a
// lane; converting each of them to a float costs more than reading them from memory.  For head dims that are multiples
// of kScaled.  To be included inside a level's own anonymous namespace, after its Pairs.
//
// vpdpbusd multiplies unsigned bytes by signed ones, so 16 bits take two of them: x = 256 * high + low.
//   scores   unsigned: the key's codes + 128; signed: the query.  128 * sum(query) is in where sums start.
//   values   unsigned: the weights, which are not negative; signed: codes of four keys, interleaved.
struct Codes : Floats {
  static constexpr bool kCodes = true;
  static FOVEATE_INLINE F exp2(F x) { return Simd::exp2(x, kExp2Coarse); }  // weights have 16 bits

  static constexpr int kBytes = 64, kBlocks = 2;  // of a vector: codes, and scales they have

  // 64 elements of a query: element = scale of the row * (256 * high + low), which is even.
  struct QueryVector {
    int8_t high[kBytes], low[kBytes];
    int32_t start[16];  // 256 * start = -128 * sum of 4 elements
  };
  static int vectors(int dim) { return (dim + kBytes - 1) / kBytes; }
  static float query_scale(const char* row, int dim) {
    float scale;
    __builtin_memcpy(&scale, row + vectors(dim) * sizeof(QueryVector), 4);
    return scale;
  }

  static bool pack_query(const void* row, int dim, DType type, void* to) {
    F largest = Simd::set(0);
    for (int at = 0; at < dim; at += kLanes) {
      const F x = row_floats(row, at, dim, type);
      if (!Simd::all(Simd::finite(x))) return false;
      largest = Simd::max(largest, Simd::max(x, Simd::set(0) - x));
    }
    const float scale = Simd::largest(largest) / 32512, inverse = scale > 0x1p-100f ? 1 / scale : 0;
    auto* vector = (QueryVector*)to;
    for (int first = 0; first < dim; first += kBytes, ++vector) {
      int element[kBytes];
      for (int at = 0; at < kBytes; at += kLanes) {
        const F halves = row_floats(row, first + at, dim, type) * Simd::set(inverse / 2);
        _mm512_storeu_si512(element + at, _mm512_slli_epi32(_mm512_cvtps_epi32(halves), 1));
      }
      for (int i = 0; i < kBytes; ++i) {
        vector->low[i] = int8_t(element[i]);
        vector->high[i] = int8_t((element[i] - vector->low[i]) / 256);
      }
      for (int i = 0; i < 16; ++i)
        vector->start[i] = -(element[4 * i] + element[4 * i + 1] + element[4 * i + 2] + element[4 * i + 3]) / 2;
    }
    __builtin_memcpy(vector, &scale, 4);
    return true;
  }

  // Two scales, of eight lanes each; the second may be absent.
  static FOVEATE_INLINE F two_scales(const void* row, int dim, int vector, bool second) {
    const char* at = (const char*)row + dim + 2 * kBlocks * vector;
    uint32_t both = 0;
    if (second)
      __builtin_memcpy(&both, at, 4);
    else
      __builtin_memcpy(&both, at, 2);
    const I places = _mm512_set_epi64(0x0302808003028080, 0x0302808003028080, 0x0302808003028080, 0x0302808003028080,
                                      0x0100808001008080, 0x0100808001008080, 0x0100808001008080, 0x0100808001008080);
    return (F)_mm512_shuffle_epi8(_mm512_set1_epi32(int(both)), places);
  }

  template <int R, bool kWhole>
  static FOVEATE_INLINE void add_vector(const Tile& t, const char* q, int64_t q_stride, const void* const* keys,
                                        int vector, Sums<R, 4>& sums) {
    unrolled<4>([&](auto i) __attribute__((always_inline)) {
      const char* codes = (const char*)keys[i.value] + kBytes * vector;
      const I read = kWhole ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(0xffffffff, codes);
      const I key = _mm512_xor_si512(read, _mm512_set1_epi8(-128));
      const F scale = two_scales(keys[i.value], t.dim, vector, kWhole);
      unrolled<R>([&](auto r) __attribute__((always_inline)) {
        const auto& query = ((const QueryVector*)(q + r.value * q_stride))[vector];
        I sum = _mm512_dpbusd_epi32(_mm512_loadu_si512(query.start), key, _mm512_loadu_si512(query.high));
        sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), key, _mm512_loadu_si512(query.low));
        F& total = sums.at[r.value][i.value];
        total = Simd::fma(Simd::to_floats(sum), scale, total);
      });
    });
  }

  // As row_products: to[r * stride + key] = q[r] . keys[key], all keys there; ahead[key]: what to fetch meanwhile.
  template <int R>
  __attribute__((noinline)) static void row_products(const Tile& t, const char* q, int64_t q_stride,
                                                     const void* const* keys, int width, const void* const* ahead,
                                                     float* to, int64_t stride, F* tops) {
    products_by_four<R>(
        row_bytes(t.dim, DType::q8), ahead, width, to, stride,
        tops, [&](int key, F(&quads)[R]) __attribute__((always_inline)) {
          Sums<R, 4> sums;
          int vector = 0;
          for (; vector < t.dim / kBytes; ++vector) add_vector<R, true>(t, q, q_stride, keys + key, vector, sums);
          if (t.dim % kBytes) add_vector<R, false>(t, q, q_stride, keys + key, vector, sums);
          unrolled<R>([&](auto r) __attribute__((always_inline)) {
            F(&x)[4] = sums.at[r.value];
            quads[r.value] =
                Simd::sum_quads(x[0], x[1], x[2], x[3]) * Simd::set(query_scale(q + r.value * q_stride, t.dim));
          });
        });
  }

  // Rows that are not there read as the first: what comes of them is not visible, or weighs nothing.
  static const void* const* all_there(const void* const* rows, const void* (&own)[kPanelKeys]) {
    if (rows[kPanelKeys - 1]) return rows;
    for (int i = 0; i < kPanelKeys; ++i) own[i] = rows[i] ? rows[i] : rows[0];
    return own;
  }

  static void group_products(const ForwardTile& t, const Group& g, const void* const* keys, int width, float* to,
                             int64_t stride, F* tops) {
    const void* own[kPanelKeys];
    const void *const *rows = all_there(keys, own), *const *ahead = keys + rows_ahead(row_bytes(t.dim, DType::q8));
    const int64_t q_stride = query_code_bytes(t.dim);
    with_rows(g.rows, [&](auto count) {
      row_products<count.value>(t, t.q_codes + g.row * q_stride, q_stride, rows, width, ahead, to, stride, tops);
    });
  }

  // What the codes of a panel's values are multiplied by: for each block of kScaled dims, row of queries and key, the
  // weight times the block's scale, as a whole number of 15 bits over `factor`, a power of two.  It follows from what
  // the row itself weighs: an invisible key must not change how visible ones are rounded.
  struct Weights {
    static constexpr int kMostBlocks = kLargestDim / kScaled;
    // The number 4 * i + j of each four bytes is of keys 16 * j + 4 * i up to 16 * j + 4 * i + 3.
    uint8_t high[kMostBlocks][kGroupRows][kPanelKeys], low[kMostBlocks][kGroupRows][kPanelKeys];
    float inverse[kMostBlocks][kGroupRows];  // 1 / factor
  };
  static constexpr int kVectors = kPanelKeys / kLanes, kBlocksAtOnce = 4;

  // Scales of up to four blocks from `block` on, by key; NaN and Inf as 0.  Returns whether there were none.
  static FOVEATE_INLINE bool read_scales(const Tile& t, const void* const* values, int block,
                                         F (&to)[kBlocksAtOnce][kVectors]) {
    const int count = smaller(kBlocksAtOnce, t.value_dim / kScaled - block);
    alignas(64) uint16_t halves[kPanelKeys][kBlocksAtOnce] = {};
    for (int key = 0; key < kPanelKeys; ++key) {
      const char* at = (const char*)values[key] + t.value_dim + 2 * block;
      if (count == kBlocksAtOnce)
        __builtin_memcpy(halves[key], at, 8);
      else
        __builtin_memcpy(halves[key], at, size_t(2 * count));
    }
    bool sound = true;
    const I places = _mm512_slli_epi32(Simd::count_from(0), 18);  // upper halves of lanes: the first of each four
    for (int i = 0; i < kVectors; ++i) {
      const I low = _mm512_load_si512(halves[i * kLanes]), high = _mm512_load_si512(halves[i * kLanes + kLanes / 2]);
      for (int b = 0; b < kBlocksAtOnce; ++b) {
        const I of_block = _mm512_add_epi32(places, _mm512_set1_epi32(b << 16));
        const F scale = (F)_mm512_maskz_permutex2var_epi16(0xaaaaaaaa, low, of_block, high);
        const M finite = Simd::finite(scale);
        to[b][i] = Simd::select(finite, scale, Simd::set(0));
        sound = sound && Simd::all(finite);
      }
    }
    return sound;
  }

  // Lanes 4 * i + j: powers of two that take the largest lane of x[j] to less than 2^15; from 2^-100 on.
  static FOVEATE_INLINE F factors(const F (&x)[kBlocksAtOnce]) {
    const F ab = Simd::max(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const F cd = Simd::max(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512d low = _mm512_castps_pd(ab), high = _mm512_castps_pd(cd);
    F most =
        Simd::max(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    most = Simd::max(most, _mm512_shuffle_f32x4(most, most, 0x4e));
    most = Simd::max(most, _mm512_shuffle_f32x4(most, most, 0xb1));
    return _mm512_scalef_ps(Simd::set(1), Simd::set(14) - _mm512_getexp_ps(Simd::max(most, Simd::set(0x1p-100f))));
  }

  // Returns whether all scales were finite.
  static bool put_weights(const Tile& t, int rows, const float* weights, int64_t stride, const void* const* values,
                          Weights& to) {
    bool sound = true;
    for (int block = 0; block < t.value_dim / kScaled; block += kBlocksAtOnce) {
      F scales[kBlocksAtOnce][kVectors];
      sound = read_scales(t, values, block, scales) && sound;
      const int count = smaller(kBlocksAtOnce, t.value_dim / kScaled - block);
      for (int r = 0; r < rows; ++r) {
        F weight[kVectors], most[kBlocksAtOnce];
        for (int i = 0; i < kVectors; ++i) weight[i] = Simd::load(weights + r * stride + i * kLanes);
        for (int b = 0; b < kBlocksAtOnce; ++b) {
          most[b] = weight[0] * scales[b][0];
          for (int i = 1; i < kVectors; ++i) most[b] = Simd::max(most[b], weight[i] * scales[b][i]);
        }
        const F factor = factors(most);
        float inverse[kLanes];
        Simd::store(inverse, Simd::set(1) / factor);
        for (int b = 0; b < count; ++b) {
          const F of_block = _mm512_permutexvar_ps(_mm512_set1_epi32(b), factor);
          I whole[kVectors];
          for (int i = 0; i < kVectors; ++i) whole[i] = _mm512_cvtps_epi32(weight[i] * scales[b][i] * of_block);
          const I first = _mm512_packus_epi32(whole[0], whole[1]), second = _mm512_packus_epi32(whole[2], whole[3]);
          const I mask = _mm512_set1_epi16(0xff);
          const I low = _mm512_packus_epi16(_mm512_and_si512(first, mask), _mm512_and_si512(second, mask));
          const I high = _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
          _mm512_store_si512(to.low[block + b][r], low), _mm512_store_si512(to.high[block + b][r], high);
          to.inverse[block + b][r] = inverse[b];
        }
      }
    }
    return sound;
  }

  // Of keys key .. key + 3.
  static FOVEATE_INLINE I four_weights(const uint8_t* of_panel, int key) {
    int four;
    __builtin_memcpy(&four, of_panel + key / 16 * 4 + key % 16 * 4, 4);
    return _mm512_set1_epi32(four);
  }

  // Codes of 64 dims of four rows, interleaved: of the first or the second block of them, first[i] and second[i] being
  // dims 8 * (i / 4) + i % 4 and those + 4.
  template <bool kSecond, bool kWhole>
  static FOVEATE_INLINE void interleave_four(const void* const* rows, int at, I& first, I& second) {
    I row[4];
    unrolled<4>([&](auto i) __attribute__((always_inline)) {
      const char* codes = (const char*)rows[i.value] + at;
      const I read = kWhole ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(0xffffffff, codes);
      row[i.value] = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), read);
    });
    const I a = kSecond ? _mm512_unpackhi_epi8(row[0], row[1]) : _mm512_unpacklo_epi8(row[0], row[1]);
    const I b = kSecond ? _mm512_unpackhi_epi8(row[2], row[3]) : _mm512_unpacklo_epi8(row[2], row[3]);
    first = _mm512_unpacklo_epi16(a, b), second = _mm512_unpackhi_epi16(a, b);
  }

  // One block of dims: to[r * stride] = shrink[r] * to + weights . values; ahead[key], unless null: what to fetch
  // meanwhile.
  template <int R, bool kSecond, bool kWhole>
  __attribute__((noinline)) static void add_block(const Tile& t, const Weights& w, int block, const void* const* values,
                                                  int width, const void* const* ahead, const float* shrink, float* to,
                                                  int64_t stride) {
    const int at = block / kBlocks * kBytes;
    const int64_t bytes = row_bytes(t.value_dim, DType::q8);
    I high[R][2], low[R][2];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      high[r.value][0] = high[r.value][1] = low[r.value][0] = low[r.value][1] = _mm512_setzero_si512();
    });
    for (int key = 0; key < width; key += 4) {
      for (int j = key; ahead && j < key + 4; ++j) fetch_ahead(ahead[j], bytes);
      I first, second;
      interleave_four<kSecond, kWhole>(values + key, at, first, second);
      unrolled<R>([&](auto r) __attribute__((always_inline)) {
        const I upper = four_weights(w.high[block][r.value], key);
        high[r.value][0] = _mm512_dpbusd_epi32(high[r.value][0], upper, first);
        high[r.value][1] = _mm512_dpbusd_epi32(high[r.value][1], upper, second);
        const I lower = four_weights(w.low[block][r.value], key);
        low[r.value][0] = _mm512_dpbusd_epi32(low[r.value][0], lower, first);
        low[r.value][1] = _mm512_dpbusd_epi32(low[r.value][1], lower, second);
      });
    }
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      F sums[2];
      for (int i = 0; i < 2; ++i)
        sums[i] = Simd::to_floats(_mm512_add_epi32(_mm512_slli_epi32(high[r.value][i], 8), low[r.value][i]));
      Pairs::put_in_order(sums[0], sums[1]);
      const F inverse = Simd::set(w.inverse[block][r.value]), factor = Simd::set(shrink[r.value]);
      float* place = to + r.value * stride + block * kScaled;
      for (int i = 0; i < 2; ++i)
        Simd::store(place + i * kLanes, Simd::fma(Simd::load(place + i * kLanes), factor, sums[i] * inverse));
    });
  }

  // As add_row_values, for one panel.
  static bool add_values(const Tile& t, const Group& g, const float* weights, int64_t stride, const void* const* rows,
                         int width, const float* shrink, float* to) {
    const void* own[kPanelKeys];
    const void *const *values = all_there(rows, own), *const *ahead =
                                                          rows + rows_ahead(row_bytes(t.value_dim, DType::q8));
    alignas(64) Weights w;
    const bool sound = put_weights(t, g.rows, weights, stride, values, w);
    const int dims = padded(t.value_dim);
    with_rows(g.rows, [&](auto count) {
      constexpr int R = count.value;
      for (int block = 0; block < t.value_dim / kScaled; ++block) {
        const bool second = block % kBlocks, whole = block / kBlocks < t.value_dim / kBytes;
        const auto add = second  ? add_block<R, true, true>
                         : whole ? add_block<R, false, true>
                                 : add_block<R, false, false>;
        add(t, w, block, values, width, block == 0 ? ahead : nullptr, shrink, to + int64_t{g.row} * dims, dims);
      }
    });
    return sound;
  }
};
