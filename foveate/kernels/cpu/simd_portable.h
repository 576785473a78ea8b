// Vector extensions of g++ and clang: any machine.  To be included inside the level's own anonymous namespace.
struct Simd : CopiedTails<Simd> {
  static constexpr int kWidth = 8, kColumns = 2;
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));
  using M = I;  // all bits of a lane

  static F load(const float* p) {
    F x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
  static F set(float x) { return x - F{}; }
  static F set_bf16(uint16_t x) {
    const uint32_t bits = uint32_t{x} << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return set(value);
  }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static float largest(F x) {
    float top = x[0];
    for (int i = 1; i < kWidth; ++i) top = top > x[i] ? top : x[i];
    return top;
  }
  static float total(F x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
  static F select(M m, F yes, F no) { return m ? yes : no; }
  static M finite(F x) { return (x < kInfinity) & (x > -kInfinity); }
  static M not_zero(F x) { return x != 0; }
  static bool all(M m) {
    int32_t held = -1;
    for (int i = 0; i < kWidth; ++i) held &= m[i];
    return held != 0;
  }

  static I count_from(int first) { return I{0, 1, 2, 3, 4, 5, 6, 7} + first; }
  static I load_i(const int32_t* p) {
    I x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static M below(I a, int32_t b) { return a < b; }
  static M equal(I a, int32_t b) { return a == b; }
  static M both(M a, M b) { return a & b; }
  static M either(M a, M b) { return a | b; }
  static M no(M a) { return ~a; }

  template <int N>
  static F exp2(F x, const float (&c)[N]) {
    const F above = x < -127 ? set(-127) : x;  // NaN passes
    const F inside = above > 127 ? set(127) : above;
    I whole = __builtin_convertvector(inside, I);
    const F truncated = __builtin_convertvector(whole, F);
    whole += truncated > inside;  // -1 where truncation went up
    const F fraction = inside - __builtin_convertvector(whole, F);
    F p = set(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) p = fma(p, fraction, set(c[i]));
    const F result = p * (F)((whole + 127) << 23);
    return x < -126 ? F{} : result;
  }

  static F load_as(const uint16_t* p, DType type) {
    F x;
    for (int i = 0; i < kWidth; ++i) x[i] = type == DType::f16 ? from_f16(p[i]) : from_bits(uint32_t{p[i]} << 16);
    return x;
  }
  // The first n, zeros behind.
  static F load_first(const float* p, int n) {
    float first[kWidth] = {};
    __builtin_memcpy(first, p, size_t(n) * 4);
    return load(first);
  }
  static void store_as(uint16_t* p, F x, DType type) {
    const I wide = to_bf16(x);
    for (int i = 0; i < kWidth; ++i) p[i] = type == DType::f16 ? to_f16(x[i]) : uint16_t(wide[i]);
  }
  static I to_bf16(F x) {
    const U bits = (U)x;
    const U rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
    return x == x ? (I)rounded : I{} + 0x7fc0;
  }
  static float from_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }
  static uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
  }
  static float from_f16(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // exponent and fraction shifted into place; the product moves the bias from 15 to 127, denormals included
    return from_bits(sign | bits_of(from_bits(rest << 13) * 0x1p112f));
  }
  static uint16_t to_f16(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above round to Inf
    if (rest < 0x38800000) {                                 // below 2^-14: adding 0.5 rounds at 2^-24, to nearest even
      const float shifted = from_bits(rest) + 0.5f;
      return uint16_t(sign | (bits_of(shifted) - 0x3f000000));
    }
    return uint16_t(sign | ((rest + 0xfff + (rest >> 13 & 1)) - 0x38000000) >> 13);
  }

  static void store_i(int32_t* p, I x) { __builtin_memcpy(p, &x, sizeof x); }
  static I clamp_i(I x, int32_t low, int32_t high) {
    const I above = x < low ? I{} + low : x;
    return above > high ? I{} + high : above;
  }
  static F gather(const float* from, I index) {
    F x;
    for (int i = 0; i < kWidth; ++i) x[i] = from[index[i]];
    return x;
  }
  static I set_i(int32_t x) { return I{} + x; }
  static F to_floats(I x) { return __builtin_convertvector(x, F); }
  static M positive(F x) { return x > 0; }
  static I add(I a, I b) { return (I)((U)a + (U)b); }
  static I subtract(I a, I b) { return (I)((U)a - (U)b); }
  static I multiply(I a, int32_t b) { return (I)((U)a * uint32_t(b)); }
  template <int N>
  static I shift_down(I x) {  // zeros come in
    return (I)((U)x >> N);
  }
  static I shift_up(I x) { return x << 16; }
  static I bits_and(I a, int32_t mask) { return a & mask; }
  static I bits_or(I a, I b) { return a | b; }
  static I load_bytes(const int8_t* p) { return I{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}; }

  // Four vectors to one: lane 4 * i + j is the sum of lanes 4 * i .. 4 * i + 3 of vector j.
  static F sum_quads(F a, F b, F c, F d) {
    const F ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
                 __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const F cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13) +
                 __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    return __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  // Lane 4 * i + j is the sum of every fourth lane of vector i, from lane j on.
  static F sum_fourths(const F (&x)[2]) {
    return __builtin_shufflevector(x[0], x[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(x[0], x[1], 4, 5, 6, 7, 12, 13, 14, 15);
  }

  static void transpose(const F (&rows)[8], float* to, int64_t stride) {
    for (int c = 0; c < 8; ++c)
      for (int r = 0; r < 8; ++r) to[c * stride + r] = rows[r][c];
  }
};
