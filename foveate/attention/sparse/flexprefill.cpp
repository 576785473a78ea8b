#include "foveate/attention/sparse/flexprefill.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/sparse/lines.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

int64_t blocks_of(int64_t tokens, int64_t block) { return (tokens + block - 1) / block; }

// x [B, Hq, Lk] summed over blocks: [B, Hq, blocks]
Tensor sum_blocks(const Tensor& x, int64_t block) {
  const int64_t blocks = blocks_of(x.size(2), block);
  return at::constant_pad_nd(x, {0, blocks * block - x.size(2)}).unflatten(2, {blocks, block}).sum(3);
}

// Products of means [B, Hq, rows, blocks] as probabilities over the seen blocks.
Tensor probabilities(Tensor products, const Inputs& in, const Tensor& seen) {
  products = in.score.capped(products.mul_(in.score.scale_of(in.q.size(3))));
  products.masked_fill_(seen.logical_not(), -kInfinity);
  return at::softmax(products, -1).masked_fill_(seen.logical_not(), 0);
}

// Which of `entries` a list [.., longest] with -1 behind its end names: [.., entries] bool.
Tensor named_by(const Tensor& list, int64_t entries) {
  std::vector<int64_t> sizes = list.sizes().vec();
  sizes.back() = entries + 1;  // the last takes empty places
  const Tensor named = at::full(sizes, false, at::kBool);
  named.scatter_(-1, at::where(list.ge(0), list, entries).to(at::kLong), true);
  return named.narrow(-1, 0, entries).contiguous();
}

// Whether entries along the last axis are among the count [B, Hq] best, entry `first` [B|1] before all others.
Tensor among_best(const Tensor& sums, const Tensor& count, const Tensor& first) {
  const int64_t entries = sums.size(2);
  const Tensor forced = at::arange(entries, at::kLong).eq(first.unsqueeze(1)).unsqueeze(1);
  return named_by(ops::select_top(sums, count, {.forced = forced, .banned = {}}), entries);
}

// What heads keep, in blocks.
struct Kept {
  Tensor columns, distances;  // [B, Hq, key_blocks] bool
  Tensor aware;               // [B, Hq] bool: query-aware heads
};

Kept keep_lines(const FlexPrefill& o, const BlockGrid& grid, const Inputs& in, const Tensor& means) {
  const int64_t asking = std::min(o.block, in.q.size(2)), blocks = grid.key_blocks();
  const LineSums sums = line_sums_of_last(in, o.block, o.name);
  const Tensor columns = sum_blocks(sums.columns, o.block), distances = sum_blocks(sums.distances, o.block);
  const Tensor last = in.q.narrow(2, in.q.size(2) - asking, asking);
  const Tensor products = ops::score_blocks(last, means, std::array<int64_t, 2>{0, asking}, ops::Pooling::mean, false);
  const Tensor estimate = probabilities(products, in, grid.seen(grid.span_of_last(asking))).squeeze(2);
  const Tensor share = columns.div(columns.sum(2, true).clamp_min_(std::numeric_limits<float>::min()));
  const Tensor aware = root_of_js_divergence(estimate, share).lt(o.tau);

  const int64_t least = blocks_of(o.min_budget, o.block);
  const int64_t most = std::min(blocks, o.max_budget > 0 ? blocks_of(o.max_budget, o.block) : blocks);
  const auto count = [&](const Tensor& mass) {
    const Tensor held = ops::select_mass(mass, o.gamma).ge(0).sum(2).div_(o.block, "floor").add_(1);
    return held.masked_fill_(aware, least).clamp_min_(least).clamp_max_(most);
  };
  return {among_best(columns, count(sums.columns), sums.first_key.div(o.block, "floor")),
          among_best(distances, count(sums.distances), at::zeros({1}, at::kLong)), aware};
}

// Whether a query-aware head keeps blocks of the map: [rows, key_blocks] bool.
Tensor keep_of_map(const FlexPrefill& o, const BlockGrid& grid, const Inputs& in, const Tensor& means, int64_t batch,
                   int64_t head) {
  const Tensor q = in.q.narrow(0, batch, 1).narrow(1, head, 1);
  const Tensor of_head = means.narrow(0, batch, 1).narrow(1, head * means.size(1) / in.q.size(1), 1);
  const Tensor all_seen = grid.seen(grid.span(0, grid.rows()));
  const Tensor seen = all_seen.narrow(0, all_seen.size(0) == 1 ? 0 : batch, 1);
  const Tensor map = probabilities(scores_by_means(grid, q, of_head, false)(0, grid.rows()), in, seen);
  const Tensor taken = ops::select_mass(map.flatten(), o.gamma, {.forced = {}, .banned = {}, .crossing = false});
  return named_by(taken, map.numel()).view({grid.rows(), grid.key_blocks()});
}

