// Packed weights at every level against plain loops in double over the parts that went in.
#include "foveate/kernels/packed.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::kernels {
namespace {

struct Named {
  const char* name;
  QuantFormat format;
};
// Every quantised type of GGUF files.
const Named kFormats[] = {{"q4_0", {4, -8, 32, 32, false}},   {"q4_1", {4, 0, 32, 32, true}},
                          {"q5_0", {5, -16, 32, 32, false}},  {"q5_1", {5, 0, 32, 32, true}},
                          {"q8_0", {8, -128, 32, 32, false}}, {"q2_k", {2, 0, 16, 256, true}},
                          {"q3_k", {3, -4, 16, 256, false}},  {"q4_k", {4, 0, 32, 256, true}},
                          {"q5_k", {5, 0, 32, 256, true}},    {"q6_k", {6, -32, 16, 256, false}}};

double half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(double(fraction), -24);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -size : size;
}

double bf16(double x) {  // nearest even; of numbers far from the ends of its range
  if (x == 0) return x;
  const double unit = std::ldexp(1.0, std::ilogb(x) - 7);
  return std::nearbyint(x / unit) * unit;
}

// Random parts of a matrix, and its elements.
struct Problem {
  QuantFormat format;
  int64_t out, in;
  std::vector<QuantRow> rows;

  Problem(const QuantFormat& f, int64_t out_, int64_t in_) : format(f), out(out_), in(in_) {
    Random random(1 + uint64_t(f.bits * 1000 + out + in));
    for (int64_t r = 0; r < out; ++r) {
      QuantRow row(f, in);
      for (uint8_t& code : row.codes) code = uint8_t(random.below(uint64_t{1} << f.bits));
      for (uint16_t& scale : row.scales) scale = some_half(random);
      for (uint16_t& minimum : row.minima) minimum = some_half(random);
      for (int8_t& scale : row.group_scales) scale = int8_t(int(random.below(256)) - 128);
      for (int8_t& minimum : row.group_minima) minimum = int8_t(random.below(64));
      rows.push_back(std::move(row));
    }
  }
  static uint16_t some_half(Random& random) {  // 2^-6 .. 2^-3, either sign; now and then 0 or subnormal
    if (random.below(50) == 0) return uint16_t(random.below(3));
    return uint16_t(0x2400 + random.below(0xc00) + (random.below(2) << 15));
  }

  double scale(int64_t r, int64_t i) const {
    const QuantRow& row = rows[size_t(r)];
    const double d = half(row.scales[size_t(i / format.block)]);
    return row.group_scales.empty() ? d : d * row.group_scales[size_t(i / format.group)];
  }
  double minimum(int64_t r, int64_t i) const {
    const QuantRow& row = rows[size_t(r)];
    if (row.minima.empty()) return -0.0;
    const double m = half(row.minima[size_t(i / format.block)]);
    return row.group_minima.empty() ? m : m * row.group_minima[size_t(i / format.group)];
  }
  double code(int64_t r, int64_t i) const { return rows[size_t(r)].codes[size_t(i)] + format.lowest; }
  double element(int64_t r, int64_t i) const { return scale(r, i) * code(r, i) + minimum(r, i); }

  PackedMatrix pack(const Pool& pool = {}) const {
    PackedMemory memory;
    return PackedMatrix(
        format, out, in, [this](int64_t r, QuantRow& to) { to = rows[size_t(r)]; }, memory, pool);
  }
};

std::vector<float> random_floats(int64_t count) {
  Random random(uint64_t(count) + 7);
  std::vector<float> values(size_t(count), 0.0f);
  for (float& value : values) value = float(random.normal());
  return values;
}

std::vector<float> product(const Table& table, const PackedMatrix& weights, const std::vector<float>& x, int64_t rows,
                           int terms, const Pool& pool = {}) {
  std::vector<float> y(size_t(rows * weights.out()));
  const PackedProduct one{&weights, y.data(), weights.out()};
  multiply(table, x.data(), weights.in(), rows, {&one, 1}, terms, pool);
  return y;
}

// What a level makes of x.
double as_read(const Table& table, double x, int terms) {
  if (!has_pairs(table)) return x;
  const double high = bf16(x);
  return terms == 1 ? high : high + bf16(x - high);
}

