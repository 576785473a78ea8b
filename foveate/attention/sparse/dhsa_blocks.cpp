#include "foveate/attention/sparse/dhsa_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/lines.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using Mask = DhsaBlocks::Mask;

// Blocks of one call: a row is a block of queries, a column a block of keys.  Positions are key indices.
class Blocks {
 public:
  Blocks(const DhsaBlocks& o, const Inputs& in)
      : o_(o),
        in_(in),
        queries_(in.q.size(2)),
        keys_(in.k.size(2)),
        start_(in.rule.query_start.value_or(keys_ - queries_)),
        key_blocks_((keys_ + o.key_block - 1) / o.key_block),
        budget_(std::max<int64_t>(1, int64_t(o.density * double(key_blocks_)))) {}

  int64_t rows() const { return (queries_ + o_.query_block - 1) / o_.query_block; }
  int64_t key_blocks() const { return key_blocks_; }
  int64_t budget() const { return budget_; }
  int64_t lines() const { return std::min(keys_, budget_ * o_.key_block); }  // of tokens, for vs
  int64_t asking() const { return std::min(o_.query_block, queries_); }      // the last queries, which vs and vsb read

  // Of rows [first, first + count), each [count, 1] int64.
  struct Span {
    Tensor begin, end;   // positions of the first query and behind the last
    Tensor own, latest;  // blocks of their keys
    Tensor oldest;       // the first block inside the layer's window
  };
  Span span(int64_t first, int64_t count) const {
    const Tensor begin = at::arange(first, first + count, at::kLong).mul_(o_.query_block).add_(start_).unsqueeze(1);
    return span_of(begin, (begin + o_.query_block).clamp_max_(start_ + queries_));
  }
  Span span_of_asking() const {
    const Tensor end = at::arange(start_ + queries_, start_ + queries_ + 1, at::kLong).unsqueeze(1);
    return span_of(end - asking(), end);
  }

  // [count, key_blocks] bool: blocks of which a row sees a key.
  Tensor seen(const Span& s) const {
    const Tensor column = at::arange(key_blocks_, at::kLong);
    return column.le(s.latest).logical_and_(column.ge(s.oldest).logical_or_(column.lt(sink_blocks())));
  }
  Tensor forced(const Span& s) const {
    const Tensor column = at::arange(key_blocks_, at::kLong);
    Tensor all = column.lt(o_.mask == Mask::topk ? 0 : 1).logical_and(column.le(s.latest));
    if (o_.mask == Mask::vsb || o_.own_blocks)
      all = all.logical_or_(column.ge(s.own).logical_and_(column.le(s.latest)));
    else if (o_.mask != Mask::topk)
      all = all.logical_or_(column.eq(s.latest));
    return all.logical_and_(seen(s));
  }

  // Rows from the first on that attend to all they see.
  int64_t dense_head() const {
    const Span s = span(0, rows());
    const Tensor before_window = at::minimum(s.oldest.clamp_max(sink_blocks()), s.latest + 1).clamp_min_(0);
    Tensor dense = (s.latest + 1 - s.oldest).clamp_min_(0).add_(before_window).le(budget_);
    const int64_t covered = (lines() + o_.query_block - 1) / o_.query_block * o_.query_block;
    if (reads_lines()) dense = dense.logical_or_(s.begin.lt(covered));
    const bool* flags = dense.const_data_ptr<bool>();
    return std::find(flags, flags + rows(), false) - flags;
  }
  int64_t dense_tail() const { return reads_lines() ? 1 : 0; }
  bool reads_lines() const { return o_.mask == Mask::vs || o_.mask == Mask::vsb; }

 private:
  Span span_of(const Tensor& begin, const Tensor& end) const {
    const auto block = [&](const Tensor& position) { return position.div(o_.key_block, "floor"); };
    const auto left = in_.rule.window_left;
    return {begin, end, block(begin), block(end - 1).clamp_max_(key_blocks_ - 1),
            left ? block((begin - *left).clamp_min_(0)) : at::zeros_like(begin)};
  }
  int64_t sink_blocks() const { return (in_.rule.sinks + o_.key_block - 1) / o_.key_block; }

  const DhsaBlocks& o_;
  const Inputs& in_;
  int64_t queries_, keys_, start_, key_blocks_, budget_;
};

// The `count` best entries of x along the last axis where they stand, 0 elsewhere.
Tensor keep_top(const Tensor& x, int64_t count, const std::optional<Tensor>& banned = {}) {
  const Tensor index = ops::select_top(x, count, {.forced = {}, .banned = banned});
  const Tensor place = index.clamp_min(0).to(at::kLong);
  return at::zeros_like(x).scatter_add_(-1, place, x.gather(-1, place).masked_fill_(index.lt(0), 0));
}

// What blocks score in every row alike, and what the distances between a row and a block add.
struct Lines {
  Tensor columns;    // [B, Hq, 1, key_blocks] fp64
  Tensor distances;  // [B, Hq, n + 1] fp64: entry d is the sum of the kept distances below d
};

