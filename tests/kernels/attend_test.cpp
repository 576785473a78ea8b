// The kernels on raw views: what they read, who does the work, what they leak.
#include "foveate/kernels/attend.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <thread>

#include "foveate/base/random.h"
#include "foveate/kernels/sums.h"

namespace foveate::kernels {
namespace {

// Floats or halves that end where readable memory ends.
class GuardedBuffer {
 public:
  GuardedBuffer(int64_t count, DType type) : bytes_(size_t(count) * bytes_of(type)) {
    const size_t page = size_t(::sysconf(_SC_PAGESIZE));
    whole_ = (bytes_ + page - 1) / page * page + page;
    base_ = static_cast<char*>(::mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(::mprotect(base_ + whole_ - page, page, PROT_NONE), 0);
    data_ = base_ + whole_ - page - bytes_;
    Random random(bytes_);
    for (int64_t i = 0; i < count; ++i) {
      const float value = float(random.normal());
      if (type == DType::f32)
        std::memcpy(data_ + 4 * i, &value, 4);
      else
        data_[2 * i] = char(i), data_[2 * i + 1] = char(0x3c + i % 3);  // moderate numbers in both half formats
    }
  }
  ~GuardedBuffer() { ::munmap(base_, whole_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  void* data() const { return data_; }

 private:
  size_t bytes_, whole_ = 0;
  char *base_ = nullptr, *data_ = nullptr;
};

struct Shape {
  int64_t heads = 3, kv_heads = 1, queries = 13, keys = 77;
  int dim = 24, value_dim = 17;
};

Arguments arguments(const Shape& s, DType type, const GuardedBuffer& q, const GuardedBuffer& k,
                    const GuardedBuffer& v) {
  Arguments a;
  a.type = type, a.batch = 1, a.heads = s.heads, a.kv_heads = s.kv_heads;
  a.queries = a.rows = s.queries, a.keys = s.keys, a.dim = s.dim, a.value_dim = s.value_dim;
  const auto view = [](const GuardedBuffer& b, int64_t heads, int64_t rows, int64_t dim) {
    return View{b.data(), heads * rows * dim, rows * dim, dim};
  };
  a.q = view(q, s.heads, s.queries, s.dim);
  a.k = view(k, s.kv_heads, s.keys, s.dim);
  a.v = view(v, s.kv_heads, s.keys, s.value_dim);
  a.rule.query_start = s.keys - s.queries, a.rule.right = 0;
  a.score.scale = 0.3f;
  return a;
}

// The same attention over rows of 8 bits, whole and in one page more than there are keys, up to where memory ends.
void forward_over_8_bits_and_pages(const Table& table, Arguments a, const Results& results) {
  const auto in_8_bits = [&](View& view, int dim) {
    const int64_t rows = a.kv_heads * a.keys, row = row_bytes(dim, DType::q8);
    auto bytes = std::make_unique<GuardedBuffer>((rows * row + 1) / 2, DType::f16);
    char* to = static_cast<char*>(bytes->data()) + rows * row % 2;
    for (int64_t i = 0; i < rows; ++i)
      table.quantise_row(static_cast<const char*>(view.data) + i * dim * int64_t(bytes_of(a.type)), dim, a.type,
                         to + i * row);
    view = {to, rows * row, a.keys * row, row};
    return bytes;
  };
  const auto k = in_8_bits(a.k, a.dim), v = in_8_bits(a.v, a.value_dim);
  a.keys_in_8_bits = true;
  forward(table, a, results, Pool{});
  const int64_t size = 7, count = (a.keys + size - 1) / size;
  std::vector<int32_t> pages(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) pages[size_t(i)] = i;
  a.pages = pages.data(), a.page_size = size, a.page_count = count;
  a.k.batch = size * a.k.row, a.v.batch = size * a.v.row;  // pages side by side
  forward(table, a, results, Pool{});
}

TEST(Kernels, touch_nothing_behind_their_views) {  // a fault here is a read or write out of bounds
  for (const Table* table : levels())
    for (const DType type : {DType::f32, DType::bf16, DType::f16})
      for (const Shape& s : {Shape{}, Shape{.queries = 1, .keys = 1, .dim = 1, .value_dim = 1},
                             Shape{.queries = 70, .keys = 64, .dim = 64, .value_dim = 80},
                             Shape{.queries = 2, .keys = 77, .dim = 64, .value_dim = 80},
                             Shape{.queries = 2, .keys = 77, .dim = 96, .value_dim = 32},
                             Shape{.queries = 1, .keys = 70, .dim = 64, .value_dim = kLargestDim},
                             Shape{.queries = 1, .keys = 5, .dim = 39, .value_dim = 41}}) {
        const auto buffer = [&](int64_t heads, int64_t rows, int64_t dim) {
          return GuardedBuffer(heads * rows * dim, type);
        };
        const auto q = buffer(s.heads, s.queries, s.dim), k = buffer(s.kv_heads, s.keys, s.dim),
                   v = buffer(s.kv_heads, s.keys, s.value_dim), out = buffer(s.heads, s.queries, s.value_dim),
                   d_q = buffer(s.heads, s.queries, s.dim), d_k = buffer(s.kv_heads, s.keys, s.dim),
                   d_v = buffer(s.kv_heads, s.keys, s.value_dim);
        const GuardedBuffer lse(s.heads * s.queries, DType::f32), bias(s.heads * s.queries * s.keys, DType::f32),
            d_bias(s.heads * s.queries * s.keys, DType::f32), slopes(s.heads, DType::f32),
            relative(s.heads * s.queries * 7, DType::f32), query_places(2 * s.queries, DType::f32),
            key_places(2 * s.keys, DType::f32), d_rows(s.heads * s.queries * 8, DType::f32);
        for (int64_t i = 0; i < 2 * s.queries; ++i) static_cast<int32_t*>(query_places.data())[i] = int32_t(i % 5);
        for (int64_t j = 0; j < 2 * s.keys; ++j) static_cast<int32_t*>(key_places.data())[j] = int32_t(j % 9);
        Arguments a = arguments(s, type, q, k, v);
        a.score.bias = static_cast<const char*>(bias.data());
        a.bias_batch = 0, a.score.bias_head = s.queries * s.keys, a.score.bias_query = s.keys, a.score.bias_key = 1;
        a.score.slopes = static_cast<const float*>(slopes.data());
        a.score.relative = {static_cast<const float*>(relative.data()),
                            s.queries * 7,
                            7,
                            2,
                            7,
                            {3, 4},
                            static_cast<const int32_t*>(query_places.data()),
                            static_cast<const int32_t*>(key_places.data()),
                            s.queries,
                            s.keys};
        const View o{out.data(), s.heads * s.queries * s.value_dim, s.queries * s.value_dim, s.value_dim};
        forward(*table, a, {o, type, static_cast<float*>(lse.data())}, Pool{});
        GradientViews g;
        g.d_out = g.out = o;
        g.lse = static_cast<const float*>(lse.data());
        g.d_q = a.q, g.d_k = a.k, g.d_v = a.v, g.key_type = type;
        g.d_q.data = d_q.data(), g.d_k.data = d_k.data(), g.d_v.data = d_v.data();
        g.terms = {static_cast<float*>(d_bias.data()),
                   s.queries * s.keys,
                   s.keys,
                   1,
                   static_cast<float*>(d_rows.data()),
                   8,
                   -1,
                   0,
                   1};
        backward(*table, a, g, Pool{});
        const float last = static_cast<const float*>(lse.data())[s.heads * s.queries - 1];  // sees every key
        EXPECT_TRUE(std::isfinite(last)) << table->name;
        forward_over_8_bits_and_pages(*table, a, {o, type, static_cast<float*>(lse.data())});
      }
}

// Lists that end where readable memory ends, for `rows` rows of a plan.
struct GuardedLists {
  GuardedBuffer count, index, end, order;

  GuardedLists(int64_t rows, int64_t keys, int64_t queries)
      : count(rows, DType::f32), index(rows * 3, DType::f32), end(rows * 3, DType::f32), order(rows * 2, DType::f32) {
    for (int64_t i = 0; i < rows; ++i) {
      ints(count)[i] = int32_t(i % 3);
      static_cast<int64_t*>(order.data())[i] = i % 4 == 3 ? -1 : queries - 1 - i;
      for (int64_t c = 0; c < 3; ++c) {
        ints(index)[3 * i + c] = int32_t((i + 5 * c) % (keys + 2)) - 1;
        ints(end)[3 * i + c] = ints(index)[3 * i + c] + int32_t(i % 90);
      }
    }
  }
  static int32_t* ints(const GuardedBuffer& b) { return static_cast<int32_t*>(b.data()); }

  enum class Kind { blocks, tokens, runs, ordered };
  void put(Kind kind, Arguments& a) const {
    if (kind == Kind::ordered) {
      a.query_order = {static_cast<const int64_t*>(order.data()), 0, 0};
      return;
    }
    a.query_block = kind == Kind::tokens ? 4 : 1, a.key_block = kind == Kind::blocks ? kPanelKeys : 1;
    a.lists = {ListView{.count = kind == Kind::blocks ? ints(count) : nullptr,
                        .index = ints(index),
                        .end = kind == Kind::runs ? ints(end) : nullptr,
                        .capacity = 3}};
  }
};

TEST(Kernels, touch_nothing_behind_their_lists) {
  using Kind = GuardedLists::Kind;
  const Shape s{.queries = 70, .keys = 141};
  for (const Table* table : levels())
    for (const Kind kind : {Kind::blocks, Kind::tokens, Kind::runs, Kind::ordered}) {
      const GuardedLists lists(s.queries, s.keys, s.queries);
      const GuardedBuffer q(s.heads * s.queries * s.dim, DType::bf16), k(s.keys * s.dim, DType::bf16),
          v(s.keys * s.value_dim, DType::bf16), out(s.heads * s.queries * s.value_dim, DType::bf16),
          d_q(s.heads * s.queries * s.dim, DType::bf16), d_k(s.keys * s.dim, DType::bf16),
          d_v(s.keys * s.value_dim, DType::bf16), lse(s.heads * s.queries, DType::f32);
      Arguments a = arguments(s, DType::bf16, q, k, v);
      lists.put(kind, a);
      a.score.drop_below = 1u << 29, a.score.keep_scale = 4.0f / 3;
      if (kind == Kind::blocks || kind == Kind::ordered) a.score.landmark_block = 16;
      const View o{out.data(), s.heads * s.queries * s.value_dim, s.queries * s.value_dim, s.value_dim};
      float* const rows = static_cast<float*>(lse.data());
      std::fill_n(rows, s.heads * s.queries, 0.0f);
      forward(*table, a, {o, a.type, rows}, Pool{});
      GradientViews g;
      g.d_out = g.out = o, g.lse = rows;
      g.d_q = a.q, g.d_k = a.k, g.d_v = a.v, g.key_type = DType::bf16;
      g.d_q.data = d_q.data(), g.d_k.data = d_k.data(), g.d_v.data = d_v.data();
      backward(*table, a, g, Pool{});
      a.wants_places = true, a.value_dim = 0, a.score.drop_below = 0;
      for (const SumBy by : {SumBy::row, SumBy::key, SumBy::diagonal, SumBy::block}) {
        const SumRequest request{.by = by, .query_block = 9, .key_block = 20};
        const int64_t count = s.heads * request.places(a) * request.columns(a);
        const GuardedBuffer to(count, DType::f32);
        std::fill_n(static_cast<float*>(to.data()), count, 0.0f);
        sums(*table, a, rows, request, static_cast<float*>(to.data()), Pool{});
        for (int64_t i = 0; i < count; ++i)
          ASSERT_TRUE(std::isfinite(static_cast<float*>(to.data())[i])) << table->name;
      }
    }
}

// Threads of the test's own: the kernels use whatever pool they are given.
Pool thread_pool(int threads, std::set<std::thread::id>* seen = nullptr) {
  return {threads, [seen](int workers, const std::function<void(int)>& body) {
            std::vector<std::thread> all;
            for (int worker = 0; worker < workers; ++worker) all.emplace_back([&body, worker] { body(worker); });
            for (std::thread& t : all) {
              if (seen) seen->insert(t.get_id());
              t.join();
            }
          }};
}

TEST(Kernels, gradients_have_the_same_bits_on_any_number_of_threads) {
  const Shape s{.heads = 2, .kv_heads = 1, .queries = 700, .keys = 900, .dim = 16, .value_dim = 16};
  for (const Table* table : levels()) {
    const GuardedBuffer q(s.heads * s.queries * s.dim, DType::f32), k(s.keys * s.dim, DType::f32),
        v(s.keys * s.dim, DType::f32);
    const Arguments a = arguments(s, DType::f32, q, k, v);
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 5}) {
      const int64_t rows = s.heads * s.queries;
      std::vector<float> out(size_t(rows * s.dim)), lse(static_cast<size_t>(rows)),
          all(out.size() + size_t(2 * s.keys * s.dim));
      const View o{out.data(), rows * s.dim, s.queries * s.dim, s.dim};
      forward(*table, a, {o, a.type, lse.data()}, thread_pool(threads));
      GradientViews g;
      g.d_out = g.out = o, g.lse = lse.data();
      g.d_q = o, g.d_k = a.k, g.d_v = a.v;
      g.d_q.data = all.data(), g.d_k.data = all.data() + rows * s.dim,
      g.d_v.data = all.data() + rows * s.dim + s.keys * s.dim;
      backward(*table, a, g, thread_pool(threads));
      all.insert(all.end(), out.begin(), out.end());
      results.push_back(all);
    }
    EXPECT_EQ(results[0], results[1]) << table->name;
    EXPECT_EQ(results[0], results[2]) << table->name;
  }
}

TEST(Kernels, forecast_counts_what_a_plan_visits) {
  const Shape s{.heads = 1, .kv_heads = 1, .queries = 4096, .keys = 4096, .dim = 16, .value_dim = 16};
  const GuardedBuffer q(s.queries * s.dim, DType::f32);
  Arguments a = arguments(s, DType::f32, q, q, q);
  const Table& table = *levels().back();
  const Forecast causal = forecast(table, a, false, 1);
  a.rule.right = kNoLimit;
  const Forecast full = forecast(table, a, false, 1);
  a.rule.right = 0, a.rule.left = 511;
  const Forecast window = forecast(table, a, false, 1);
  EXPECT_EQ(full.visited_panels, full.tiles * 64);
  EXPECT_EQ(full.checked_panels, 0);
  EXPECT_LT(causal.visited_panels, full.visited_panels * 6 / 10);
  EXPECT_LT(window.visited_panels, full.tiles * 13);
  a.keys = 8192;  // memory grows with the lengths, not with their product
  const Forecast longer = forecast(table, a, true, 1), shorter = [&] {
    Arguments half = a;
    half.keys = 4096;
    return forecast(table, half, true, 1);
  }();
  EXPECT_LT(longer.bytes, 2 * shorter.bytes);
}

}  // namespace
}  // namespace foveate::kernels
