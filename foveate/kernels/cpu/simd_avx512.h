// AVX-512 (F, BW, DQ, VL): 16 floats.  To be included inside the level's own anonymous namespace.
struct Simd {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  static constexpr int kWidth = 16, kColumns = 4;  // floats of a vector; vectors of a register tile's row

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F set_bf16(uint16_t x) { return _mm512_castsi512_ps(_mm512_maskz_set1_epi16(0xaaaaaaaa, int16_t(x))); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float largest(F x) { return _mm512_reduce_max_ps(x); }
  static float total(F x) { return _mm512_reduce_add_ps(x); }
  static F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static M finite(F x) { return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(kInfinity), _CMP_LT_OQ); }
  static M not_zero(F x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static bool all(M m) { return m == 0xffff; }

  static I count_from(int first) {
    return _mm512_add_epi32(_mm512_set1_epi32(first),
                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static I load_i(const int32_t* p) { return _mm512_loadu_si512(p); }
  static M below(I a, int32_t b) { return _mm512_cmplt_epi32_mask(a, _mm512_set1_epi32(b)); }
  static M equal(I a, int32_t b) { return _mm512_cmpeq_epi32_mask(a, _mm512_set1_epi32(b)); }
  static M both(M a, M b) { return a & b; }
  static M either(M a, M b) { return a | b; }
  static M no(M a) { return M(~a); }

  // 2^x = 2^floor(x) * 2^(x - floor(x)).  vreduce gives the fraction (0 for -inf), vscalef takes floor(x) itself.
  template <int N>
  static F exp2(F x, const float (&c)[N]) {
    const F fraction = _mm512_reduce_ps(x, 1);
    F p = set(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) p = fma(p, fraction, set(c[i]));
    return _mm512_scalef_ps(p, x);
  }

  static F load_as(const uint16_t* p, DType type) {
    const __m256i half = _mm256_loadu_si256((const __m256i*)p);
    if (type == DType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // The first n, zeros behind; load_pairs: of 2 * kWidth halves as they are.
  static F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
  static F load_first_as(const uint16_t* p, int n, DType type) {
    const __m256i half = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
    if (type == DType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static F load_pairs(const uint16_t* p, int n) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, p));
  }
  static void store_as(uint16_t* p, F x, DType type) {
    const __m256i half =
        type == DType::f16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : _mm512_cvtepi32_epi16(to_bf16(x));
    _mm256_storeu_si256((__m256i*)p, half);
  }
  // Nearest even; NaN stays NaN.  The bf16 stands in the low half of each lane.
  static I to_bf16(F x) {
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  }

  static void store_i(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static I clamp_i(I x, int32_t low, int32_t high) {
    return _mm512_min_epi32(_mm512_max_epi32(x, _mm512_set1_epi32(low)), _mm512_set1_epi32(high));
  }
  static F gather(const float* from, I index) { return _mm512_i32gather_ps(index, from, 4); }
  static I set_i(int32_t x) { return _mm512_set1_epi32(x); }
  static F to_floats(I x) { return _mm512_cvtepi32_ps(x); }
  static M positive(F x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I multiply(I a, int32_t b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }
  template <int N>
  static I shift_down(I x) {  // zeros come in
    return _mm512_srli_epi32(x, N);
  }
  static I shift_up(I x) { return _mm512_slli_epi32(x, 16); }
  static I bits_and(I a, int32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
  static I bits_or(I a, I b) { return _mm512_or_si512(a, b); }
  static I load_bytes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }

  // Four vectors to one: lane 4 * i + j is the sum of lanes 4 * i .. 4 * i + 3 of vector j.
  static F sum_quads(F a, F b, F c, F d) {
    const F ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const F cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    const __m512d low = _mm512_castps_pd(ab), high = _mm512_castps_pd(cd);
    return _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)) + _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
  }
  // Lane 4 * i + j is the sum of every fourth lane of vector i, from lane j on.
  static F sum_fourths(const F (&x)[4]) {
    const F low = _mm512_shuffle_f32x4(x[0], x[1], 0x44) + _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    const F high = _mm512_shuffle_f32x4(x[2], x[3], 0x44) + _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    return _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
  }

  // 16 rows of 16 units become 16 columns: to[column * stride + row].
  static void transpose(const F (&rows)[16], float* to, int64_t stride) {
    F a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int half = 0; half < 2; ++half) {
        const __m512d low = _mm512_castps_pd(a[i + half]), high = _mm512_castps_pd(a[i + 2 + half]);
        b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    // b[4 * g + c]: lane l of 4 holds column 4 * l + c of rows 4 * g .. 4 * g + 3
    for (int c = 0; c < 4; ++c) {
      const F low01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44), high01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
      const F low23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
      const F high23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
      store(to + (0 + c) * stride, _mm512_shuffle_f32x4(low01, low23, 0x88));
      store(to + (4 + c) * stride, _mm512_shuffle_f32x4(low01, low23, 0xdd));
      store(to + (8 + c) * stride, _mm512_shuffle_f32x4(high01, high23, 0x88));
      store(to + (12 + c) * stride, _mm512_shuffle_f32x4(high01, high23, 0xdd));
    }
  }
};
