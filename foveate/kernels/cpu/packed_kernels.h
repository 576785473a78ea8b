// Products with packed weights, and packed weights as floats (packed.h has the layout).  To be included inside a
// level's own anonymous namespace, after pack_kernels.h.

constexpr int kPrefetch = 4096;  // bytes ahead: matrices of 576 inputs read a fifth faster, 2 x Zen 4
constexpr int kHalves = kPackedRows / Simd::kWidth;  // vectors for the rows of a row block

#define FOVEATE_ALWAYS __attribute__((always_inline))  // of a lambda

// Steps (an even and an odd input) of a group.
constexpr int group_steps(int bits) { return bits == 4 || bits == 5 || bits == 8 ? 16 : 8; }

// The words of 16 rows and 32 inputs, `bits` of them; code `step` of each half stands in its low bits, with others
// above.
template <int kBits>
struct CodeWords {
  static constexpr int kWhole = 16 / kBits, kSpareBits = 16 % kBits;  // codes of a word, and the bits above them
  I words[kBits];

  explicit FOVEATE_INLINE CodeWords(const char* codes, int half) {
    for (int k = 0; k < kBits; ++k)
      words[k] = Simd::load_i((const int32_t*)codes + k * kPackedRows + half * Simd::kWidth);
  }
  template <int kStep>
  FOVEATE_INLINE I at() const {
    if constexpr (kStep < kWhole * kBits) {
      return Simd::template shift_down<kStep % kWhole * kBits>(words[kStep / kWhole]);
    } else if constexpr (kSpareBits == 1) {  // a bit above each word
      I code = Simd::bits_and(Simd::template shift_down<15>(words[0]), 0x00010001);
      code = Simd::bits_or(code, Simd::bits_and(Simd::template shift_down<14>(words[1]), 0x00020002));
      code = Simd::bits_or(code, Simd::bits_and(Simd::template shift_down<13>(words[2]), 0x00040004));
      if constexpr (kBits == 5) {
        code = Simd::bits_or(code, Simd::bits_and(Simd::template shift_down<12>(words[3]), 0x00080008));
        code = Simd::bits_or(code, Simd::bits_and(Simd::template shift_down<11>(words[4]), 0x00100010));
      }
      return code;
    } else {  // six bits: four above one word, two above another
      constexpr int kLeft = kStep - kWhole * kBits, kHigh = kLeft % 2 ? 10 : 8;
      const I low = Simd::bits_and(Simd::template shift_down<12>(words[kLeft]), 0x000f000f);
      return Simd::bits_or(low, Simd::bits_and(Simd::template shift_down<kHigh>(words[4 + kLeft / 2]), 0x00300030));
    }
  }
};

// Calls use(Constant<kFirst>()) .. use(Constant<kEnd - 1>()).
template <int kFirst, int kEnd, class Use>
FOVEATE_INLINE void for_steps(const Use& use) {
  if constexpr (kFirst < kEnd) {
    use(Constant<kFirst>());
    for_steps<kFirst + 1, kEnd>(use);
  }
}

// How codes meet units of x: here as an even and an odd float; pairs have their own.
template <class Unit, int kBits>
struct CodeReader {
  static constexpr int kParts = 2;
  static constexpr int unit(int step, int part) { return 2 * step + part; }
  static FOVEATE_INLINE F dot(const float* x, F value, F sum) { return Unit::dot(Simd::set(*x), value, sum); }
  I lowest;

  explicit FOVEATE_INLINE CodeReader(int first) : lowest(Simd::set_i(first)) {}
  template <int kStep>
  FOVEATE_INLINE void read(const CodeWords<kBits>& words, F (&to)[2]) const {
    constexpr int kMask = (1 << kBits) - 1;
    const I code = words.template at<kStep>();
    to[0] = Simd::to_floats(Simd::add(Simd::bits_and(code, kMask), lowest));
    to[1] = Simd::to_floats(Simd::add(Simd::bits_and(Simd::template shift_down<16>(code), kMask), lowest));
  }
};

