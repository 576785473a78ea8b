#include "foveate/attention/sparse/vertical_slash.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "foveate/attention/dense.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

int64_t columns_of(const HeadPattern& p, const VerticalSlash& o) { return std::max(p.vertical, o.first_columns); }
int64_t distances_of(const HeadPattern& p, const VerticalSlash& o) { return std::max(p.slash, o.first_distances / 2); }

// [B, Hq, longest] from sums [B, Hq, Lk] of which `forced` entries from `first` [B|1] on come before all others.
template <class CountOf>
Tensor select_lines_of(const Tensor& sums, const Tensor& first, int64_t forced, std::span<const HeadPattern> heads,
                       CountOf count_of) {
  const int64_t keys = sums.size(2);
  int64_t longest = 0;
  for (const HeadPattern& head : heads) longest = std::max(longest, std::min(keys, count_of(head)));
  Tensor ranked = sums.clone();
  const Tensor place = at::arange(keys, at::kLong) - first.unsqueeze(1);  // [B|1, Lk]: in the text
  ranked.masked_fill_(place.ge(0).logical_and_(place.lt(forced)).unsqueeze(1), kInfinity);
  const Tensor lines = at::full({sums.size(0), sums.size(1), longest}, -1, at::kInt);
  run_queue(ops::torch_pool(), sums.size(1), [&](int64_t head, int) {
    const HeadPattern& pattern = heads[size_t(head)];
    const int64_t count = std::min(keys, count_of(pattern));
    const Tensor to = lines.select(1, head).narrow(1, 0, count);
    if (pattern.kind == HeadPattern::Kind::stream_llm)
      to.copy_(ops::select_top(at::zeros_like(ranked.select(1, head)), count, {.banned = place.lt(0)}));
    else
      to.copy_(ops::select_top(ranked.select(1, head), count));
  });
  return lines;
}

struct Run {
  int64_t begin, end;
};

std::span<const int32_t> listed(const Tensor& lines, int64_t list) {
  const int64_t capacity = lines.size(2);
  const int32_t* begin = lines.const_data_ptr<int32_t>() + list * capacity;
  return {begin, std::find(begin, begin + capacity, -1)};
}

// Distances as runs of neighbours, the farthest first: of a head, for all its blocks.
std::vector<Run> runs_of(std::span<const int32_t> distances) {
  std::vector<Run> runs;
  for (auto at = distances.rbegin(); at != distances.rend(); ++at)
    if (!runs.empty() && runs.back().begin == *at + 1)
      runs.back().begin = *at;
    else
      runs.push_back({*at, *at + 1});
  return runs;
}

// The keys of the block of rows that ends before position `end`, for a text that begins with key 0.
class BlockRuns {
 public:
  BlockRuns(std::span<const int32_t> columns, int64_t keys) : columns_(columns), keys_(keys) {}

  std::vector<Run> make(const std::vector<Run>& distances, int64_t end, int64_t block) {
    runs_.reserve(size_t(std::lower_bound(columns_.begin(), columns_.end(), end) - columns_.begin()) +
                  distances.size());
    Run range{0, 0};
    bool is_open = false;
    for (const Run& run : distances) {
      if (run.begin >= end) continue;
      // where the ranges of the farthest and of the nearest of the run end; those between end key by key
      const int64_t first = std::max(end - run.end + 1, block), last = std::max(end - run.begin, block);
      if (!is_open || first > range.end + block) {
        if (is_open) close(range);
        range = {first - block, first};
        is_open = true;
      }
      if (last > range.end) range.end += (last - range.end + block - 1) / block * block;
    }
    if (is_open) close(range);
    return std::move(runs_);
  }

 private:
  void close(const Run& range) {
    bool follows = false;  // a single key
    for (; next_ < columns_.size() && columns_[next_] < range.begin; ++next_) {
      const int64_t key = columns_[next_];
      if (follows && runs_.back().end == key)
        ++runs_.back().end;
      else
        runs_.push_back({key, key + 1});
      follows = true;
    }
    while (next_ < columns_.size() && columns_[next_] < range.end) ++next_;
    if (range.begin < keys_) runs_.push_back({range.begin, std::min(range.end, keys_)});
  }

  std::span<const int32_t> columns_;
  const int64_t keys_;
  size_t next_ = 0;
  std::vector<Run> runs_;
};

std::vector<HeadPattern> patterns_of(const VerticalSlash& o, const Inputs& in) {
  const int64_t heads = in.q.size(1);
  std::vector<HeadPattern> patterns(size_t(heads), {.vertical = o.vertical, .slash = o.slash});
  if (o.heads.empty()) return patterns;
  const std::vector<LayerPatterns> layers = read_head_patterns(o.heads);
  require(in.layer >= 0 && in.layer < std::ssize(layers),
          "vertical_slash: {} must have every layer of the model, got {} and layer {}", o.heads, layers.size(),
          in.layer);
  for (const auto& [head, pattern] : layers[size_t(in.layer)]) {
    require(head < heads, "vertical_slash: {} must name heads 0 .. {} of layer {}, got {}", o.heads, heads - 1,
            in.layer, head);
    patterns[size_t(head)] = pattern;
  }
  return patterns;
}

}  // namespace

