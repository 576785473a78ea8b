// AVX2 with FMA and F16C: 8 floats.  To be included inside the level's own anonymous namespace.
struct Simd : CopiedTails<Simd> {
  using F = __m256;
  using I = __m256i;
  using M = __m256;  // all bits of a lane
  static constexpr int kWidth = 8, kColumns = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F set_bf16(uint16_t x) { return _mm256_castsi256_ps(_mm256_set1_epi32(int32_t(uint32_t{x} << 16))); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float largest(F x) {
    const __m128 h = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
  }
  static float total(F x) {
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
  }
  static F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static M finite(F x) {
    const F magnitude = _mm256_andnot_ps(set(-0.0f), x);
    return _mm256_cmp_ps(magnitude, set(kInfinity), _CMP_LT_OQ);
  }
  static M not_zero(F x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ); }
  static bool all(M m) { return _mm256_movemask_ps(m) == 0xff; }

  static I count_from(int first) {
    return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static I load_i(const int32_t* p) { return _mm256_loadu_si256((const I*)p); }
  static M below(I a, int32_t b) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(b), a)); }
  static M equal(I a, int32_t b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, _mm256_set1_epi32(b))); }
  static M both(M a, M b) { return _mm256_and_ps(a, b); }
  static M either(M a, M b) { return _mm256_or_ps(a, b); }
  static M no(M a) { return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }

  template <int N>
  static F exp2(F x, const float (&c)[N]) {
    x = _mm256_min_ps(set(127), x);  // the exponent would wrap; NaN passes
    const F whole = _mm256_floor_ps(x), fraction = _mm256_sub_ps(x, whole);
    F p = set(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) p = fma(p, fraction, set(c[i]));
    const I power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    const F result = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
    return _mm256_and_ps(result, _mm256_cmp_ps(x, set(-126), _CMP_NLT_UQ));  // NaN stays NaN
  }

  static F load_as(const uint16_t* p, DType type) {
    const __m128i half = _mm_loadu_si128((const __m128i*)p);
    if (type == DType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  // The first n, zeros behind.
  static F load_first(const float* p, int n) {
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), count_from(0)));
  }
  static void store_as(uint16_t* p, F x, DType type) {
    if (type == DType::f16) {
      _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
    const I wide = to_bf16(x);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  }
  static I to_bf16(F x) {
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  }

  static void store_i(int32_t* p, I x) { _mm256_storeu_si256((I*)p, x); }
  static I clamp_i(I x, int32_t low, int32_t high) {
    return _mm256_min_epi32(_mm256_max_epi32(x, _mm256_set1_epi32(low)), _mm256_set1_epi32(high));
  }
  static F gather(const float* from, I index) { return _mm256_i32gather_ps(from, index, 4); }
  static I set_i(int32_t x) { return _mm256_set1_epi32(x); }
  static F to_floats(I x) { return _mm256_cvtepi32_ps(x); }
  static M positive(F x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I multiply(I a, int32_t b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }
  template <int N>
  static I shift_down(I x) {  // zeros come in
    return _mm256_srli_epi32(x, N);
  }
  static I shift_up(I x) { return _mm256_slli_epi32(x, 16); }
  static I bits_and(I a, int32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
  static I bits_or(I a, I b) { return _mm256_or_si256(a, b); }
  static I load_bytes(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }

  // Four vectors to one: lane 4 * i + j is the sum of lanes 4 * i .. 4 * i + 3 of vector j.
  static F sum_quads(F a, F b, F c, F d) { return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)); }
  // Lane 4 * i + j is the sum of every fourth lane of vector i, from lane j on.
  static F sum_fourths(const F (&x)[2]) {
    return _mm256_permute2f128_ps(x[0], x[1], 0x20) + _mm256_permute2f128_ps(x[0], x[1], 0x31);
  }

  // 8 rows of 8 units become 8 columns.
  static void transpose(const F (&r)[8], float* to, int64_t stride) {
    F a[8], b[8];
    for (int i = 0; i < 8; i += 2)
      a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    for (int i = 0; i < 8; i += 4)
      for (int half = 0; half < 2; ++half) {
        b[i + 2 * half] = _mm256_shuffle_ps(a[i + half], a[i + 2 + half], 0x44);
        b[i + 2 * half + 1] = _mm256_shuffle_ps(a[i + half], a[i + 2 + half], 0xee);
      }
    for (int c = 0; c < 4; ++c) {
      store(to + c * stride, _mm256_permute2f128_ps(b[c], b[4 + c], 0x20));
      store(to + (4 + c) * stride, _mm256_permute2f128_ps(b[c], b[4 + c], 0x31));
    }
  }
};