// sums[r] = the products of one group's codes and R vectors of x, whose units stand side by side.
template <class Unit, int kFirst, int kEnd, int kBits, int R>
FOVEATE_INLINE void multiply_group(const CodeReader<Unit, kBits>& reader, const CodeWords<kBits>& words, const float* x,
                                   F (&sums)[R]) {
  using Reader = CodeReader<Unit, kBits>;
  constexpr int kChains = 2;  // a product waits for the one before it; the same for any R, or bits would depend on it
  F chains[R][kChains];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kChains; ++c) chains[r][c] = Simd::set(0);
  for_steps<kFirst, kEnd>([&](auto step) FOVEATE_ALWAYS {
    F values[Reader::kParts];
    reader.template read<step.value>(words, values);
    for (int part = 0; part < Reader::kParts; ++part)
      for (int r = 0; r < R; ++r) {
        F& sum = chains[r][(step.value * Reader::kParts + part) % kChains];
        sum = Reader::dot(x + Reader::unit(step.value, part) * R + r, values[part], sum);
      }
  });
  for (int r = 0; r < R; ++r) sums[r] = chains[r][0] + chains[r][1];
}

// Scales of a block of a row block, for one vector of its rows.
template <bool kIntegers, int kGroups>
struct BlockScales {
  const int8_t *of_groups, *of_minima;
  F scale, minimum;  // fp16

  FOVEATE_INLINE BlockScales(const char* block, int half, bool has_minimum) {
    const uint16_t* halves = (const uint16_t*)block + half * Simd::kWidth;
    scale = Simd::load_as(halves, DType::f16);
    minimum = has_minimum ? Simd::load_as(halves + kPackedRows, DType::f16) : Simd::set(-0.0f);
    of_groups = (const int8_t*)block + (has_minimum ? 4 : 2) * kPackedRows + half * Simd::kWidth;
    of_minima = of_groups + kGroups * kPackedRows;
  }
  FOVEATE_INLINE F scale_of(int group) const { return times(scale, of_groups, group); }
  FOVEATE_INLINE F minimum_of(int group) const { return times(minimum, of_minima, group); }
  static FOVEATE_INLINE F times(F factor, const int8_t* integers, int group) {
    if constexpr (kIntegers) factor = factor * Simd::to_floats(Simd::load_bytes(integers + group * kPackedRows));
    return factor;
  }
};

// Calls use(words, scales, k) for each 32 inputs of a row block, one vector of its rows: they are the k-th of a block.
template <int kBits, bool kIntegers, class Use>
FOVEATE_INLINE void for_words(const PackedView& w, const char* at, int half, const Use& use) {
  constexpr int kGroup = 2 * group_steps(kBits), kBlock = kIntegers ? 256 : kPackedInputs;
  constexpr int kPiece = packed_piece(kBlock), kWords = kBlock / kPackedInputs;
  using Scales = BlockScales<kIntegers, kBlock / kGroup>;
  const bool has_minimum = w.has_minimum;
  const int scale_bytes = packed_scale_bytes(kGroup, kBlock, has_minimum);
  const int codes_at = packed_codes_at(kGroup, kBlock, has_minimum);
  const auto use_block = [&](const char* scales, const char* codes) FOVEATE_ALWAYS {
    const Scales block(scales, half, has_minimum);
    for (int k = 0; k < kWords; ++k, codes += packed_code_bytes(kBits)) {
      for (int line = 0; line < kBits; ++line) __builtin_prefetch(codes + kPrefetch + 64 * line);
      use(CodeWords<kBits>(codes, half), block, k);
    }
  };
  int first = 0;
  for (; first + kPiece <= w.in; first += kPiece) {
    const char* scales = at;
    at += codes_at;
    for (int block = 0; block < kPiece / kBlock; ++block, at += kWords * packed_code_bytes(kBits))
      use_block(scales + block * scale_bytes, at);
  }
  if (first < w.in) use_block(at, at + codes_at);  // half a piece
}