Lines select_lines(const LineSums& sums, std::span<const HeadPattern> heads, const VerticalSlash& o) {
  require(std::ssize(heads) == sums.columns.size(1), "vertical_slash: one pattern for each query head, got {} for {}",
          heads.size(), sums.columns.size(1));
  const auto columns = [&](const HeadPattern& p) { return columns_of(p, o); };
  const auto distances = [&](const HeadPattern& p) { return distances_of(p, o); };
  const Tensor nearest = at::zeros({1}, at::kLong);
  return {select_lines_of(sums.columns, sums.first_key, o.first_columns, heads, columns),
          select_lines_of(sums.distances, nearest, o.first_distances, heads, distances)};
}

RunPlan line_runs(const Lines& lines, const BlockGrid& grid) {
  const int64_t batch = lines.columns.size(0), heads = lines.columns.size(1), blocks = grid.rows();
  const int64_t block = grid.query_block(), keys = grid.keys(), start = grid.start();
  std::vector<std::vector<Run>> runs(size_t(batch * heads * blocks));
  const Pool pool = ops::torch_pool();
  const Tensor texts = grid.span(0, blocks).text.start.contiguous();  // [B|1, blocks]
  constexpr int64_t kBlocksAtOnce = 32;
  const int64_t parts = (blocks + kBlocksAtOnce - 1) / kBlocksAtOnce;
  run_queue(pool, batch * heads * parts, [&](int64_t item, int) {
    const int64_t list = item / parts, first = item % parts * kBlocksAtOnce;
    const std::vector<Run> distances = runs_of(listed(lines.distances, list));
    const int64_t* text_of = texts.const_data_ptr<int64_t>() + (texts.size(0) == 1 ? 0 : list / heads * blocks);
    std::vector<int32_t> columns;  // of the text
    for (int64_t m = first; m < std::min(first + kBlocksAtOnce, blocks); ++m) {
      const int64_t text = text_of[m];
      if (m == first || text != text_of[m - 1]) {
        columns.clear();
        for (const int32_t key : listed(lines.columns, list))
          if (key >= text) columns.push_back(int32_t(key - text));
      }
      auto& own = runs[size_t(list * blocks + m)];
      own = BlockRuns(columns, keys - text).make(distances, start + (m + 1) * block - text, block);
      for (Run& run : own) run.begin += text, run.end += text;
    }
  });
  size_t capacity = 0;
  for (const auto& list : runs) capacity = std::max(capacity, list.size());
  RunPlan plan{.query_block = block,
               .start = at::zeros({batch, heads, blocks, int64_t(capacity)}, at::kInt),
               .end = at::zeros({batch, heads, blocks, int64_t(capacity)}, at::kInt),
               .rule = {}};
  int32_t *begins = plan.start.mutable_data_ptr<int32_t>(), *ends = plan.end.mutable_data_ptr<int32_t>();
  run_queue(pool, std::ssize(runs), [&](int64_t list, int) {
    int32_t *begin = begins + list * int64_t(capacity), *end = ends + list * int64_t(capacity);
    for (const Run& run : runs[size_t(list)]) *begin++ = int32_t(run.begin), *end++ = int32_t(run.end);
  });
  return plan;
}

Attended attend_lines(const Inputs& in, std::span<const HeadPattern> heads, const VerticalSlash& o) {
  const BlockGrid grid(in, o.block, o.block, o.name);
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  const auto covers = [&](const HeadPattern& p) { return columns_of(p, o) >= keys || distances_of(p, o) >= keys; };
  if (queries == 0 || std::all_of(heads.begin(), heads.end(), covers)) return Dense{}.attend(in);
  first_query_key(in, o.name);
  RunPlan plan = line_runs(select_lines(line_sums_of_last(in, o.last_queries, o.name), heads, o), grid);
  plan.rule = in.rule;
  const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
  return {attended.out, attended.lse, {{0, queries, std::move(plan)}}};
}

void VerticalSlash::validate() const {
  check_options(*this);
  if (!heads.empty()) read_head_patterns(heads);
}

Attended VerticalSlash::attend(const Inputs& in) const {
  return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended VerticalSlash::attend_prompt(const Inputs& in) const {
  check_options(*this);
  return attend_lines(in, patterns_of(*this, in), *this);
}

std::unique_ptr<State> VerticalSlash::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<VerticalSlash>>(*this, options);
}

}  // namespace foveate::attention