void check_product(const Table& table, const Problem& p, const std::vector<float>& x, int64_t rows, int terms) {
  const std::vector<float> y = product(table, p.pack(), x, rows, terms);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < p.out; ++o) {
      double expected = 0, size = 0;
      for (int64_t i = 0; i < p.in; ++i) {
        const double value = as_read(table, x[size_t(r * p.in + i)], terms);
        expected += p.element(o, i) * value;
        size += (std::abs(p.scale(o, i) * p.code(o, i)) + std::abs(p.minimum(o, i))) * std::abs(value);
      }
      // Each number passes through at most 8 + 2 roundings of its group and one for each group, all with unit 2^-24 of
      // partial sums <= size; roundings are independent: their root, three standard deviations wide, and no less
      // than 4.
      const double roundings = 4 + 3 * std::sqrt(double(p.in) / p.format.group + 34);
      ASSERT_NEAR(y[size_t(r * p.out + o)], expected, std::ldexp(size * roundings, -24) + 1e-30)
          << table.name << " bits " << p.format.bits << " row " << r << " output " << o << " terms " << terms;
    }
}

TEST(Packed, product_is_the_sum_over_rounded_inputs_at_every_level_and_format) {
  for (const Table* table : levels())
    for (const Named& f : kFormats) {
      SCOPED_TRACE(f.name);
      for (const int64_t rows : {1, 2, 3, 8, 17})
        for (const int terms : {1, 2}) {
          const Problem p(f.format, rows == 1 ? 49 : 19, f.format.block * (rows == 3 ? 5 : 1) + 256);
          check_product(*table, p, random_floats(rows * p.in), rows, terms);
          if (HasFatalFailure()) return;
        }
    }
}

TEST(Packed, product_of_small_integers_is_exact) {  // any order of sums gives the same
  for (const Table* table : levels())
    for (const Named& f : kFormats) {
      Problem p(f.format, 33, 512);
      for (QuantRow& row : p.rows) {
        std::fill(row.scales.begin(), row.scales.end(), uint16_t{0x3c00});  // 1
        std::fill(row.minima.begin(), row.minima.end(), uint16_t{0xc000});  // -2
        for (size_t i = 0; i < row.group_scales.size(); ++i) row.group_scales[i] = int8_t(int(i) % 5 - 2);
        for (size_t i = 0; i < row.group_minima.size(); ++i) row.group_minima[i] = int8_t(i % 3);
      }
      std::vector<float> x = random_floats(3 * p.in);
      for (float& value : x) value = std::nearbyint(value * 3);
      const std::vector<float> y = product(*table, p.pack(), x, 3, 1);
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t o = 0; o < p.out; ++o) {
          double expected = 0;
          for (int64_t i = 0; i < p.in; ++i) expected += p.element(o, i) * x[size_t(r * p.in + i)];
          ASSERT_EQ(y[size_t(r * p.out + o)], expected) << table->name << " " << f.name << " output " << o;
        }
    }
}

TEST(Packed, two_terms_hold_sixteen_bits_of_x) {
  const Problem p({4, -8, 32, 32, false}, 48, 2048);
  const std::vector<float> x = random_floats(p.in);
  const Table& table = *levels().back();
  double errors[2] = {}, size = 0;
  for (const int terms : {1, 2}) {
    const std::vector<float> y = product(table, p.pack(), x, 1, terms);
    for (int64_t o = 0; o < p.out; ++o) {
      double expected = 0;
      for (int64_t i = 0; i < p.in; ++i) expected += p.element(o, i) * x[size_t(i)];
      errors[terms - 1] += std::pow(y[size_t(o)] - expected, 2), size += expected * expected;
    }
  }
  EXPECT_LT(std::sqrt(2 * errors[1] / size), std::ldexp(1.0, -16));
  if (has_pairs(table)) {
    EXPECT_GT(std::sqrt(2 * errors[0] / size), std::ldexp(1.0, -12));
    EXPECT_LT(std::sqrt(2 * errors[0] / size), std::ldexp(1.0, -8));
  }
}

// Threads of the test's own: the kernels use whatever pool they are given.
Pool thread_pool(int threads) {
  return {threads, [](int workers, const std::function<void(int)>& body) {
            std::vector<std::thread> all;
            for (int worker = 0; worker < workers; ++worker) all.emplace_back([&body, worker] { body(worker); });
            for (std::thread& t : all) t.join();
          }};
}

TEST(Packed, bits_depend_neither_on_threads_nor_on_other_rows_or_products) {
  const Problem first({5, 0, 32, 32, true}, 700, 512), second({6, -32, 16, 256, false}, 330, 512);
  const std::vector<float> x = random_floats(5 * 512);
  for (const Table* table : levels()) {
    const PackedMatrix a = first.pack(), b = second.pack(thread_pool(3));
    const std::vector<float> alone = product(*table, a, x, 1, 2), other = product(*table, b, x, 5, 2);
    for (const int threads : {1, 2, 5}) {
      std::vector<float> y(5 * 700), z(5 * 330);
      const PackedProduct both[] = {{&a, y.data(), 700}, {&b, z.data(), 330}};
      multiply(*table, x.data(), 512, 5, both, 2, thread_pool(threads));
      EXPECT_EQ(z, other) << table->name << threads;
      y.resize(700);
      EXPECT_EQ(y, alone) << table->name << threads;
    }
  }
}

