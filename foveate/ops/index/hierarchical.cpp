#include <ATen/ops/full.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "foveate/base/error.h"
#include "foveate/ops/index/scores.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/select/top.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr int64_t kColumn = kernels::kIndexColumn;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a thread works in.
struct Scratch {
  ScoreScratch scores;
  TopOfRow top;
  std::vector<float> blocks, columns, tokens;
  std::vector<int32_t> kept, places;
  std::vector<int64_t> ids, token_first;
};

// Queries whose last block competes by what they see of it: one pooled key for each.
std::optional<IndexKeys> own_blocks(const RowRanges& ranges, int64_t first_row, int64_t rows, const BlockedKeys& keys) {
  std::vector<int64_t> first, end;
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const int64_t last = std::max<int64_t>(ranges.end(row) - 1, 0) / keys.block() * keys.block();
    first.push_back(last), end.push_back(ranges.end(row));
  }
  return keys.pooled_parts(first, end);
}

class Rows {
 public:
  Rows(const IndexQueries& queries, const BlockedKeys& keys, const HisaOptions& options)
      : queries_(queries), keys_(keys), o_(options), ranges_(queries, keys.keys().length()) {}

  void run(int32_t* to) {
    std::vector<Scratch> scratches(size_t(std::max(torch_pool().threads, 1)));
    for_row_tiles(queries_, keys_.keys(), [&](const RowScores& tokens, int64_t first_row, int64_t rows) {
      const RowScores blocks(tokens, keys_.pooled());
      std::optional<IndexKeys> own;
      std::optional<RowScores> own_scores;
      if (!o_.force_ends) {
        own = own_blocks(ranges_, first_row, rows, keys_);
        own_scores.emplace(tokens, *own);
      }
      run_queue(torch_pool(), rows, [&](int64_t row, int worker) {
        Scratch& s = scratches[size_t(worker)];
        choose_blocks(blocks, own_scores ? &*own_scores : nullptr, row, first_row + row, s);
        choose_tokens(tokens, row, first_row + row, s, to + (first_row + row) * o_.topk);
      });
    });
  }

 private:
  // s.kept: the blocks of a row, ascending.
  void choose_blocks(const RowScores& scores, const RowScores* own, int64_t row, int64_t query, Scratch& s) const {
    const auto [first, end] = ranges_.units(query, keys_.block());
    const int64_t count = end - first, from = first / kColumn, to = (end + kColumn - 1) / kColumn;
    s.kept.resize(size_t(std::min(count, o_.block_topk)));
    if (count <= o_.block_topk) {  // all of them: nothing to score
      for (int64_t i = 0; i < count; ++i) s.kept[size_t(i)] = int32_t(first + i);
      return;
    }
    s.blocks.resize(size_t((to - from + 1) * kColumn));
    float* all = s.blocks.data();
    scores.range(row, from, to, s.scores, all);
    float* blocks = all + first - from * kColumn;
    if (o_.force_ends) {
      blocks[0] = blocks[count - 1] = kInfinity;
    } else {
      float* column = all + (to - from) * kColumn;
      own->range(row, row / kColumn, row / kColumn + 1, s.scores, column);
      blocks[count - 1] = column[row % kColumn];
    }
    s.top({blocks, size_t(count)}, o_.block_topk, s.kept.data());
    std::erase(s.kept, -1);
    for (int32_t& block : s.kept) block += int32_t(first);
  }

  // The best tokens of the kept blocks, from the start of the row's range.
  void choose_tokens(const RowScores& scores, int64_t row, int64_t query, Scratch& s, int32_t* to) const {
    const int64_t start = ranges_.start(query), end = ranges_.end(query);
    const auto tokens_of = [&](int32_t block) {
      return std::pair(std::max(block * keys_.block(), start), std::min((block + 1) * keys_.block(), end));
    };
    s.ids.clear();
    for (const int32_t block : s.kept) {
      const auto [a, b] = tokens_of(block);
      for (int64_t id = a / kColumn; id * kColumn < b; ++id)
        if (s.ids.empty() || id > s.ids.back()) s.ids.push_back(id);
    }
    s.columns.resize(s.ids.size() * kColumn), s.tokens.resize(s.ids.size() * kColumn);
    scores.columns(row, s.ids, s.scores, s.columns.data());
    // Tokens of a block stand in neighbouring columns, which come in their order.
    s.token_first.clear();
    int64_t count = 0;
    size_t at = 0;
    for (const int32_t block : s.kept) {
      const auto [a, b] = tokens_of(block);
      while (s.ids[at] < a / kColumn) ++at;
      std::copy_n(s.columns.data() + int64_t(at) * kColumn + a % kColumn, b - a, s.tokens.data() + count);
      s.token_first.push_back(count);
      count += b - a;
    }
    s.top({s.tokens.data(), size_t(count)}, o_.topk, to);
    size_t part = 0;
    for (int64_t i = 0; i < o_.topk && to[i] >= 0; ++i) {
      while (part + 1 < s.token_first.size() && to[i] >= s.token_first[part + 1]) ++part;
      to[i] += int32_t(tokens_of(s.kept[part]).first - s.token_first[part] - start);
    }
  }

  const IndexQueries& queries_;
  const BlockedKeys& keys_;
  const HisaOptions& o_;
  RowRanges ranges_;
};

}  // namespace

Tensor hisa_index(const IndexQueries& queries, const BlockedKeys& keys, const HisaOptions& options) {
  require(options.topk >= 1, "hisa_index: topk must be >= 1, got {}", options.topk);
  require(options.block_topk >= (options.force_ends ? 2 : 1), "hisa_index: block_topk must be >= {}, got {}",
          options.force_ends ? "2 (the forced ends)" : "1", options.block_topk);
  const Tensor index = at::full({queries.q.size(0), options.topk}, -1, at::kInt);
  Rows(queries, keys, options).run(index.mutable_data_ptr<int32_t>());
  return index;
}

}  // namespace foveate::ops
