#include "foveate/eval/bench_cases.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "foveate/base/error.h"
#include "foveate/base/random.h"

namespace foveate::eval {
namespace {

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
          base_ = {.type = bench_dtype(dtype), .threads = threads};
          suffix_ = fmt::format("{} {}t", dtype, threads);
          if (suite == "dense")
            dense();
          else if (suite == "sparse")
            sparse();
          else if (suite == "window")
            window();
          else if (suite == "scores")
            scores();
          else if (suite == "ragged")
            ragged();
          else if (suite == "decode")
            decode();
          else
            fail("bench: unknown suite '{}', known: dense sparse window scores ragged decode mechanisms", suite);
        }
    return std::move(cases_);
  }

 private:
  void add(AttentionCase c, const std::string& name, const std::optional<std::string>& reference = {}) {
    for (const BenchPass pass : {BenchPass::forward, BenchPass::backward}) {
      if (pass == BenchPass::backward && (!options_.backward || c.queries < c.keys)) continue;
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
        add(square(dim, length, random_blocks_by_query(length, length, 64, 0.125)),
            fmt::format("blocks of 64 by query, 12.5% L {} D {}", length, dim), reference);
        add(square(dim, length, local_and_lines(length, length, length / 16, length / 16)),
            fmt::format("{} latest and {} lines L {} D {}", length / 16, length / 16, length, dim), reference);
        const int64_t tokens = length / 8;
        add(square(dim, length, random_tokens(length, length, tokens)),
            fmt::format("{} tokens L {} D {}", tokens, length, dim), reference);
      }
  }

  void scores() {
    for (const int64_t dim : options_.dims)
      for (const int64_t length : options_.lengths) {
        const std::string reference = add_dense(dim, length, true);
        const auto add_score = [&](const std::string& name, std::function<ops::Score(int64_t)> score) {
          AttentionCase c = square(dim, length, Rule{});
          c.score = std::move(score);
          add(c, fmt::format("{} L {} D {}", name, length, dim), reference);
        };
        const at::Tensor bias = at::zeros({1, 1, length, length}, base_.type);
        const at::Tensor places = at::arange(length, at::kLong);
        const at::Tensor map = at::stack({places.div(64, "floor"), places.remainder(64)});
        const int64_t rows = (length + 63) / 64;
        add_score("soft cap", [](int64_t) { return ops::Score{.soft_cap = 50.0}; });
        add_score("bias by query and key", [bias](int64_t) { return ops::Score{.bias = bias}; });
        add_score("slopes", [](int64_t heads) { return ops::Score{.slopes = at::full({heads}, 0.01)}; });
        add_score("relative logits of a map", [map, rows, length](int64_t) {
          const at::Tensor logits = at::zeros({1, 1, length, rows + 64});
          return ops::Score{.relative = ops::Relative{logits, at::zeros_like(map), map, {rows, 64}}};
        });
        const at::Tensor marks = at::arange(1, length + 1, at::kLong).remainder(64).eq(0).unsqueeze(0);
        add_score("landmarks every 64", [marks](int64_t) { return ops::Score{.landmarks = marks}; });
        add_score("dropout 0.1", [](int64_t) { return ops::Score{.dropout = 0.1}; });
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
        for (const int64_t queries : {1, 8, 32})
          for (const bool quantised : {false, true}) {
            AttentionCase c = base_;
            c.heads = 32, c.kv_heads = 8, c.queries = queries, c.keys = length, c.dim = dim;
            c.plan = Rule{};
            c.quantised = quantised;
            c.sdpa = queries == 1 && !quantised;  // more than one stand at torch's first keys, not at the last
            const auto name = [&](bool q8) {
              return fmt::format("{} {}, {} keys{} D {}", queries, queries == 1 ? "query" : "queries", length,
                                 q8 ? " in 8 bits" : "", dim);
            };
            add(c, name(quantised), quantised ? std::optional(name(false)) : std::nullopt);
          }
      }
  }

  const BenchOptions& options_;
  AttentionCase base_;
  std::string suffix_;
  std::vector<AttentionCase> cases_;
};

}  // namespace

namespace {

BlockPlan make_blocks(int64_t queries, int64_t keys, int64_t query_block, int64_t block, double density) {
  const int64_t rows = (queries + query_block - 1) / query_block, columns = (keys + block - 1) / block;
  const int64_t each = std::max<int64_t>(1, int64_t(double(columns) * density));
  BlockPlan plan{.query_block = query_block,
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

}  // namespace

BlockPlan random_blocks(int64_t queries, int64_t keys, int64_t block, double density) {
  return make_blocks(queries, keys, block, block, density);
}

BlockPlan random_blocks_by_query(int64_t queries, int64_t keys, int64_t block, double density) {
  return make_blocks(queries, keys, 1, block, density);
}

RunPlan local_and_lines(int64_t queries, int64_t keys, int64_t local, int64_t lines) {
  constexpr int64_t kQueryBlock = 64;
  const int64_t rows = (queries + kQueryBlock - 1) / kQueryBlock;
  Random random(7);
  const std::vector<int32_t> taken = sample(keys, lines, random);
  RunPlan plan{
      kQueryBlock, at::zeros({1, 1, rows, lines + 1}, at::kInt), at::zeros({1, 1, rows, lines + 1}, at::kInt), {}};
  int32_t *start = plan.start.mutable_data_ptr<int32_t>(), *end = plan.end.mutable_data_ptr<int32_t>();
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t last = keys - queries + (row + 1) * kQueryBlock, first = std::max<int64_t>(last - local, 0);
    *start++ = int32_t(first), *end++ = int32_t(std::min(last, keys));
    for (const int32_t line : taken) {  // those before the latest keys
      *start++ = line;
      *end++ = line < first ? line + 1 : line;
    }
  }
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

at::ScalarType bench_dtype(const std::string& name) {
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  require(name == "fp32", "bench: unknown dtype '{}', known: bf16 fp16 fp32", name);
  return at::kFloat;
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
