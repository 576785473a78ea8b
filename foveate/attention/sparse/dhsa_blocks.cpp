#include "foveate/attention/sparse/dhsa_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/sparse/lines.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using Mask = DhsaBlocks::Mask;

// The grid of one call and what the options make of it.
class Blocks : public BlockGrid {
 public:
  Blocks(const DhsaBlocks& o, const Inputs& in)
      : BlockGrid(in, o.query_block, o.key_block, DhsaBlocks::name),
        o_(o),
        asking_(std::min(o.query_block, in.q.size(2))),
        budget_(text_blocks().to(at::kDouble).mul_(o.density).to(at::kLong).clamp_min_(1)) {}

  // [B|1, 1, 1]
  const Tensor& budget() const { return budget_; }
  Tensor lines() const { return (budget_ * o_.key_block).clamp_max_(keys()); }  // of tokens, for vs
  int64_t asking() const { return asking_; }  // the last queries, which vs and vsb read
  bool reads_lines() const { return o_.mask == Mask::vs || o_.mask == Mask::vsb; }

  Tensor forced(const Span& s) const {
    Tensor all = o_.mask == Mask::topk ? at::zeros_like(first_block(s)) : first_block(s);
    if (o_.mask == Mask::vsb || o_.own_blocks)
      all = all.logical_or_(own_blocks(s));
    else if (o_.mask != Mask::topk)
      all = all.logical_or_(columns().eq(s.latest));
    return all.logical_and_(seen(s));
  }

  // Rows that attend to all they see: [B|1, 1, rows] bool.
  Tensor dense_rows() const {
    const Span s = span(0, rows());
    const Tensor dense = seen(s).sum(-1).le(budget_);
    if (!reads_lines()) return dense;
    const Tensor covered = (lines() + (o_.query_block - 1)).div_(o_.query_block, "floor").mul_(o_.query_block);
    return dense.logical_or((s.begin.squeeze(1) - s.text.start).unsqueeze(1).lt(covered));
  }
  int64_t dense_tail() const { return reads_lines() ? 1 : 0; }

 private:
  // Of each sequence's longest text: [B|1, 1, 1].
  Tensor text_blocks() const {
    if (asking_ == 0) return at::zeros({1, 1, 1}, at::kLong);
    const SeenKeys text = span(0, rows()).text;
    const auto block = [&](const Tensor& key) { return key.div(key_block(), "floor"); };
    return (block(text.end + (key_block() - 1)) - block(text.start)).amax(1).unsqueeze(1).unsqueeze(2);
  }

  const DhsaBlocks& o_;
  int64_t asking_;
  Tensor budget_;
};

// The `count` best entries of x along the last axis where they stand, 0 elsewhere; a count broadcasts as in select_top.
Tensor keep_top(const Tensor& x, const Tensor& count, const ops::TopOptions& which) {
  const Tensor index = ops::select_top(x, count, which);
  const Tensor place = index.clamp_min(0).to(at::kLong);
  return at::zeros_like(x).scatter_add_(-1, place, x.gather(-1, place).masked_fill_(index.lt(0), 0));
}

Tensor share_of(const Tensor& counts, double share) { return counts.to(at::kDouble).mul_(share).to(at::kLong); }

// How many rows from the first on are true in all sequences: rows [B, 1, n] bool.
int64_t leading(const Tensor& rows) {
  const Tensor all = rows.flatten(0, 1).all(0).contiguous();
  const bool* flags = all.const_data_ptr<bool>();
  return std::find(flags, flags + all.numel(), false) - flags;
}

// What blocks score in every row alike, and what the distances between a row and a block add.
struct Lines {
  Tensor columns;    // [B, Hq, 1, key_blocks] fp64
  Tensor distances;  // [B, Hq, n + 1] fp64: entry d is the sum of the kept distances below d
};

// fp64: differences of these sums must keep equal scores equal.
Tensor sums_below(const Tensor& x) { return at::constant_pad_nd(x.cumsum(-1, at::kDouble), {1, 0}); }

Lines token_lines(const DhsaBlocks& o, const Blocks& blocks, const Inputs& asking, const Tensor& lse) {
  const LineSums sums = line_sums(asking, lse, o.name);
  const Tensor lines = blocks.lines().squeeze(2), columns = share_of(lines, o.vertical_slash_ratio);
  const Tensor kept = keep_top(sums.columns, columns, {});
  const Tensor whole = at::constant_pad_nd(kept, {0, blocks.key_blocks() * o.key_block - kept.size(2)});
  return {
      whole.unflatten(2, {blocks.key_blocks(), o.key_block}).sum(c10::IntArrayRef{3}, false, at::kDouble).unsqueeze(2),
      sums_below(keep_top(sums.distances, lines - columns, {}))};
}

Lines block_lines(const DhsaBlocks& o, const Blocks& blocks, const Inputs& asking, const Tensor& means) {
  const Tensor q = asking.q.detach();
  const Tensor scores = ops::score_blocks(q, means, std::array<int64_t, 2>{0, q.size(2)}, ops::Pooling::mean, false);
  const Blocks::Span span = blocks.span_of_last(blocks.asking());
  const ops::TopOptions seen{.forced = {}, .banned = blocks.seen(span).logical_not_()};
  const Tensor columns = share_of(blocks.budget(), o.vertical_slash_ratio);
  const Tensor slashes = keep_top(scores, blocks.budget() - columns, seen).squeeze(2);
  const int64_t latest = span.latest.item<int64_t>();
  return {keep_top(scores, columns, seen).to(at::kDouble),
          sums_below(slashes.narrow(2, 0, latest + 1).flip(2))};  // from the nearest to the farthest
}

BlockScores scores_by_lines(const DhsaBlocks& o, const Blocks& blocks, const Lines& lines) {
  return [&o, &blocks, lines](int64_t first, int64_t count) {
    const Blocks::Span s = blocks.span(first, count);
    const Tensor column = blocks.columns();
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

// `lse` is that of the asking queries, where lines are read.
BlockScores scores_of(const DhsaBlocks& o, const Blocks& blocks, const Inputs& in, const Inputs& asking,
                      const Tensor& lse) {
  if (o.mask == Mask::vs) return scores_by_lines(o, blocks, token_lines(o, blocks, asking, lse));
  const auto cuts = ops::even_cuts(in.k.size(2), o.key_block);
  const Tensor means = ops::pool_segments(keys_in_sight(in).detach(), cuts, ops::Pooling::mean);
  if (o.mask == Mask::vsb) return scores_by_lines(o, blocks, block_lines(o, blocks, asking, means));
  return scores_by_means(blocks, in.q, means, /*by_group=*/false);
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
  return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended DhsaBlocks::attend_prompt(const Inputs& in) const {
  validate();
  const Blocks blocks(*this, in);
  const Tensor dense = blocks.dense_rows();
  const int64_t queries = in.q.size(2), head = leading(dense), tail = blocks.dense_tail();
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
  const BlockScores scores = scores_of(*this, blocks, in, asking, asked.lse);
  const auto forced = [&](const BlockGrid::Span& span) { return blocks.forced(span); };
  const Tensor takes = at::where(dense.narrow(2, head, rows), blocks.key_blocks(), blocks.budget());
  const Tensor index = select_blocks(blocks, scores, forced, takes, head, in.q.size(0) * in.q.size(1));
  const Inputs part = narrow_rows(in, begin, end - begin);
  BlockPlan plan = plan_of_blocks(blocks, index, head, part.rule);
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