float rounded_to_bf16(float value) {
  const double nearest = bf16(value);
  return float(nearest);
}

TEST(Packed, rows_come_back_exact_but_for_one_rounding) {
  for (const Table* table : levels())
    for (const Named& f : kFormats) {
      const Problem p(f.format, 45, 512 + (f.format.block == 32 ? 32 : 0));
      const PackedMatrix weights = p.pack();
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 45}, {3, 7}, {15, 18}, {44, 1}, {16, 16}}) {
        const int64_t stride = p.in + 3;
        std::vector<float> floats(size_t(count * stride), 7.0f);
        std::vector<uint16_t> halves(floats.size(), 7);
        dequantize_rows(*table, weights, first, count, DType::f32, floats.data(), stride, thread_pool(2));
        dequantize_rows(*table, weights, first, count, DType::bf16, halves.data(), stride, {});
        for (int64_t r = 0; r < count; ++r)
          for (int64_t i = 0; i < stride; ++i) {
            const size_t at = size_t(r * stride + i);
            const float expected = i < p.in ? float(p.element(first + r, i)) : 7.0f;
            const uint32_t bits = uint32_t{halves[at]} << 16;
            float half_value;
            std::memcpy(&half_value, &bits, 4);
            ASSERT_EQ(std::memcmp(&floats[at], &expected, 4), 0)
                << table->name << " " << f.name << " " << r << " " << i << ": " << floats[at] << " " << expected;
            if (i >= p.in) {
              ASSERT_EQ(halves[at], 7);
            } else {
              ASSERT_EQ(half_value, rounded_to_bf16(expected)) << table->name << " " << f.name;
              ASSERT_EQ(std::signbit(half_value), std::signbit(expected)) << table->name << " " << f.name;
            }
          }
      }
    }
}

TEST(Packed, scales_that_are_not_finite_reach_their_row_alone) {
  for (const Table* table : levels())
    for (const Named& f : kFormats) {
      Problem p(f.format, 20, 256);
      p.rows[3].scales[0] = 0x7c00, p.rows[5].scales[0] = 0x7e00;
      const std::vector<float> y = product(*table, p.pack(), random_floats(256), 1, 2);
      std::vector<float> values(20 * 256);
      dequantize_rows(*table, p.pack(), 0, 20, DType::f32, values.data(), 256, {});
      for (int64_t o = 0; o < 20; ++o) {
        const bool sound = o != 3 && o != 5;
        EXPECT_EQ(bool(std::isfinite(y[size_t(o)])), sound) << table->name << f.name << o;
        EXPECT_EQ(bool(std::isfinite(values[size_t(256 * o)])), sound) << table->name << f.name << o;
      }
    }
}

TEST(Packed, inputs_that_are_not_finite_make_what_reads_them_so) {
  for (const Named& f : kFormats) {
    Problem p(f.format, 16, 256);
    const PackedMatrix weights = p.pack();
    for (const Table* table : levels())
      for (const int terms : {1, 2})
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
          std::vector<float> x(2 * 256, 1.0f);  // the second row stays good
          x[5] = bad;
          const std::vector<float> y = product(*table, weights, x, 2, terms);
          for (size_t i = 0; i < 16; ++i) {
            EXPECT_FALSE(std::isfinite(y[i])) << table->name << terms;
            EXPECT_TRUE(std::isfinite(y[16 + i])) << table->name << terms;
          }
        }
  }
}

TEST(Packed, rows_may_stand_apart) {
  Problem p({4, 0, 32, 32, true}, 37, 64);
  const PackedMatrix weights = p.pack();
  const std::vector<float> close = random_floats(3 * 64);
  std::vector<float> x(3 * 80, NAN), y(3 * 50, -7.0f);
  for (size_t row = 0; row < 3; ++row)
    std::copy_n(close.begin() + ptrdiff_t(row * 64), 64, x.begin() + ptrdiff_t(row * 80));
  for (const Table* table : levels()) {
    const std::vector<float> want = product(*table, weights, close, 3, 2);
    const PackedProduct one{&weights, y.data(), 50};
    multiply(*table, x.data(), 80, 3, {&one, 1}, 2, {});
    for (size_t row = 0; row < 3; ++row)
      for (size_t i = 0; i < 50; ++i) EXPECT_EQ(y[row * 50 + i], i < 37 ? want[row * 37 + i] : -7.0f) << table->name;
  }
}

TEST(Packed, weights_of_other_inputs_are_not_multiplied_together) {
  Problem p({4, 0, 32, 32, true}, 16, 64), q({4, 0, 32, 32, true}, 16, 96);
  const PackedMatrix a = p.pack(), b = q.pack();
  std::vector<float> x(96), y(16);
  const PackedProduct both[] = {{&a, y.data(), 16}, {&b, y.data(), 16}};
  EXPECT_THROW(multiply(*levels().front(), x.data(), 96, 1, both, 1, {}), Error);
}