// Rows of one head as lists of blocks.
class HeadLists {
 public:
  HeadLists(const BlockGrid& grid)
      : rows_(grid.rows()),
        blocks_(grid.key_blocks()),
        span_(grid.span(0, rows_)),
        seen_(grid.seen(span_).contiguous()) {}

  std::vector<std::vector<int32_t>> make(int64_t batch, const bool* columns, const bool* distances,
                                         const bool* map) const {
    std::vector<std::vector<int32_t>> lists{size_t(rows_)};
    const auto *own = span_.own.const_data_ptr<int64_t>(), *latest = span_.latest.const_data_ptr<int64_t>();
    const bool* seen = seen_.const_data_ptr<bool>() + (seen_.size(0) == 1 ? 0 : batch * rows_ * blocks_);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c <= latest[r]; ++c) {
        if (!seen[r * blocks_ + c]) continue;
        const bool on_slash = distances[latest[r] - c] || (c <= own[r] && distances[own[r] - c]);
        if (columns[c] || on_slash || (map && map[r * blocks_ + c])) lists[size_t(r)].push_back(int32_t(c));
      }
    return lists;
  }

 private:
  int64_t rows_, blocks_;
  BlockGrid::Span span_;
  Tensor seen_;
};

// [B, Hq, rows, longest] int32, ascending, -1 behind the end
Tensor select_blocks_of_heads(const FlexPrefill& o, const BlockGrid& grid, const Inputs& in) {
  const at::NoGradGuard no_gradients;
  const int64_t heads = in.q.size(1), lists = in.q.size(0) * heads, rows = grid.rows(), blocks = grid.key_blocks();
  const Tensor means = ops::pool_segments(keys_in_sight(in), ops::even_cuts(in.k.size(2), o.block), ops::Pooling::mean);
  const Kept kept = keep_lines(o, grid, in, means);
  std::vector<Tensor> maps(static_cast<size_t>(lists));
  for (int64_t list = 0; list < lists; ++list)
    if (kept.aware.const_data_ptr<bool>()[list])
      maps[size_t(list)] = keep_of_map(o, grid, in, means, list / heads, list % heads);
  const HeadLists of_head(grid);
  std::vector<std::vector<std::vector<int32_t>>> all{size_t(lists)};
  run_queue(ops::torch_pool(), lists, [&](int64_t list, int) {
    const Tensor& map = maps[size_t(list)];
    all[size_t(list)] = of_head.make(list / heads, kept.columns.const_data_ptr<bool>() + list * blocks,
                                     kept.distances.const_data_ptr<bool>() + list * blocks,
                                     map.defined() ? map.const_data_ptr<bool>() : nullptr);
  });
  size_t longest = 0;
  for (const auto& head : all)
    for (const auto& row : head) longest = std::max(longest, row.size());
  const Tensor index = at::full({in.q.size(0), heads, rows, int64_t(longest)}, -1, at::kInt);
  int32_t* to = index.mutable_data_ptr<int32_t>();
  for (const auto& head : all)
    for (const auto& row : head) std::copy(row.begin(), row.end(), to), to += longest;
  return index;
}

}  // namespace

Tensor root_of_js_divergence(const Tensor& p, const Tensor& q) {
  const Tensor a = p.to(at::kDouble), b = q.to(at::kDouble), middle = (a + b) / 2;
  const auto divergence = [&](const Tensor& x) { return (at::xlogy(x, x) - at::xlogy(x, middle)).sum(-1); };
  return ((divergence(a) + divergence(b)) / 2).clamp_min_(0).sqrt_();
}

void FlexPrefill::validate() const {
  check_options(*this);
  require(gamma > 0, "flexprefill: gamma must be > 0, got {}", gamma);
  require(max_budget == 0 || max_budget >= min_budget,
          "flexprefill: max_budget must be 0 or >= min_budget, got {} and {}", max_budget, min_budget);
}

Attended FlexPrefill::attend(const Inputs& in) const {
  return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended FlexPrefill::attend_prompt(const Inputs& in) const {
  validate();
  const BlockGrid grid(in, block, block, name);
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  if (queries == 0 || keys <= std::max(2 * block, blocks_of(min_budget, block) * block)) return Dense{}.attend(in);
  first_query_key(in, name);
  return attend_blocks(grid, select_blocks_of_heads(*this, grid, in), in);
}

std::unique_ptr<State> FlexPrefill::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<FlexPrefill>>(*this, options);
}

}  // namespace foveate::attention