// totals[r] = the products of a row block and R vectors of x from `vector` on.
template <class Unit, int kBits, bool kIntegers, int R>
void multiply_block(const PackedTile& t, const char* block, int vector, float* totals) {
  constexpr int kSteps = group_steps(kBits);
  const PackedView& w = t.weights;
  const CodeReader<Unit, kBits> reader(w.lowest);
  for (int half = 0; half < kHalves; ++half) {
    const float* x = t.x + vector * (w.in / Unit::kStep);
    const float* x_sums = t.sums + vector * (w.in / (2 * kSteps));
    F total[R];
    for (int r = 0; r < R; ++r) total[r] = Simd::set(0);
    for_words<kBits, kIntegers>(w, block, half, [&](const auto& words, const auto& scales, int k) FOVEATE_ALWAYS {
      const auto add = [&](const F(&sums)[R], int group) FOVEATE_ALWAYS {
        const F factor = scales.scale_of(group);
        for (int r = 0; r < R; ++r) total[r] = Simd::fma(factor, sums[r], total[r]);
        if (w.has_minimum) {
          const F minimum = scales.minimum_of(group);
          for (int r = 0; r < R; ++r) total[r] = Simd::fma(minimum, Simd::set(x_sums[r]), total[r]);
        }
        x_sums += R;
      };
      F sums[R];
      multiply_group<Unit, 0, kSteps>(reader, words, x, sums);
      add(sums, k * (16 / kSteps));
      if constexpr (kSteps == 8) {
        multiply_group<Unit, kSteps, 2 * kSteps>(reader, words, x, sums);
        add(sums, 2 * k + 1);
      }
      x += kPackedInputs / Unit::kStep * R;
    });
    for (int r = 0; r < R; ++r) Simd::store(totals + r * kPackedRows + half * Simd::kWidth, total[r]);
  }
}

template <class Unit, int kBits, bool kIntegers>
void multiply_rows(const PackedTile& t) {
  const PackedView& w = t.weights;
  for (int64_t row = 0; row < w.count; row += kPackedRows) {
    const char* block = w.data + row / kPackedRows * w.block_bytes;
    float totals[kPackedVectors * kPackedRows];
    for (int v = 0; v < t.vectors; v += kPackedPass) {
      float* to = totals + v * kPackedRows;
      switch (t.vectors - v) {
        case 1:
          multiply_block<Unit, kBits, kIntegers, 1>(t, block, v, to);
          break;
        case 2:
          multiply_block<Unit, kBits, kIntegers, 2>(t, block, v, to);
          break;
        case 3:
          multiply_block<Unit, kBits, kIntegers, 3>(t, block, v, to);
          break;
        default:
          multiply_block<Unit, kBits, kIntegers, kPackedPass>(t, block, v, to);
      }
    }
    const int64_t left = w.count - row;
    for (int v = 0; v < t.vectors; v += t.terms) {
      float* sum = totals + v * kPackedRows;
      if (t.terms == 2)
        for (int i = 0; i < kPackedRows; ++i) sum[i] += sum[kPackedRows + i];
      __builtin_memcpy(t.y + v / t.terms * t.y_stride + row, sum, 4 * size_t(left < kPackedRows ? left : kPackedRows));
    }
  }
}

// Calls use(bits, whether there are integer scales).
template <class Use>
FOVEATE_INLINE void with_format(const PackedView& w, const Use& use) {
  const bool integers = w.block > w.group;
  switch (w.bits) {
    case 2:
      return use(Constant<2>(), Constant<1>());
    case 3:
      return use(Constant<3>(), Constant<1>());
    case 4:
      return integers ? use(Constant<4>(), Constant<1>()) : use(Constant<4>(), Constant<0>());
    case 5:
      return integers ? use(Constant<5>(), Constant<1>()) : use(Constant<5>(), Constant<0>());
    case 6:
      return use(Constant<6>(), Constant<1>());
    default:
      return use(Constant<8>(), Constant<0>());
  }
}

template <class Unit>
void packed_multiply(const PackedTile& t) {
  with_format(t.weights, [&](auto bits, auto integers) { multiply_rows<Unit, bits.value, integers.value != 0>(t); });
}

template <class Unit>
void packed_inputs(const float* x, int count, int terms, float* units, float* sums) {
  constexpr int kVectors = 16 / Simd::kWidth;
  for (int at = 0; at < count; at += 16) {
    F rest[kVectors];
    for (int i = 0; i < kVectors; ++i) rest[i] = Simd::load(x + at + i * Simd::kWidth);
    for (int t = 0; t < (Unit::kStep == 1 ? 1 : terms); ++t) {
      F sum = Simd::set(0);
      for (int i = 0; i < kVectors; ++i) {
        F held = rest[i];
        if constexpr (Unit::kStep == 2) {
          uint16_t* const to = (uint16_t*)units + int64_t{t} * count + at + i * Simd::kWidth;
          Simd::store_as(to, rest[i], DType::bf16);
          held = Simd::load_as(to, DType::bf16);
          const F left = rest[i] - held;
          rest[i] = Simd::select(Simd::finite(left), left, Simd::set(0));  // of Inf nothing is left
        }
        sum = sum + held;
      }
      sums[(int64_t{t} * count + at) / 16] = Simd::total(sum);
    }
  }
}