// Memory that ends where a page begins that must not be touched.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) {
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    whole_ = size_t((bytes + page - 1) / page * page + page);
    base_ = static_cast<char*>(::mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(::mprotect(base_ + whole_ - page, size_t(page), PROT_NONE), 0);
    data_ = base_ + int64_t(whole_) - page - bytes;
  }
  ~Guarded() { ::munmap(base_, whole_); }
  Guarded(const Guarded&) = delete;
  char* data() const { return data_; }

 private:
  size_t whole_ = 0;
  char *base_ = nullptr, *data_ = nullptr;
};

TEST(Packed, kernels_touch_nothing_behind_their_views) {  // a fault here is a read or write out of bounds
  for (const Table* table : levels())
    for (const Named& f : kFormats) {
      const Problem p(f.format, 21, f.format.block);
      const PackedMatrix weights = p.pack();
      const Guarded x(4 * 3 * p.in), y(4 * 3 * p.out), floats(4 * 21 * p.in), halves(2 * 21 * p.in);
      const std::vector<float> values = random_floats(3 * p.in);
      std::memcpy(x.data(), values.data(), 4 * values.size());
      const PackedProduct one{&weights, reinterpret_cast<float*>(y.data()), p.out};
      multiply(*table, reinterpret_cast<const float*>(x.data()), p.in, 3, {&one, 1}, 2, {});
      EXPECT_EQ(std::memcmp(y.data(), product(*table, weights, values, 3, 2).data(), size_t(4 * 3 * p.out)), 0);
      dequantize_rows(*table, weights, 0, 21, DType::f32, floats.data(), p.in, {});
      dequantize_rows(*table, weights, 0, 21, DType::bf16, halves.data(), p.in, {});
    }
}

TEST(Packed, memory_is_that_of_the_blocks_of_a_file) {
  const double bits_in_file[] = {4.5, 5, 5.5, 6, 8.5, 2.625, 3.4375, 4.5, 5.5, 6.5625};
  const double most[] = {1, 1, 1, 1, 1, 1.2, 1.06, 1.03, 1.03, 1.01};
  for (size_t i = 0; i < std::size(kFormats); ++i)
    EXPECT_LE(double(Problem(kFormats[i].format, 64, 1024).pack().bytes()) * 8 / (64 * 1024),
              bits_in_file[i] * most[i] + 1e-9)
        << kFormats[i].name;
}

TEST(Packed, matrices_of_one_memory_stand_apart_and_outlive_it) {
  auto memory = std::make_unique<PackedMemory>();
  std::vector<Problem> problems;
  std::vector<PackedMatrix> matrices;
  for (const Named& f : kFormats) {
    problems.emplace_back(f.format, 20, 256);
    const std::vector<QuantRow>& rows = problems.back().rows;
    matrices.emplace_back(
        f.format, 20, 256, [&](int64_t r, QuantRow& to) { to = rows[size_t(r)]; }, *memory, Pool{});
  }
  memory.reset();
  for (size_t i = 0; i < matrices.size(); ++i) {
    float value;
    std::vector<float> row(256);
    dequantize_rows(*levels().back(), matrices[i], 19, 1, DType::f32, row.data(), 256, {});
    value = float(problems[i].element(19, 255));
    EXPECT_EQ(row[255], value) << kFormats[i].name;
  }
}

TEST(Packed, formats_and_sizes_that_do_not_fit_are_refused) {
  const auto pack = [](const QuantFormat& format, int64_t out, int64_t in) {
    PackedMemory memory;
    PackedMatrix(
        format, out, in, [](int64_t, QuantRow&) {}, memory, Pool{});
  };
  const QuantFormat good{4, -8, 32, 32, false}, of_256{6, -32, 16, 256, false};
  EXPECT_NO_THROW(pack(good, 1, 32));
  EXPECT_THROW(pack(good, 0, 32), Error);
  EXPECT_THROW(pack(good, 1, 0), Error);
  EXPECT_THROW(pack(good, 1, 48), Error);
  EXPECT_THROW(pack(of_256, 1, 128), Error);
  EXPECT_THROW(pack({7, 0, 32, 32, false}, 1, 32), Error);
  EXPECT_THROW(pack({4, 0, 16, 16, false}, 1, 32), Error);
  EXPECT_THROW(pack({4, 0, 32, 64, false}, 1, 64), Error);
  EXPECT_THROW(pack({8, -128, 32, 256, false}, 1, 256), Error);
  EXPECT_THROW(pack({6, -32, 16, 16, false}, 1, 256), Error);
}

}  // namespace
}  // namespace foveate::kernels
