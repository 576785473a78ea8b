// What a decoder layer does to rows between its matrix products.  To be included inside a level's own anonymous
// namespace, after pack_kernels.h.

// 1 / sqrt(mean square + epsilon)
FOVEATE_INLINE float inverse_size(const void* row, int dim, DType type, float epsilon) {
  F squares = Simd::set(0);
  for (int at = 0; at < dim; at += kLanes) {
    const F x = row_floats(row, at, dim, type);
    squares = Simd::fma(x, x, squares);
  }
  return 1 / __builtin_sqrtf(Simd::total(squares) / float(dim) + epsilon);
}

void take_in(const BranchRow& r) {
  const float branch_factor = r.branch_norm ? inverse_size(r.branch, r.width, r.branch_type, r.epsilon) : 1;
  for (int at = 0; r.branch && at < r.width; at += kLanes) {
    F y = row_floats(r.branch, at, r.width, r.branch_type);
    if (r.branch_norm) y = y * Simd::set(branch_factor) * row_floats(r.branch_norm, at, r.width, DType::f32);
    put_floats(r.x, at, r.width, row_floats(r.x, at, r.width, DType::f32) + y, DType::f32);
  }
  const float factor = r.norm ? inverse_size(r.x, r.width, DType::f32, r.epsilon) : 1;
  for (int at = 0; at < r.width; at += kLanes) {
    F x = row_floats(r.x, at, r.width, DType::f32);
    if (r.norm) x = x * Simd::set(factor) * row_floats(r.norm, at, r.width, DType::f32);
    put_floats(r.to, at, r.width, x, r.type);
  }
}

FOVEATE_INLINE void* element_at(const void* row, int64_t at, DType type) {
  return (char*)row + at * int64_t(bytes_of(type));
}

void rotate_heads(const HeadRows& r) {
  for (int head = 0; head < r.heads; ++head) {
    const void* from = element_at(r.from, int64_t{head} * r.dim, r.type);
    void* to = element_at(r.to, head * r.stride, r.type);
    const float factor = r.norm ? inverse_size(from, r.dim, r.type, r.epsilon) : 1;
    // Channels [first + at, ..) of a part of the head that is `dim` long.
    const auto read = [&](int first, int at, int dim) {
      const F x = row_floats(element_at(from, first, r.type), at, dim, r.type);
      return r.norm ? x * Simd::set(factor) * row_floats(r.norm + first, at, dim, DType::f32) : x;
    };
    const auto put = [&](int first, int at, int dim, F x) {
      put_floats(element_at(to, first, r.type), at, dim, x, r.type);
    };
    const int half = r.half, rest = r.dim - 2 * half;
    for (int at = 0; at < half; at += kLanes) {
      const F a = read(0, at, half), b = read(half, at, half);
      const F cos = row_floats(r.cos, at, half, DType::f32), sin = row_floats(r.sin, at, half, DType::f32);
      put(0, at, half, a * cos - b * sin);
      put(half, at, half, b * cos + a * sin);
    }
    for (int at = 0; at < rest; at += kLanes) put(2 * half, at, rest, read(2 * half, at, rest));
  }
}

// x / (1 + exp(-u)): silu with u = x; gelu's tanh form, 0.5 x (1 + tanh(u / 2)), with u = 1.5958 (x + 0.0447 x^3).
void gate_row(const GateRow& r) {
  constexpr float kSlope = 1.5957691216f, kCube = 0.044715f;  // 2 sqrt(2 / pi)
  for (int at = 0; at < r.count; at += kLanes) {
    const F x = row_floats(r.gate, at, r.count, r.type);
    const F u = r.is_gelu ? x * Simd::set(kSlope) * Simd::fma(x * x, Simd::set(kCube), Simd::set(1)) : x;
    F y = x / (Simd::set(1) + Floats::exp2(u * Simd::set(-kLog2e)));
    if (r.up) {  // the activation is rounded by itself, as where it is an operation of its own
      if (r.type == DType::bf16) y = (F)Simd::shift_up(Simd::to_bf16(y));
      y = y * row_floats(r.up, at, r.count, r.type);
    }
    put_floats(r.to, at, r.count, y, r.type);
  }
}