// fp64: differences of these sums must keep equal scores equal.
Tensor sums_below(const Tensor& x) { return at::constant_pad_nd(x.cumsum(-1, at::kDouble), {1, 0}); }

Lines token_lines(const DhsaBlocks& o, const Blocks& blocks, const Inputs& asking, const Tensor& lse) {
  const LineSums sums = line_sums(asking, lse);
  const int64_t columns = int64_t(double(blocks.lines()) * o.vertical_slash_ratio);
  const Tensor kept = keep_top(sums.columns, columns);
  const Tensor whole = at::constant_pad_nd(kept, {0, blocks.key_blocks() * o.key_block - kept.size(2)});
  return {
      whole.unflatten(2, {blocks.key_blocks(), o.key_block}).sum(c10::IntArrayRef{3}, false, at::kDouble).unsqueeze(2),
      sums_below(keep_top(sums.distances, blocks.lines() - columns))};
}

Lines block_lines(const DhsaBlocks& o, const Blocks& blocks, const Inputs& asking, const Tensor& means) {
  const Tensor q = asking.q.detach();
  const Tensor scores = ops::score_blocks(q, means, std::array<int64_t, 2>{0, q.size(2)}, ops::Pooling::mean, false);
  const Blocks::Span span = blocks.span_of_asking();
  const Tensor banned = blocks.seen(span).logical_not_();
  const int64_t columns = int64_t(double(blocks.budget()) * o.vertical_slash_ratio);
  const Tensor slashes = keep_top(scores, blocks.budget() - columns, banned).squeeze(2);
  const int64_t latest = span.latest.item<int64_t>();
  return {keep_top(scores, columns, banned).to(at::kDouble),
          sums_below(slashes.narrow(2, 0, latest + 1).flip(2))};  // from the nearest to the farthest
}

// Scores of rows of blocks, [B, Hq, count, key_blocks].
using Scores = std::function<Tensor(int64_t first, int64_t count)>;

Scores scores_by_lines(const DhsaBlocks& o, const Blocks& blocks, const Lines& lines) {
  return [&o, &blocks, lines](int64_t first, int64_t count) {
    const Blocks::Span s = blocks.span(first, count);
    const Tensor column = at::arange(blocks.key_blocks(), at::kLong);
    const bool by_block = o.mask == Mask::vsb;
    // distances [nearest, farthest) lead from the row's queries to keys of the block
    const Tensor nearest = by_block ? s.own - column : s.begin - (column + 1) * o.key_block + 1;
    const Tensor farthest = by_block ? s.latest - column + 1 : s.end - column * o.key_block;
    const auto below = [&](const Tensor& distance) {
      const Tensor index = distance.clamp(0, lines.distances.size(2) - 1).view({1, 1, -1});
      const Tensor sums =
          lines.distances.gather(2, index.expand({lines.distances.size(0), lines.distances.size(1), -1}));
      return sums.unflatten(2,
                            {count, blocks.key_blocks()});  // index_select along the last axis took six times as long
    };
    return below(farthest).sub_(below(nearest)).add_(lines.columns);
  };
}

Scores scores_by_means(const DhsaBlocks& o, const Inputs& in, const Tensor& means) {
  return [&o, q = in.q.detach(), means](int64_t first, int64_t count) {
    const int64_t from = first * o.query_block, queries = std::min(count * o.query_block, q.size(2) - from);
    return ops::score_blocks(q.narrow(2, from, queries), means, ops::even_cuts(queries, o.query_block),
                             ops::Pooling::mean, false);
  };
}

// `lse` is that of the asking queries, where lines are read.
Scores scores_of(const DhsaBlocks& o, const Blocks& blocks, const Inputs& in, const Inputs& asking, const Tensor& lse) {
  if (o.mask == Mask::vs) return scores_by_lines(o, blocks, token_lines(o, blocks, asking, lse));
  const auto cuts = ops::even_cuts(in.k.size(2), o.key_block);
  const Tensor means = ops::pool_segments(in.k.detach(), cuts, ops::Pooling::mean);
  if (o.mask == Mask::vsb) return scores_by_lines(o, blocks, block_lines(o, blocks, asking, means));
  return scores_by_means(o, in, means);
}

// Kept blocks of rows [first, first + count): [B, Hq, count, longest] int32, ascending, -1 behind the end.
Tensor select_blocks(const Blocks& blocks, const Scores& scores, int64_t first, int64_t count, int64_t lists) {
  constexpr int64_t kMostScores = int64_t{1} << 21;  // held at a time
  const int64_t most_rows = std::max<int64_t>(1, kMostScores / std::max<int64_t>(1, lists * blocks.key_blocks()));
  const Tensor forced_counts = blocks.forced(blocks.span(first, count)).sum(-1).clamp_min_(blocks.budget());
  const int64_t* takes = forced_counts.const_data_ptr<int64_t>();
  const int64_t longest = *std::max_element(takes, takes + count);
  std::vector<Tensor> parts;
  for (int64_t row = 0; row < count;) {  // rows that keep equally many, a few at a time
    int64_t end = row + 1;
    while (end < count && end - row < most_rows && takes[end] == takes[row]) ++end;
    const Blocks::Span span = blocks.span(first + row, end - row);
    const Tensor kept = ops::select_top(scores(first + row, end - row), takes[row],
                                        {.forced = blocks.forced(span), .banned = blocks.seen(span).logical_not_()});
    parts.push_back(at::constant_pad_nd(kept, {0, longest - kept.size(3)}, -1));
    row = end;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 2);
}

