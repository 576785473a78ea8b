// What the machine can do at most.  To be included inside a level's own anonymous namespace, after products.h.

volatile float peak_sink;

template <class Unit>
double peak_products(int64_t rounds) {
  constexpr int kChains = Simd::kColumns == 4 ? 12 : 10;  // more than latency times throughput, fewer than registers
  F sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = Simd::set(float(c));  // all different, or they would be computed once
  const F a = Simd::set(1e-9f), b = Simd::set(1.0f);
  for (int64_t i = 0; i < rounds; ++i)
    for (int c = 0; c < kChains; ++c) sums[c] = Unit::kStep == 1 ? Simd::fma(sums[c], a, b) : Unit::dot(a, b, sums[c]);
  for (int c = 1; c < kChains; ++c) sums[0] = sums[0] + sums[c];
  peak_sink = Simd::total(sums[0]);
  return 2.0 * double(rounds) * kChains * Simd::kWidth * Unit::kStep;
}

float read(const float* from, int64_t count) {
  constexpr int kChains = 8;
  F sums[kChains] = {};
  for (int64_t i = 0; i + kChains * Simd::kWidth <= count; i += kChains * Simd::kWidth)
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] + Simd::load(from + i + c * Simd::kWidth);
  for (int c = 1; c < kChains; ++c) sums[0] = sums[0] + sums[c];
  return Simd::total(sums[0]);
}