// kWidth vectors of lanes become pieces of rows, [row][kWidth] from `to` on; lanes outside [from, end) are left out.
FOVEATE_INLINE void store_lanes(const F (&vectors)[Simd::kWidth], int from, int end, char* to, int64_t stride_bytes) {
  if (from == 0 && end == Simd::kWidth && stride_bytes % 4 == 0)
    return Simd::transpose(vectors, (float*)to, stride_bytes / 4);
  float rows[Simd::kWidth * Simd::kWidth];
  Simd::transpose(vectors, rows, Simd::kWidth);
  for (int lane = from; lane < end; ++lane)
    __builtin_memcpy(to + lane * stride_bytes, rows + lane * Simd::kWidth, 4 * Simd::kWidth);
}

// 32 inputs of the rows of a vector; `to` is where the first lane's go, whether it is wanted or not.
FOVEATE_INLINE void store_values(const F (&values)[kPackedInputs], int from, int end, DType type, char* to,
                                 int64_t stride_bytes) {
  if (type == DType::f32) {
    for (int first = 0; first < kPackedInputs; first += Simd::kWidth) {
      F vectors[Simd::kWidth];
      for (int i = 0; i < Simd::kWidth; ++i) vectors[i] = values[first + i];
      store_lanes(vectors, from, end, to + 4 * first, stride_bytes);
    }
    return;
  }
  for (int first = 0; first < kPackedInputs; first += 2 * Simd::kWidth) {
    F vectors[Simd::kWidth];
    for (int i = 0; i < Simd::kWidth; ++i) {
      const I odd = Simd::shift_up(Simd::to_bf16(values[first + 2 * i + 1]));
      vectors[i] = (F)Simd::bits_or(odd, Simd::to_bf16(values[first + 2 * i]));
    }
    store_lanes(vectors, from, end, to + 2 * first, stride_bytes);
  }
}

template <int kBits, bool kIntegers>
void values_of_rows(const PackedView& w, DType type, char* to, int64_t stride_bytes) {
  constexpr int kSteps = group_steps(kBits);
  const CodeReader<Floats, kBits> reader(w.lowest);
  for (int64_t row = -w.first; row < w.count; row += kPackedRows)  // of the first lane, counted from `to`
    for (int half = 0; half < kHalves; ++half) {
      const int64_t lane_row = row + half * Simd::kWidth;
      const int from = lane_row < 0 ? smaller(int(-lane_row), Simd::kWidth) : 0;
      const int end = w.count - lane_row < Simd::kWidth ? int(w.count - lane_row) : Simd::kWidth;
      if (from >= end) continue;
      char* at = to + lane_row * stride_bytes;
      const char* block = w.data + (row + w.first) / kPackedRows * w.block_bytes;
      for_words<kBits, kIntegers>(w, block, half, [&](const auto& words, const auto& scales, int k) FOVEATE_ALWAYS {
        F values[kPackedInputs], scale[16 / kSteps], minimum[16 / kSteps];
        for (int g = 0; g < 16 / kSteps; ++g) {
          scale[g] = scales.scale_of(k * (16 / kSteps) + g);
          minimum[g] = w.has_minimum ? scales.minimum_of(k * (16 / kSteps) + g) : Simd::set(-0.0f);  // keeps signs of 0
        }
        for_steps<0, 16>([&](auto step) FOVEATE_ALWAYS {
          constexpr int kGroup = step.value / kSteps;
          F codes[2];
          reader.template read<step.value>(words, codes);
          for (int i = 0; i < 2; ++i) values[2 * step.value + i] = Simd::fma(scale[kGroup], codes[i], minimum[kGroup]);
        });
        store_values(values, from, end, type, at, stride_bytes);
        at += kPackedInputs * int64_t(bytes_of(type));
      });
    }
}

void packed_values(const PackedView& w, DType type, void* to, int64_t stride) {
  with_format(w, [&](auto bits, auto integers) {
    values_of_rows<bits.value, integers.value != 0>(w, type, (char*)to, stride * int64_t(bytes_of(type)));
  });
}
