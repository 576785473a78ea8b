// Ends of rows of halves at levels that cannot load them by a mask: copied, zeros behind.  To be included inside a
// level's own anonymous namespace, before its Simd, which derives from this.
template <class Simd>
struct CopiedTails {
  // The first n of kWidth halves.
  static auto load_first_as(const uint16_t* p, int n, DType type) {
    uint16_t first[Simd::kWidth] = {};
    __builtin_memcpy(first, p, size_t(n) * 2);
    return Simd::load_as(first, type);
  }
  // The first n of 2 * kWidth halves as they are.
  static auto load_pairs(const uint16_t* p, int n) {
    uint16_t first[2 * Simd::kWidth] = {};
    __builtin_memcpy(first, p, size_t(n) * 2);
    return Simd::load((const float*)first);
  }
};
