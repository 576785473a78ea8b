#include "foveate/eval/bench_cases.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::eval {
namespace {

at::ScalarType dtype_of(const std::string& name) {
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  require(name == "fp32", "bench: unknown dtype '{}', known: bf16 fp16 fp32", name);
  return at::kFloat;
}

// n different numbers below `limit`, sorted.
std::vector<int32_t> sample(int64_t limit, int64_t n, Random& random) {
  std::vector<int32_t> all(static_cast<size_t>(limit));
  std::iota(all.begin(), all.end(), 0);
  random.shuffle(std::span(all));
  all.resize(static_cast<size_t>(n));
  std::sort(all.begin(), all.end());
  return all;
}

class Cases {
 public:
  explicit Cases(const BenchOptions& options) : options_(options) {}

  std::vector<AttentionCase> make() {
    for (const std::string& suite : options_.suites)
      for (const int threads : options_.threads)
        for (const std::string& dtype : options_.dtypes) {
          base_ = {.type = dtype_of(dtype), .threads = threads};
          suffix_ = fmt::format("{} {}t", dtype, threads);
          if (suite == "dense")
            dense();
          else if (suite == "sparse")
            sparse();
          else if (suite == "window")
            window();
          else if (suite == "ragged")
            ragged();
          else if (suite == "decode")
            decode();
          else
            fail("bench: unknown suite '{}', known: dense sparse window ragged decode", suite);
        }
    return std::move(cases_);
  }

 private:
  void add(AttentionCase c, const std::string& name, const std::optional<std::string>& reference = {}) {
    for (const BenchPass pass : {BenchPass::forward, BenchPass::backward}) {
      if (pass == BenchPass::backward && (!options_.backward || c.queries == 1)) continue;
      const auto full = [&](const std::string& n) {
        return fmt::format("{} {} {}", n, pass == BenchPass::forward ? "forward" : "backward", suffix_);
      };
      c.pass = pass;
      c.name = full(name);
      c.reference = reference ? std::optional(full(*reference)) : std::nullopt;
      cases_.push_back(c);
    }
  }

  AttentionCase square(int64_t dim, int64_t length, const Plan& plan) const {
    AttentionCase c = base_;
    c.dim = dim, c.queries = c.keys = length;
    c.heads = std::clamp<int64_t>(512 / dim, 1, 8), c.kv_heads = std::max<int64_t>(c.heads / 4, 1);
    c.plan = plan;
    return c;
  }

  std::string add_dense(int64_t dim, int64_t length, bool causal) {
    AttentionCase c = square(dim, length, causal ? Rule{} : Rule::full());
    c.sdpa = true;
    const std::string name = fmt::format("{} L {} D {}", causal ? "causal" : "full", length, dim);
    add(c, name);
    return name;
  }

  void dense() {
    for (const int64_t dim : options_.dims)
      for (const int64_t length : options_.lengths)
        for (const bool causal : {false, true}) add_dense(dim, length, causal);
  }

  void sparse() {
    for (const int64_t dim : options_.dims)
      for (const int64_t length : options_.lengths) {
        const std::string reference = add_dense(dim, length, false);
        for (const int64_t block : {64, 128})
          for (const double density : {0.125, 0.25, 0.5})
            add(square(dim, length, random_blocks(length, length, block, density)),
                fmt::format("blocks of {}, {:g} % L {} D {}", block, density * 100, length, dim), reference);
        const int64_t tokens = length / 8;
        add(square(dim, length, random_tokens(length, length, tokens)),
            fmt::format("{} tokens L {} D {}", tokens, length, dim), reference);
      }
  }

  void window() {
    for (const int64_t dim : options_.dims) {
      const std::string reference = add_dense(dim, 2048, false);
      for (const int64_t length : options_.lengths)
        add(square(dim, length, Rule{.window_left = length / 32 - 1, .sinks = 4}),
            fmt::format("window {} of {} D {}", length / 32, length, dim), reference);
    }
  }

  void ragged() {
    for (const int64_t dim : {24, 40, 80, 96})
      for (const int64_t length : {1, 17, 100, 197, 384, 1000}) {
        AttentionCase c = base_;
        c.batch = 8, c.heads = c.kv_heads = 8, c.queries = c.keys = length, c.dim = dim;
        c.plan = Rule::full();
        c.sdpa = true;
        add(c, fmt::format("8x8 heads L {} D {}", length, dim));
      }
  }

  void decode() {
    for (const int64_t dim : options_.dims)
      for (const int64_t length : options_.lengths) {
        AttentionCase c = base_;
        c.heads = 32, c.kv_heads = 8, c.queries = 1, c.keys = length, c.dim = dim;
        c.plan = Rule{};
        c.sdpa = true;
        add(c, fmt::format("1 query, {} keys D {}", length, dim));
      }
  }

  const BenchOptions& options_;
  AttentionCase base_;
  std::string suffix_;
  std::vector<AttentionCase> cases_;
};

}  // namespace

BlockPlan random_blocks(int64_t queries, int64_t keys, int64_t block, double density) {
  const int64_t rows = (queries + block - 1) / block, columns = (keys + block - 1) / block;
  const int64_t each = std::max<int64_t>(1, int64_t(double(columns) * density));
  BlockPlan plan{.query_block = block,
                 .key_block = block,
                 .count = at::zeros({1, 1, rows}, at::kInt),
                 .index = at::zeros({1, 1, rows, each}, at::kInt),
                 .full_count = {},
                 .full_index = {},
                 .rule = Rule::full()};
  plan.count.fill_(each);
  Random random(5);
  for (int64_t row = 0; row < rows; ++row)
    std::ranges::copy(sample(columns, each, random), plan.index.mutable_data_ptr<int32_t>() + row * each);
  return plan;
}

TokenPlan random_tokens(int64_t queries, int64_t keys, int64_t count) {
  constexpr int64_t kQueryBlock = 64;
  const int64_t rows = (queries + kQueryBlock - 1) / kQueryBlock;
  TokenPlan plan{kQueryBlock, at::zeros({1, 1, rows, count}, at::kInt), Rule::full()};
  Random random(6);
  for (int64_t row = 0; row < rows; ++row)
    std::ranges::copy(sample(keys, count, random), plan.index.mutable_data_ptr<int32_t>() + row * count);
  return plan;
}

std::vector<AttentionCase> attention_cases(const BenchOptions& options) {
  const auto positive = [](const auto& numbers, std::string_view name) {
    for (const auto n : numbers) require(n >= 1, "bench: {} must be >= 1, got {}", name, n);
  };
  positive(options.dims, "dim");
  positive(options.lengths, "length");
  positive(options.threads, "threads");
  require(options.seconds >= 0, "bench: seconds must be >= 0, got {}", options.seconds);
  return Cases(options).make();
}

}  // namespace foveate::eval