bool shows_all_before(const Rule& rule) {
  return !rule.window_left && !rule.head_window && !rule.key_lengths && !rule.query_documents && !rule.row_start &&
         !rule.row_end;
}

// Where the rule is causality alone, blocks that end before the first row are full; they stand first in a list.
BlockPlan plan_of(const DhsaBlocks& o, const Blocks& blocks, const Tensor& index, int64_t first, const Rule& rule) {
  BlockPlan plan{.query_block = o.query_block, .key_block = o.key_block, .count = {}, .index = index, .rule = rule};
  const Tensor listed = index.ge(0), total = listed.sum(c10::IntArrayRef{-1}, false, at::kInt);
  plan.count = total;
  if (!shows_all_before(rule)) return plan;
  const Tensor whole = (blocks.span(first, index.size(2)).begin + 1).div(o.key_block, "floor");
  plan.full_index = index;
  plan.full_count = listed.logical_and(index.lt(whole)).sum(c10::IntArrayRef{-1}, false, at::kInt);
  plan.count = total - *plan.full_count;
  const int64_t longest = plan.count.max().item<int64_t>();
  const Tensor place = (plan.full_count->unsqueeze(-1) + at::arange(longest, at::kLong)).clamp_max_(index.size(3) - 1);
  plan.index = index.gather(-1, place);
  return plan;
}

}  // namespace

void DhsaBlocks::validate() const {
  check_options(*this);
  require(density > 0, "dhsa_blocks: density must be > 0, got {}", density);
  require(query_block % 16 == 0, "dhsa_blocks: query_block must be a multiple of 16, got {}", query_block);
  require(key_block == 16 || key_block == 32 || key_block == 64 || key_block == 128,
          "dhsa_blocks: key_block must be 16, 32, 64 or 128, got {}", key_block);
}

int64_t DhsaBlocks::chunk_multiple() const { return std::lcm(query_block, key_block); }

Attended DhsaBlocks::attend(const Inputs& in) const {
  validate();
  require(!in.rule.key_lengths && !in.rule.query_order,
          "dhsa_blocks: padded keys and ordered queries are not supported, choose rows of one length");
  require(in.rule.window_right == 0, "dhsa_blocks: the rule must be causal, got one that shows later keys");
  const Blocks blocks(*this, in);
  const int64_t queries = in.q.size(2), head = blocks.dense_head(), tail = blocks.dense_tail();
  const int64_t rows = blocks.rows() - head - tail;  // sparse ones
  if (rows <= 0) return Dense{}.attend(in);

  std::vector<Tensor> outs, lses;
  Attended attended{.out = {}, .lse = {}, .plans = {}};
  const auto run = [&](const Inputs& part, const Plan& plan) {
    return ops::attend(part.q, part.k, part.v, plan, part.score);
  };
  const auto add = [&](const Tensor& out, const Tensor& lse, int64_t first, Plan plan) {
    outs.push_back(out), lses.push_back(lse);
    attended.plans.push_back({first, out.size(2), std::move(plan)});
  };
  const Inputs asking = narrow_rows(in, queries - blocks.asking(), blocks.asking());
  ops::Attended asked;  // its last rows are the dense tail
  if (tail > 0) asked = run(asking, asking.rule);

  const int64_t begin = head * query_block, end = tail > 0 ? (head + rows) * query_block : queries;
  if (head > 0) {
    const Inputs part = narrow_rows(in, 0, begin);
    const ops::Attended first = run(part, part.rule);
    add(first.out, first.lse, 0, part.rule);
  }
  const Scores scores = scores_of(*this, blocks, in, asking, asked.lse);
  const Tensor index = select_blocks(blocks, scores, head, rows, in.q.size(0) * in.q.size(1));
  const Inputs part = narrow_rows(in, begin, end - begin);
  BlockPlan plan = plan_of(*this, blocks, index, head, part.rule);
  const ops::Attended middle = run(part, plan);
  add(middle.out, middle.lse, begin, std::move(plan));
  if (const int64_t last = queries - end; last > 0) {
    const int64_t skipped = blocks.asking() - last;
    add(asked.out.narrow(2, skipped, last), asked.lse.narrow(2, skipped, last), end, narrow_rows(in, end, last).rule);
  }
  attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  attended.lse = lses.size() == 1 ? lses[0] : at::cat(lses, 2);
  return attended;
}

std::unique_ptr<State> DhsaBlocks::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<DhsaBlocks>>(*this, options);
}

}  // namespace foveate::attention
